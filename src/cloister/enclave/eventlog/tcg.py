"""The firmware's event log: crypto-agile TCG format, parsed strictly and replayed.

Source: TCG PC Client Platform Firmware Profile 1.05, section 10 (`TCG_PCR_EVENT`, `TCG_PCR_EVENT2`,
`TCG_EfiSpecIDEvent`); little-endian throughout. Logs of SHA-1 alone (no Spec ID event) are refused.

Steps of `parse`:
1. the first event is a Spec ID event 03, extends nothing, and lists the banks with their digests' sizes;
2. every further event has exactly one digest of every bank, a register that exists, data within bounds;
3. events that extend nothing (EVNO_ACTION) have digests of zeros; a start-up locality is told once, before
   register 0 is extended;
4. nothing is left over, but where the caller says that a start log or padding may follow.

What a log says beyond its digests is no evidence: `unauthenticated` lists those bytes. Events whose data is
what is measured, by the specification, are held to that by `untrue`. No claim rests on anything else.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from cloister.errors import InputError

__all__ = ["BANKS", "NO_ACTION", "Event", "TcgLog", "parse"]

BANKS: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""Banks that are replayed, by TPM_ALG_ID (TCG Algorithm Registry); others are carried along."""
_SIZES: Final = {0x04: 20, 0x0B: 32, 0x0C: 48, 0x0D: 64, 0x12: 32, 0x27: 32, 0x28: 48, 0x29: 64}
NO_ACTION: Final = 0x00000003
"""EV_NO_ACTION: an event that extends nothing."""
_SPEC_ID: Final = b"Spec ID Event03\0"
_LOCALITY: Final = b"StartupLocality\0"
_MEASURED_DATA: Final = frozenset({0x00000004, 0x00000005, 0x00000008, 0x80000001, 0x80000006, 0x80000007})
"""EV_SEPARATOR, EV_ACTION, EV_S_CRTM_VERSION, EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_GPT_EVENT, EV_EFI_ACTION:
the digest is that of the event's data (section 10.4.1)."""
_MAX_EVENTS: Final = 20_000
_MAX_DATA: Final = 1 << 20
_HEAD: Final = struct.Struct("<III")
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")


class Event(NamedTuple):
    """One measurement.

    Attributes:
        register: index of the PCR, or of the measurement register of a confidential machine.
        type: what the firmware calls the event (section 10.4.1); not covered by any digest.
        digests: what each bank was extended with, by TPM_ALG_ID.
        data: what the firmware says about it; see `TcgLog.unauthenticated`.
        start: offset in the log.
        data_start: offset of `data`.
    """

    register: int
    type: int
    digests: dict[int, bytes]
    data: bytes
    start: int
    data_start: int


class TcgLog(NamedTuple):
    """A parsed log.

    Attributes:
        sizes: bytes of a digest by TPM_ALG_ID: the banks the log covers.
        events: in order, without the Spec ID event.
        locality: start-up locality, which register 0 begins with.
        first: offset of the first of `events`.
        end: offset after the last.
    """

    sizes: dict[int, int]
    events: tuple[Event, ...]
    locality: int
    first: int
    end: int

    @property
    def banks(self) -> tuple[str, ...]:
        """Names of the banks that can be replayed."""
        return tuple(BANKS[bank] for bank in self.sizes if bank in BANKS)

    def replay(self, bank: str) -> dict[int, bytes]:
        """Return what every register that was extended holds, by index.

        Raises:
            InputError: the log does not cover the bank.
        """
        number = next((n for n, name in BANKS.items() if name == bank and n in self.sizes), None)
        if number is None:
            raise InputError("an event log does not cover a bank", where=bank)
        zero = bytes(self.sizes[number])
        registers: dict[int, bytes] = {}
        for event in self.events:
            if event.type == NO_ACTION:
                continue
            before = registers.get(event.register)
            if before is None:
                before = zero[:-1] + bytes([self.locality]) if event.register == 0 else zero
            registers[event.register] = _hash(bank, before + event.digests[number])
        return registers

    def untrue(self) -> Event | None:
        """Return the first event whose data is not what was measured although its type says so, or None."""
        for event in self.events:
            if event.type in _MEASURED_DATA and any(
                _hash(BANKS[bank], event.data) != digest
                for bank, digest in event.digests.items()
                if bank in BANKS
            ):
                return event
        return None

    def unauthenticated(self) -> tuple[tuple[int, int, str], ...]:
        """Return the ranges (start, end, why) that no digest covers; no claim rests on what is in them."""
        ranges = [(0, 4, "register of the Spec ID event"), (48, 56, "platform class and versions")]
        for event in self.events:
            ranges.append((event.start + 4, event.start + 8, "type of an event"))
            if event.type not in _MEASURED_DATA:
                end = event.data_start + len(event.data)
                ranges.append((event.data_start, end, "description of what was measured"))
        return tuple(ranges)


