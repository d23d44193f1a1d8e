"""The event log of a TDX machine: a genuine one replays to its quote."""

from __future__ import annotations

import random

import pytest
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.samples import sample

from cloister.enclave.eventlog import parse_ccel, replay_rtmrs, replays_to_rtmrs
from cloister.errors import InputError

QUOTE = "tdx/google_cos113_quote.dat"
LOG = "tdx/google_cos113_ccel_data.dat"
RTMR0 = 48 + 328  # header of a version 4 quote, then RTMR 0 in its TD report


def rtmrs() -> list[bytes]:
    quote = sample(QUOTE)
    return [quote[RTMR0 + 48 * number :][:48] for number in range(4)]


def test_genuine_log_replays_to_its_quote():
    assert replays_to_rtmrs(sample(LOG), rtmrs()) == (True, "")
    assert set(replay_rtmrs(sample(LOG))) == {0, 1, 2}


def test_another_register_is_named():
    values = rtmrs()
    assert replays_to_rtmrs(sample(LOG), [*values[:3], b"\1" * 48])[1].endswith("RTMR 3")
    assert replays_to_rtmrs(sample(LOG), [values[1], values[0], *values[2:]])[1].endswith("RTMR 0")


def test_padding_is_ones_or_zeros_and_nothing_else():
    data = sample(LOG)
    end = parse_ccel(data).end
    assert parse_ccel(data[:end]).end == end
    assert parse_ccel(data[:end] + bytes(100)).end == end
    for wrong in (b"\xfe" * 100, b"\xff" * 99 + b"\0", bytes(99) + b"\1"):
        with pytest.raises(InputError):
            parse_ccel(data[:end] + wrong)


def test_a_log_of_another_kind_of_machine_is_refused():
    with pytest.raises(InputError):
        parse_ccel(sample("tpm/eventlog_ubuntu2404_amd_sevsnp.bin"))


def test_2000_bytes_count_or_are_listed():
    data, values = sample(LOG), rtmrs()
    log = parse_ccel(data)
    data = data[: log.end + 64]
    open_to_all = {at for start, end, _ in log.unauthenticated() for at in range(start, end)}
    chosen = sorted(random.Random(5).sample(range(len(data)), 2000))  # noqa: S311
    for at, changed in flips(data, iter(chosen)):
        try:
            holds, _ = replays_to_rtmrs(changed, values)
        except InputError:
            continue
        assert not holds or at in open_to_all, at


@pytest.mark.slow
def test_fuzz():
    data, values = sample(LOG), rtmrs()
    data = data[: parse_ccel(data).end + 64]
    for changed in mutations(data, fuzz_seconds(), 3):
        try:
            replays_to_rtmrs(changed, values)
        except InputError:
            continue
