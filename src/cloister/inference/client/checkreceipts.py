"""A file of receipts, checked offline, by whoever has it and an enclave policy of his own.

1. Every line parses.
2. A key set's evidence, appraised for the time at which it was verified, carries these very keys, the
   checker's own policy accepts it, it covers the accelerators they speak of, and they were in force then.
3. Every receipt is under a key set that stands before it, and its signature verifies under that set's key.
4. It names that key set and its model, and is not from before it.

That no receipt is missing, and when evidence was asked for, is the word of whoever kept the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.crypto import sha256
from cloister.enclave.claims import Protection
from cloister.enclave.evidence import Evidence
from cloister.errors import CloisterError, InputError
from cloister.inference.client.receipts import KeysLine, decoded, read_lines, reason_of
from cloister.inference.client.verify import SKEW, AppraisesEvidence, in_force, unvouched
from cloister.inference.exchange.keyset import KeySet, keys_report_data
from cloister.inference.exchange.receipt import open_receipt

__all__ = ["Checked", "CheckedKeys", "check_receipts"]

_MAX_PROBLEMS: Final = 100


@dataclass(frozen=True)
class CheckedKeys:
    """One key set of a file of receipts.

    Attributes:
        digest: hexadecimal.
        model: the model's name.
        model_digest: hexadecimal.
        at: when it was verified first.
        protection: what vouched for it, in words.
        refused_because: why the checker's policy refuses its evidence; empty where it accepts it.
        receipts: how many of its receipts verify.
    """

    digest: str
    model: str
    model_digest: str
    at: datetime
    protection: Protection
    refused_because: tuple[str, ...]
    receipts: int


@dataclass(frozen=True)
class Checked:
    """What a check of receipts found out.

    Attributes:
        receipts: how many verify.
        key_sets: in the order of the file.
        problems: what does not hold, by line; the first hundred.
        last: when the newest receipt that verifies was signed.
    """

    receipts: int
    key_sets: tuple[CheckedKeys, ...]
    problems: tuple[str, ...]
    last: datetime | None

    @property
    def accepted(self) -> bool:
        """Whether everything holds, and all evidence is accepted."""
        return not self.problems and not any(each.refused_because for each in self.key_sets)


@dataclass
class _Set:
    keys: KeySet
    line: KeysLine
    protection: Protection
    reasons: tuple[str, ...]
    receipts: int = 0


@dataclass
class _Tally:
    sets: dict[str, _Set] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    last: datetime | None = None


def check_receipts(path: Path, appraise: AppraisesEvidence) -> Checked:
    """Check a file of receipts offline; steps as in the module's docstring.

    Args:
        path: the file.
        appraise: the checker's own judgement of evidence.

    Raises:
        InputError: it cannot be read.
    """
    tally = _Tally()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"cannot read the receipts: {reason_of(error)}", where=str(path), fix="Check the path"
        ) from error
    try:
        for number, line in read_lines(descriptor, path):
            try:
                _check_line(tally, line, appraise)
            except CloisterError as error:
                if len(tally.problems) < _MAX_PROBLEMS:
                    tally.problems.append(f"line {number}: {error.what}")
    finally:
        os.close(descriptor)
    sets = tuple(
        CheckedKeys(
            name,
            each.keys.model,
            each.keys.model_digest,
            each.line.at,
            each.protection,
            each.reasons,
            each.receipts,
        )
        for name, each in tally.sets.items()
    )
    return Checked(sum(each.receipts for each in sets), sets, tuple(tally.problems), tally.last)


def _check_line(tally: _Tally, line: bytes, appraise: AppraisesEvidence) -> None:
    found = decoded(line)  # 1
    if found is None:
        raise InputError("it is neither a receipt nor a key set")
    if isinstance(found, KeysLine):
        name = sha256(found.keys).hex()
        if name not in tally.sets:
            tally.sets[name] = _checked_keys(found, appraise)
        return
    under = tally.sets.get(found.keys)  # 3
    if under is None:
        raise InputError("the receipt is under a key set that does not stand before it")
    receipt = open_receipt(found.receipt, under.keys.receipt_key)
    if (receipt.keys, receipt.model, receipt.model_digest) != (  # 4
        found.keys,
        under.keys.model,
        under.keys.model_digest,
    ):
        raise InputError("the receipt names other keys or another model than it is kept under")
    if receipt.at < under.keys.not_before - SKEW:
        raise InputError("the receipt is older than its keys")
    under.receipts += 1
    tally.last = receipt.at if tally.last is None else max(tally.last, receipt.at)


def _checked_keys(line: KeysLine, appraise: AppraisesEvidence) -> _Set:
    keys = KeySet.from_bytes(line.keys)
    claims, found = appraise(
        Evidence.from_json(line.evidence), line.at, keys_report_data(line.nonce, keys)
    )  # 2
    reasons = [*found, *unvouched(keys, claims)]
    if claims.freshness is not True:
        reasons.append("freshness: the evidence does not carry these keys")
    if not in_force(keys, line.at):
        reasons.append("keys: they were not in force when they were verified")
    return _Set(keys, line, claims.protection, tuple(dict.fromkeys(reasons)))
