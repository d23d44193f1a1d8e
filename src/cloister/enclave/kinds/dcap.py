"""`dcap-qvl`, with collateral and time always given: what level Intel puts a platform on.

It repeats the checks of a quote and its collateral on its own. What it answers is a status such as "UpToDate"
or "OutOfDate", and the advisories that apply. Its own policy, with its options, is `QuotePolicy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from cloister.enclave.kinds.collateral import Collateral
from cloister.errors import InputError

__all__ = ["Level", "QuotePolicy", "level_of", "refusals"]


class _Tcb(msgspec.Struct, frozen=True):
    status: str
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Dated(msgspec.Struct, frozen=True):
    tcbDate: str  # noqa: N815 - the names in Intel's documents
    tcbStatus: str  # noqa: N815


class _Part(msgspec.Struct, frozen=True):
    tcb_level: _Dated


class _Answer(msgspec.Struct, frozen=True):
    tcb: _Tcb
    platform: _Part
    qe: _Part


@dataclass(frozen=True, slots=True)
class Level:
    """Where Intel puts a platform.

    Attributes:
        status: of platform, TDX module and quoting enclave together.
        advisories: identifiers of those that apply.
        evaluation: number of Intel's evaluation of levels that this is from.
        dated: since when the platform's level has been there, RFC 3339.
        quoting: status of the quoting enclave alone.
    """

    status: str
    advisories: tuple[str, ...]
    evaluation: int
    dated: str
    quoting: str


@dataclass(frozen=True, slots=True)
class QuotePolicy:
    """The options of `dcap-qvl`'s own policy; the default accepts platforms that are up to date only.

    Attributes:
        statuses: accepted beside "UpToDate".
        rejected_advisories: none of these may apply.
        platform_grace_seconds: how long an out-of-date platform is accepted.
        qe_grace_seconds: the same for the quoting enclave.
        min_tcb_evaluation: least number of Intel's evaluation of levels.
        dynamic_platform: whether processors may be added to the platform.
        cached_keys: whether the platform's keys may be cached by its registration authority.
        smt: whether hyper-threads may be on.
        sgx_types: accepted kinds of memory protection (0 standard, 1 scalable, 2 with integrity); empty: any.
    """

    statuses: tuple[str, ...] = ()
    rejected_advisories: tuple[str, ...] = ()
    platform_grace_seconds: int = 0
    qe_grace_seconds: int = 0
    min_tcb_evaluation: int = 0
    dynamic_platform: bool = False
    cached_keys: bool = False
    smt: bool = False
    sgx_types: tuple[int, ...] = ()


def level_of(quote: bytes, collateral: Collateral, at: datetime) -> Level | str:
    """Return the level of a quote's platform, or why dcap-qvl refuses the quote.

    Args:
        quote: without the zeros that may follow it.
        collateral: that the caller has checked.
        at: the time of appraisal.

    Raises:
        InputError: dcap-qvl is not there, or answers in a form that is not known.
    """
    library, now = _library(), int(at.timestamp())
    answer = _ask(library, quote, collateral, now, library.QuotePolicy.claims_only(now))
    if isinstance(answer, str):
        return answer
    try:
        told = msgspec.json.decode(answer.to_json(), type=_Answer)
    except msgspec.DecodeError as error:
        raise InputError(f"dcap-qvl answers in a form that is not known: {error}") from None
    status, platform, quoting = told.tcb, told.platform.tcb_level, told.qe.tcb_level
    return Level(
        status.status, status.advisory_ids, status.eval_data_number, platform.tcbDate, quoting.tcbStatus
    )


def refusals(quote: bytes, collateral: Collateral, at: datetime, policy: QuotePolicy) -> list[str]:
    """Return why dcap-qvl refuses a quote under its own policy; nothing where it accepts.

    Raises:
        InputError: dcap-qvl is not there, or the policy is one that cannot be.
    """
    library, now = _library(), int(at.timestamp())
    try:
        options = library.QuotePolicy.strict(now).reject_advisories(list(policy.rejected_advisories))
        options = options.platform_grace_period(policy.platform_grace_seconds)
        options = options.qe_grace_period(policy.qe_grace_seconds)
        options = options.min_tcb_eval_data_number(policy.min_tcb_evaluation)
        options = options.allow_dynamic_platform(policy.dynamic_platform).allow_smt(policy.smt)
        options = options.allow_cached_keys(policy.cached_keys)
        if policy.sgx_types:
            options = options.accepted_sgx_types(list(policy.sgx_types))
        for status in policy.statuses:
            options = options.allow_status(status)
    except (ValueError, OverflowError, TypeError) as error:
        raise InputError(f"a quote policy that cannot be: {error}") from None
    answer = _ask(library, quote, collateral, now, options)
    return [answer] if isinstance(answer, str) else []


def _ask(library: Any, quote: bytes, collateral: Collateral, now: int, policy: Any) -> Any:
    """Return dcap-qvl's claims, or the text of its refusal."""
    try:
        given = library.QuoteCollateralV3(*collateral.pieces())
        return library.QuoteVerifier().verify_with_policy(quote, given, now, policy)
    except (ValueError, OverflowError) as error:
        return str(error).removeprefix("Verification failed: ")


def _library() -> Any:
    try:
        import dcap_qvl
    except ImportError:
        raise InputError(
            "Intel's collateral needs the package dcap-qvl", fix="Install cloister[enclave]"
        ) from None
    return dcap_qvl
