"""The event log of a TDX machine (CCEL): the firmware's log format, replayed to the RTMRs of its quote.

Source: Intel TDX Virtual Firmware Design Guide, "Measurement Register Usage" and "Event Log"; UEFI 2.10,
38.4.1. The events are those of `tcg`, with SHA-384; their register 0 is MRTD (extended by nobody), 1 to 4
are RTMR 0 to 3. The ACPI area is larger than the log: what follows the last event is 0xFF, or zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.crypto import constant_time_equal
from cloister.enclave.eventlog import tcg
from cloister.errors import InputError

__all__ = ["parse_ccel", "replay_rtmrs", "replays_to_rtmrs"]

_BANK: Final = "sha384"
_REGISTERS: Final = 5


def parse_ccel(data: bytes) -> tcg.TcgLog:
    """Return the log in an ACPI CCEL area.

    Raises:
        InputError: malformed, without SHA-384, or followed by anything but padding.
    """
    log = tcg.parse(data, first_register=1, registers=_REGISTERS, rest=True)
    left = data[log.end :]
    if (left and left.count(left[0]) != len(left)) or left[:1] not in (b"", b"\x00", b"\xff"):
        raise InputError("an event log is followed by something else", where=f"byte {log.end}")
    if _BANK not in log.banks or any(e.register == 0 and e.type != tcg.NO_ACTION for e in log.events):
        raise InputError("an event log is not that of a TDX machine", where="CCEL")
    return log


def replay_rtmrs(data: bytes) -> dict[int, bytes]:
    """Return what each RTMR that was extended holds, 48 bytes, by its number 0 to 3.

    Raises:
        InputError: malformed.
    """
    return {register - 1: value for register, value in parse_ccel(data).replay(_BANK).items()}


def replays_to_rtmrs(data: bytes, rtmrs: Sequence[bytes]) -> tuple[bool, str]:
    """Tell whether the log replays to the four RTMRs of a quote, and if not, why.

    A register that the log does not extend must be zero: otherwise the log leaves something out.

    Raises:
        InputError: malformed.
    """
    log = parse_ccel(data)
    found = log.replay(_BANK)
    for number, value in enumerate(rtmrs):
        if not constant_time_equal(found.get(number + 1, bytes(48)), value):
            return False, f"the event log does not replay to RTMR {number}"
    event = log.untrue()
    if event is not None:
        return False, f"the event at byte {event.start} says what was not measured"
    return True, ""
