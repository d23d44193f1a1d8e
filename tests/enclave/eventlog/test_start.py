"""The log of a measured start: what replays, and what is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from tests.enclave.fuzz import fuzz_seconds, mutations

from cloister.crypto import canonical_bytes
from cloister.enclave.eventlog import StartLog
from cloister.errors import InputError

A, B = "aa" * 32, "bb" * 32


def log_of(*entries: tuple[int, str, str]) -> StartLog:
    log = StartLog()
    for pcr, name, digest in entries:
        log.extend(pcr, name, digest, "for people")
    return log


def test_replays_as_a_tpm_extends():
    log = StartLog()
    registers = {11: bytes(32), 14: bytes(32)}
    for pcr, name in ((11, "interpreter"), (14, "plan"), (11, "package")):
        value = log.extend(pcr, name, A, "3.11")
        assert (
            value == hashlib.sha256(canonical_bytes({"name": name, "digest": A, "detail": "3.11"})).digest()
        )
        registers[pcr] = hashlib.sha256(registers[pcr] + value).digest()
    assert log.replay() == registers
    again = StartLog.from_bytes(log.to_bytes())
    assert again.replay() == registers
    assert again.digests() == {"interpreter": A, "plan": A, "package": A}


def test_goes_on_from_what_a_register_held():
    log = log_of((12, "plan", A))
    assert log.replay({12: b"x" * 32}) == {12: hashlib.sha256(b"x" * 32 + log.entries[0].value).digest()}


def test_order_and_every_field_are_in_the_replay():
    base = log_of((11, "a", A), (11, "b", B)).replay()
    assert log_of((11, "b", B), (11, "a", A)).replay() != base
    assert log_of((11, "a", A)).replay() != base
    assert log_of((11, "a", A), (11, "b", A)).replay() != base


def test_a_name_stands_for_one_digest():
    log = log_of((11, "package", A), (11, "package", A))
    assert len(log.entries) == 2
    with pytest.raises(InputError, match="two different contents"):
        log.extend(11, "package", B)
    line = log_of((11, "package", B)).to_bytes()
    with pytest.raises(InputError, match="two different contents"):
        StartLog.from_bytes(log.to_bytes() + line)


@pytest.mark.parametrize(
    ("pcr", "name", "digest"),
    [
        (10, "a", A),
        (15, "a", A),
        (16, "a", A),
        (11, "", A),
        (11, "A", A),
        (11, "a\n", A),
        (11, "a", A.upper()),
        (11, "a", A[:-2]),
        (True, "a", A),
    ],
)
def test_what_does_not_fit_is_refused(pcr, name, digest):
    log = StartLog()
    with pytest.raises(InputError):
        log.extend(pcr, name, digest)
    assert log.entries == ()


def test_only_the_canonical_form_is_read():
    data = log_of((11, "a", A)).to_bytes()
    entry = json.loads(data)
    for other in (
        data[:-1],
        data + b"\n",
        data.replace(b",", b", "),
        data.replace(b"\n", b"\r\n"),
        b'{"pcr":11,' + data[1:],
        json.dumps({**entry, "more": 1}).encode() + b"\n",
        data.replace(A.encode(), B.encode().upper()),
        b"\xff\n",
        b"[" * 5000,
    ):
        with pytest.raises(InputError):
            StartLog.from_bytes(other)
    assert StartLog.from_bytes(b"").replay() == {}


def fuzz(amount: float | int, seed: int) -> None:
    data = log_of((11, "interpreter", A), (12, "package", B), (11, "plan", A)).to_bytes()
    for changed in mutations(data, amount, seed):
        try:
            log = StartLog.from_bytes(changed)
        except InputError:
            continue
        assert log.to_bytes() == changed


def test_mutations_are_refused_or_read():
    fuzz(2000, 1)


@pytest.mark.slow
def test_fuzz():
    fuzz(fuzz_seconds(), 2)
