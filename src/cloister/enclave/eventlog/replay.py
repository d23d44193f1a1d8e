"""Whether an event log replays to the registers that a TPM quoted.

A log is the firmware's (`tcg`), Cloister's own (`start`), or the first followed by the second: no event of
the firmware begins with the brace that a line of the other begins with.

`replays`, in this order:
1. every register that a log extends and that was quoted holds what the log says, in every bank they share;
2. the firmware's log leaves none of registers 0 to 7 out that holds something;
3. events whose data is what was measured say what was measured;
4. the start log goes on from what the firmware left, in SHA-256; all of its registers were quoted, and it
   leaves none of registers 11 to 14 out that holds something.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final, NamedTuple

from cloister.crypto import constant_time_equal
from cloister.enclave.eventlog import tcg
from cloister.enclave.eventlog.start import START_PCRS, StartLog

__all__ = ["Pcrs", "Replayed", "replays", "split"]

Pcrs = Mapping[str, Mapping[int, bytes]]
"""Values of registers by bank and index."""
_FIRMWARE: Final = range(8)
_BANK: Final = "sha256"


class Replayed(NamedTuple):
    """What a replay showed.

    Attributes:
        holds: whether the log replays to the quoted registers.
        reason: why it does not.
        start: what a start log says was measured, hexadecimal by name; empty where it does not hold.
        own: whether there is a start log.
    """

    holds: bool
    reason: str
    start: Mapping[str, str]
    own: bool


def split(data: bytes) -> tuple[tcg.TcgLog | None, StartLog | None]:
    """Return the firmware's log and the start log that `data` holds; either may be missing.

    Raises:
        InputError: malformed.
    """
    if data.startswith(b"{"):
        return None, StartLog.from_bytes(data)
    firmware = tcg.parse(data, rest=True)
    left = data[firmware.end :]
    return firmware, StartLog.from_bytes(left) if left else None


def replays(data: bytes, pcrs: Pcrs) -> Replayed:
    """Tell whether the log in `data` replays to quoted registers.

    Args:
        data: the log.
        pcrs: what the quote covers.

    Raises:
        InputError: the log is malformed.
    """
    firmware, start = split(data)
    reason = ""
    left: Mapping[int, bytes] = {}
    if firmware is not None:
        replayed = {bank: firmware.replay(bank) for bank in firmware.banks if bank in pcrs}
        own_registers = {entry.pcr for entry in start.entries} if start else set()
        reason = _firmware(firmware, replayed, pcrs, own_registers)
        left = replayed.get(_BANK, {})
    if start is not None and not reason:
        reason = _start(start.replay(left), left, pcrs.get(_BANK, {}))  # 4
    own = start is not None
    return Replayed(not reason, reason, start.digests() if start and not reason else {}, own)


def _firmware(log: tcg.TcgLog, replayed: Pcrs, pcrs: Pcrs, own: Set[int]) -> str:
    """Return what is wrong with the firmware's log; registers in `own` go on in the start log's bank."""
    if not any(set(values) & set(pcrs[bank]) for bank, values in replayed.items()):
        return "the event log covers no register that was quoted"
    for bank, values in replayed.items():
        final = {index: value for index, value in values.items() if bank != _BANK or index not in own}
        if reason := _differs(bank, final, pcrs[bank], all_quoted=False):  # 1
            return reason
        for index in _FIRMWARE:  # 2
            if index not in values and any(pcrs[bank].get(index, b"")):
                return f"the event log leaves out register {index}"
    event = log.untrue()  # 3
    return f"the event at byte {event.start} says what was not measured" if event else ""


def _start(values: Mapping[int, bytes], left: Mapping[int, bytes], quoted: Mapping[int, bytes]) -> str:
    for index in START_PCRS:
        if index not in values and index not in left and any(quoted.get(index, b"")):
            return f"the start log leaves out register {index}"
    return _differs(_BANK, values, quoted, all_quoted=True)


def _differs(bank: str, values: Mapping[int, bytes], quoted: Mapping[int, bytes], *, all_quoted: bool) -> str:
    for index, value in values.items():
        if index not in quoted:
            if all_quoted:
                return f"register {index}, which the start log extends, was not quoted in {bank}"
        elif not constant_time_equal(value, quoted[index]):
            return f"the event log does not replay to register {index} in {bank}"
    return ""
