"""What is raised where the ledger is not what was signed.

A ledger in doubt is like a budget that is spent: nothing may be taken from it (exit code 3, as every
`PolicyRefused`). It is an `IntegrityError` too, for those who ask what happened rather than what to do.
"""

from __future__ import annotations

from cloister.errors import IntegrityError, PolicyRefused

__all__ = ["LedgerInDoubt"]


class LedgerInDoubt(PolicyRefused, IntegrityError):
    """The ledger, or its anchor, is not what its owner signed; nothing is spent from it."""

    exit_code = 3
