"""Evidence of what runs where, keys that are released to it, and the walls around what sees plaintext."""

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, Kind, report_data

__all__ = ["Claims", "Evidence", "Kind", "report_data"]
