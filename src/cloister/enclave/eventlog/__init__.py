"""Event logs: what was measured into registers, in order, so that the registers can be computed anew.

`tcg` reads the firmware's log, `ccel` the same of a TDX machine, `start` Cloister's own.
"""

from cloister.enclave.eventlog.ccel import parse_ccel, replay_rtmrs, replays_to_rtmrs
from cloister.enclave.eventlog.start import START_PCRS, StartEntry, StartLog

__all__ = [
    "START_PCRS",
    "StartEntry",
    "StartLog",
    "parse_ccel",
    "replay_rtmrs",
    "replays_to_rtmrs",
]
