"""Where the counter that anchors a home's ledger is: in this machine's TPM, by the ledger's id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import PolicyRefused

if TYPE_CHECKING:
    from cloister.privacy.ledger import Counters
    from cloister.types import Counter

__all__ = ["ANCHORED", "NOT_PROTECTED", "counters", "software_counts"]

ANCHORED: Final = "A counter in a TPM anchors it: whenever it is written, an older copy is noticed."
NOT_PROTECTED: Final = (
    "NOT HARDWARE-PROTECTED: a software TPM counts, in files of this home; they can be put back with it."
)
_FOLDER: Final = "ledger-counter"


def counters(home: Path, *, begin: bool = False, software_allowed: bool = False) -> Counters:
    """Return where the counter of a home's ledger is; nothing is opened before one is asked for.

    Args:
        home: the ledger's.
        begin: whether to anchor the ledger by it from now on.
        software_allowed: whether a software TPM will do where the machine has none.
    """
    from cloister.privacy.ledger import Counters

    def of(ledger: str) -> Counter:
        from cloister.enclave.attester import MachineCounter

        counter = MachineCounter(home / _FOLDER, f"ledger/{ledger}", software_allowed=software_allowed)
        if begin and not software_allowed and not counter.hardware:
            raise PolicyRefused(
                "this machine has no TPM, and so no counter that only goes up",
                where=str(home),
                fix="Keep the newest head on another disk with --anchor, or try --allow-software-tpm",
            )
        return counter

    return Counters(of, begin=begin)


def software_counts(home: Path) -> bool:
    """Tell whether a software TPM counts for a home."""
    return (home / _FOLDER).is_dir()
