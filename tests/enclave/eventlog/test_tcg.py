"""The firmware's event log: genuine ones replay, altered ones do not, malformed ones are refused."""

from __future__ import annotations

import hashlib
import struct

import pytest
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.samples import sample

from cloister.enclave.eventlog import tcg
from cloister.errors import InputError

UBUNTU = "tpm/eventlog_ubuntu2404_amd_sevsnp.bin"
SIZES = {0x0B: 32, 0x0C: 48}
NAMES = {0x0B: "sha256", 0x0C: "sha384"}


def header(sizes=SIZES, *, register: int = 0, vendor: bytes = b"") -> bytes:
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(sizes))
    body += b"".join(struct.pack("<HH", *each) for each in sizes.items()) + bytes([len(vendor)]) + vendor
    return struct.pack("<II", register, 3) + bytes(20) + struct.pack("<I", len(body)) + body


def event(
    register: int, kind: int, data: bytes, *, measured: bytes | None = None, zero: bool = False
) -> bytes:
    content = data if measured is None else measured
    digests = b"".join(
        struct.pack("<H", bank) + (bytes(SIZES[bank]) if zero else hashlib.new(NAMES[bank], content).digest())
        for bank in SIZES
    )
    return struct.pack("<III", register, kind, len(SIZES)) + digests + struct.pack("<I", len(data)) + data


def same(log: tcg.TcgLog) -> tuple[object, ...]:
    """What claims can rest on."""
    return tuple(log.replay(bank) for bank in log.banks), log.untrue() is None


def test_genuine_log_of_a_confidential_machine_replays():
    log = tcg.parse(sample(UBUNTU))
    assert len(log.events) == 116
    assert log.banks == ("sha1", "sha256", "sha384")
    assert log.untrue() is None
    zero = hashlib.sha256(bytes(32) + hashlib.sha256(bytes(4)).digest()).hexdigest()
    replayed = log.replay("sha256")
    assert {register: replayed[register].hex() for register in (2, 3, 6)} == dict.fromkeys((2, 3, 6), zero)
    assert set(replayed) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14}


def test_a_written_log_replays_by_hand():
    data = header() + event(4, 0x80000003, b"path", measured=b"image") + event(4, 4, bytes(4))
    register = bytes(32)
    for content in (b"image", bytes(4)):
        register = hashlib.sha256(register + hashlib.sha256(content).digest()).digest()
    assert tcg.parse(data).replay("sha256") == {4: register}
    with pytest.raises(InputError, match="does not cover"):
        tcg.parse(data).replay("sha1")


def test_a_start_up_locality_is_what_register_0_begins_with():
    first = event(0, 3, b"StartupLocality\0\x03", zero=True)
    data = header() + first + event(0, 8, b"v")
    begun = bytes(31) + b"\x03"
    assert tcg.parse(data).replay("sha256") == {
        0: hashlib.sha256(begun + hashlib.sha256(b"v").digest()).digest()
    }
    for wrong in (
        header() + event(0, 8, b"v") + first,
        header() + first + first,
        header() + event(0, 3, b"StartupLocality\0\x05", zero=True),
        header() + event(0, 3, b"StartupLocality\0\x03\x00", zero=True),
        header() + event(1, 3, b"StartupLocality\0\x03", zero=True),
        header() + event(0, 3, b"StartupLocality\0\x03"),
    ):
        with pytest.raises(InputError):
            tcg.parse(wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header()[:-1],
        header({}),
        header({0x0B: 20}),
        header({0x99: 32}),
        header(register=1),
        header() + b"\0",
        header() + bytes(64),
        header() + event(24, 4, bytes(4)),
        header() + event(0, 4, bytes(4))[:-1],
        header() + event(0, 4, bytes(4)) + b"\xff" * 8,
        header()[:28] + struct.pack("<I", 0xFFFFFFFF) + header()[32:],
        header().replace(b"Event03", b"Event02"),
        header() + event(0, 4, b"").replace(struct.pack("<H", 0x0C), struct.pack("<H", 0x0B), 1),
        struct.pack("<II", 0, 8) + hashlib.sha1(b"v", usedforsecurity=False).digest() + b"\1\0\0\0v",
    ],
)
def test_malformed_logs_are_refused(data):
    with pytest.raises(InputError):
        tcg.parse(data)


def test_an_event_that_says_what_was_not_measured_is_named():
    lie = event(7, 0x80000001, b"SecureBoot = 1", measured=b"SecureBoot = 0")
    assert tcg.parse(header() + lie).untrue() is not None
    other = event(4, 0x80000003, b"a description", measured=b"an image")
    assert tcg.parse(header() + other).untrue() is None


def check_flips(data: bytes, positions: range) -> None:
    log = tcg.parse(data)
    before = same(log)
    open_to_all = {at for start, end, _ in log.unauthenticated() for at in range(start, end)}
    for at, changed in flips(data, positions):
        try:
            after = same(tcg.parse(changed))
        except InputError:
            continue
        assert after != before or at in open_to_all, at


def test_every_19th_byte_counts_or_is_listed():
    data = sample(UBUNTU)
    check_flips(data, range(0, len(data), 19))


@pytest.mark.slow
def test_every_byte_counts_or_is_listed():
    data = sample(UBUNTU)
    check_flips(data, range(len(data)))


def fuzz(data: bytes, amount: float | int, seed: int) -> None:
    for changed in mutations(data, amount, seed):
        try:
            log = tcg.parse(changed)
        except InputError:
            continue
        same(log)
        log.unauthenticated()


def test_mutations_are_refused_or_parsed():
    fuzz(header() + event(0, 8, b"v") + event(4, 4, bytes(4)), 2000, 1)


@pytest.mark.slow
def test_fuzz():
    fuzz(sample(UBUNTU), fuzz_seconds(), 2)
