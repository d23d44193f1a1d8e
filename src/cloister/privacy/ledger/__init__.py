"""What an owner has spent on a population of rows, durably, and what is left.

Order of use: `Ledger.open`; `declare` a population with a `Cap`; `bind` datasets to it; `admit`, `start`,
`commit` and close the blocks of a study, or `spend` a query; `status` and `debit`. `read_ledger` reads one
without the owner's private keys. The filter that admits is explained and proved in docs/proofs/filter.md,
the commands in docs/ledger.md.

It never reports less than was released: what is started is spent before its first byte leaves, and stays
spent through any crash. Where anything is not as it was signed, nothing is spent and everything is refused.
"""

from cloister.privacy.accounting.cost import Cost
from cloister.privacy.ledger.admission import DEBIT_TYPE, Admission, Debit, open_debit
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.counting import Counters
from cloister.privacy.ledger.doubt import LedgerInDoubt
from cloister.privacy.ledger.head import HEAD_TYPE, Head, open_head
from cloister.privacy.ledger.ledger import Ledger
from cloister.privacy.ledger.status import NOT_DETECTABLE, Entry, Status, Worth, worth
from cloister.privacy.ledger.view import LedgerView, ledger_exists, read_ledger

__all__ = [
    "DEBIT_TYPE",
    "HEAD_TYPE",
    "NOT_DETECTABLE",
    "Admission",
    "Cap",
    "Cost",
    "Counters",
    "Debit",
    "Entry",
    "Head",
    "Ledger",
    "LedgerInDoubt",
    "LedgerView",
    "Status",
    "Worth",
    "ledger_exists",
    "open_debit",
    "open_head",
    "read_ledger",
    "worth",
]
