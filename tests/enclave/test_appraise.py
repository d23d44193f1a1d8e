"""Genuine evidence of every kind through the one door: claims, verdicts, and why what is refused is."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.enclave_samples import Sample, positives
from tests.enclave.samples import VARIABLE, sample

from cloister.enclave.appraise import appraise, appraiser, judge
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, report_data
from cloister.enclave.kinds import snp
from cloister.enclave.policy import EnclavePolicy, Policies, Reference
from cloister.errors import InputError

NAMES = (
    *("snp", "tdx", "sgx", "tdx with its event log", "tpm", "nitro", "nvidia-gpu", "nvidia-switch"),
    *("azure-snp-vtpm v0", "azure-snp-vtpm v1", "azure-tdx-vtpm"),
)
DEFAULT = Policies((EnclavePolicy(),))


@functools.cache
def gallery() -> dict[str, Sample]:
    sample("PROVENANCE.md")  # skips where there is no folder
    return {each.name: each for each in positives(Path(os.environ[VARIABLE]))}


def refused_by(found: Sample, policy: EnclavePolicy, **other: Any) -> list[str]:
    asked = other.get("asked", found.asked)
    verdict = judge(found.evidence, Policies((policy,)), at=other.get("at", found.at), expected=asked)
    return [reason.split(":")[0] for reason in verdict.reasons]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_verifies_at_its_time(name: str) -> None:
    found = gallery()[name]
    claims = appraise(found.evidence, at=found.at, expected=found.asked)
    assert claims.signature is True
    assert claims.chain is (name != "tpm")  # the sample's intermediate is not public
    assert claims.freshness is (None if found.asked is None else True)
    assert claims.bindings is not False
    assert claims.measurement_match is None
    assert claims.reasons["measurement_match"]


@pytest.mark.parametrize("name", ["snp", "azure-snp-vtpm v0", "azure-snp-vtpm v1"])
def test_genuine_fresh_hardware_is_accepted_by_default(name: str) -> None:
    assert refused_by(gallery()[name], EnclavePolicy()) == []


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("tdx", ["freshness"]),
        ("sgx", ["freshness", "tcb_statuses"]),
        ("tdx with its event log", ["tcb_statuses"]),  # nobody gave collateral
        ("tpm", ["chain", "hardware_rooted"]),
        ("nitro", ["freshness"]),
        ("azure-tdx-vtpm", ["tcb_statuses"]),  # nobody gave collateral
        ("nvidia-gpu", ["kinds", "debug"]),
    ],
)
def test_the_default_refuses_for_the_right_reason(name: str, reasons: list[str]) -> None:
    assert refused_by(gallery()[name], EnclavePolicy()) == reasons


def test_rules_on_genuine_evidence() -> None:
    tdx, sgx, snp = (gallery()[name] for name in ("tdx", "sgx", "snp"))
    assert refused_by(tdx, EnclavePolicy(allow_unbound=True)) == []
    statuses = ("ConfigurationAndSWHardeningNeeded",)
    assert refused_by(sgx, EnclavePolicy(allow_unbound=True, tcb_statuses=statuses)) == []
    strict = EnclavePolicy(allow_unbound=True, tcb_statuses=statuses, rejected_advisories=("INTEL-SA-00615",))
    assert refused_by(sgx, strict) == ["rejected_advisories"]
    assert refused_by(snp, EnclavePolicy(tcb_floor={"snp": 255})) == ["tcb_floor"]
    assert refused_by(tdx, EnclavePolicy(allow_unbound=True, collateral_max_age_days=0)) == [
        "collateral_max_age_days"
    ]


def test_collateral_from_the_future_and_of_the_past() -> None:
    tdx = gallery()["tdx"]
    for days in (-400, 400):
        at = tdx.at + timedelta(days=days)
        reasons = refused_by(tdx, EnclavePolicy(allow_unbound=True), at=at)
        assert {"collateral_fresh", "chain", "tcb_statuses"}.intersection(reasons), reasons


@pytest.mark.parametrize("name", ["snp", "tdx with its event log", "tpm", "nvidia-gpu", "nvidia-switch"])
def test_another_nonce_is_refused(name: str) -> None:
    found = gallery()[name]
    asked = report_data("cloister/attest/v1", bytes(16), bytes(32))
    assert "freshness" in refused_by(found, EnclavePolicy(), asked=asked)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_evidence_of_another_kind_is_refused(name: str, other: str) -> None:
    found, kind = gallery()[name], gallery()[other].evidence.kind
    if found.evidence.kind == kind:
        return
    claimed = msgspec.structs.replace(found.evidence, kind=kind)
    try:
        claims = appraise(claimed, at=found.at, expected=found.asked)
    except InputError:
        return
    assert claims.signature is not True or claims.chain is not True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6])
def test_truncated_evidence_is_a_clear_error(name: str, part: float) -> None:
    evidence = gallery()[name].evidence
    length = int(part * len(evidence.evidence))
    cut = msgspec.structs.replace(evidence, evidence=evidence.evidence[:length])
    with pytest.raises(InputError):
        appraise(cut, at=gallery()[name].at)


def test_reference_values_decide_the_measurement() -> None:
    found = gallery()["snp"]
    claims = appraise(found.evidence, at=found.at, expected=found.asked)
    right = Reference("this", {"measurement": claims.measurements["measurement"]})
    wrong = Reference("other", {"measurement": "00" * 48})

    def match(*references: Reference) -> bool | None:
        return appraise(
            found.evidence, at=found.at, expected=found.asked, references=references
        ).measurement_match

    assert match(right, wrong) is True
    assert match(wrong) is False
    assert refused_by(found, EnclavePolicy(measurements=(wrong,))) == ["measurements"]
    assert refused_by(found, EnclavePolicy(measurements=(wrong, right), require_measurement=True)) == []


def test_devices_are_judged_with_their_machine() -> None:
    snp, gpu = gallery()["snp"], gallery()["nvidia-gpu"]
    together = msgspec.structs.replace(snp.evidence, devices=(gpu.evidence,))
    claims = appraise(together, at=snp.at, expected=snp.asked)
    assert claims.devices[0].signature is True
    assert claims.devices[0].freshness is False  # the GPU answered another nonce than the machine
    verdict = judge(together, DEFAULT, at=snp.at, expected=snp.asked)
    assert [reason.split(":")[:2] for reason in verdict.reasons] == [["device 0", " freshness"]]


def test_a_time_has_a_zone() -> None:
    with pytest.raises(InputError, match="zone"):
        appraise(gallery()["snp"].evidence, at=datetime(2024, 1, 1))


def test_an_appraiser_refuses_what_it_cannot_read() -> None:
    decide: Callable[..., Any] = appraiser(EnclavePolicy())
    claims, reasons = decide(Evidence("snp", b"no report"), datetime(2026, 1, 1, tzinfo=UTC), None)
    assert claims.signature is False
    assert reasons


class PanicException(BaseException):  # its name in libraries that are written in Rust
    pass


@pytest.mark.parametrize(
    "error", [ValueError("secret"), KeyError("x"), RecursionError(), PanicException("!")]
)
def test_whatever_a_parser_meets_evidence_is_refused_and_nobody_ends(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    # evidence comes from a peer: what it makes a library raise must not end a hub or a site
    def fails(*_: object, **__: object) -> Claims:
        raise error

    monkeypatch.setattr(snp, "verify", fails)
    claims, reasons = appraiser(EnclavePolicy())(
        Evidence("snp", b""), datetime(2026, 6, 1, tzinfo=UTC), bytes(64)
    )
    assert claims.signature is False
    assert reasons == [f"it could not be appraised ({type(error).__name__})"]


@pytest.mark.parametrize("name", ["key"])
def test_what_is_bound_cannot_take_the_place_of_the_key(name: str) -> None:
    with pytest.raises(InputError, match="taken"):
        report_data("cloister/worker/v1", bytes(32), bytes(32), **{name: "00" * 32})