def _hash(bank: str, data: bytes) -> bytes:
    return hashlib.new(bank, data, usedforsecurity=False).digest()  # SHA-1 banks are replayed, never trusted


def _wrong(what: str, at: int) -> InputError:
    return InputError(f"an event log is malformed: {what}", where=f"byte {at}")


def parse(data: bytes, *, first_register: int = 0, registers: int = 24, rest: bool = False) -> TcgLog:
    """Return the log that `data` holds.

    Args:
        data: the log.
        first_register: the highest index that the Spec ID event may name; it extends nothing.
        registers: how many there are.
        rest: whether something else may follow the last event: what does not begin with the index of a
            register ends the log. The caller must check it.

    Raises:
        InputError: anything is not as the format says.
    """
    try:
        sizes, at = _header(data, first_register)
        events, end = _events(data, at, sizes, registers, rest)
    except struct.error:
        raise _wrong("it ends within an event", len(data)) from None
    return TcgLog(sizes, tuple(events), _locality(events), at, end)


def _header(data: bytes, first_register: int) -> tuple[dict[int, int], int]:
    register, kind = struct.unpack_from("<II", data, 0)
    (size,) = _U32.unpack_from(data, 28)
    body = data[32 : 32 + size]
    if register > first_register or kind != NO_ACTION or any(data[8:28]):
        raise _wrong("it does not begin with a Spec ID event", 0)
    if len(body) != size or body[:16] != _SPEC_ID:
        raise _wrong("it is not in the crypto-agile format", 32)
    platform, _minor, major, _errata, width, count = struct.unpack_from("<IBBBBI", body, 16)
    if platform > 1 or major != 2 or width not in (1, 2) or not 1 <= count <= len(_SIZES):
        raise _wrong("its version is unknown", 48)
    sizes = dict(struct.unpack_from("<HH", body, 28 + 4 * index) for index in range(count))
    if len(sizes) != count or any(_SIZES.get(bank) != length for bank, length in sizes.items()):
        raise _wrong("it lists unknown banks", 60)
    vendor = 28 + 4 * count
    if vendor >= size or size != vendor + 1 + body[vendor]:
        raise _wrong("its first event has a wrong length", 32 + vendor)
    return sizes, 32 + size


def _events(
    data: bytes, at: int, sizes: dict[int, int], registers: int, rest: bool
) -> tuple[list[Event], int]:
    events: list[Event] = []
    zeros = {bank: bytes(size) for bank, size in sizes.items()}
    while at < len(data):
        if rest and _over(data, at, registers):
            break
        register, kind, count = _HEAD.unpack_from(data, at)
        if register >= registers:
            raise _wrong("an event names a register that does not exist", at)
        if count != len(sizes):
            raise _wrong("an event does not have one digest of every bank", at)
        digests, body = _digests(data, at + 12, count, sizes)
        (size,) = _U32.unpack_from(data, body)
        end = body + 4 + size
        if size > _MAX_DATA or end > len(data) or len(events) == _MAX_EVENTS:
            raise _wrong("an event is too long, or there are too many", at)
        if kind == NO_ACTION and digests != zeros:
            raise _wrong("an event that extends nothing has a digest", at)
        events.append(Event(register, kind, digests, data[body + 4 : end], at, body + 4))
        at = end
    return events, at


def _over(data: bytes, at: int, registers: int) -> bool:
    """Return whether no event begins here: no such register, or an event without digests (zero padding)."""
    register, _, count = struct.unpack("<III", data[at : at + 12].ljust(12, b"\0"))
    return bool(register >= registers or count == 0)


def _digests(data: bytes, at: int, count: int, sizes: dict[int, int]) -> tuple[dict[int, bytes], int]:
    digests: dict[int, bytes] = {}
    for _ in range(count):
        (bank,) = _U16.unpack_from(data, at)
        size = sizes.get(bank)
        if size is None or bank in digests:
            raise _wrong("an event does not have one digest of every bank", at)
        digests[bank] = data[at + 2 : at + 2 + size]
        at += 2 + size
    return digests, at


def _locality(events: list[Event]) -> int:
    """Return the locality that register 0 starts from (section 10.4.5.3)."""
    locality: int | None = None
    extended = False
    for event in events:
        if event.type != NO_ACTION:
            extended = extended or event.register == 0
        elif event.data.startswith(_LOCALITY):
            if extended or locality is not None or event.register or len(event.data) != len(_LOCALITY) + 1:
                raise _wrong("a start-up locality is told late, twice, or wrongly", event.start)
            locality = event.data[-1]
            if locality not in (0, 3, 4):
                raise _wrong("a start-up locality does not exist", event.start)
    return locality or 0
