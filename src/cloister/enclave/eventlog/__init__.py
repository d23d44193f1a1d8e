"""Event logs: what was measured into registers, in order, so that the registers can be computed anew."""

from cloister.enclave.eventlog.start import START_PCRS, StartEntry, StartLog

__all__ = ["START_PCRS", "StartEntry", "StartLog"]
