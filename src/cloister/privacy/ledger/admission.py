"""What a study has reserved, and what it may tell its partners that it has spent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import VerifyKey, canonical_bytes, open_envelope, sign_envelope
from cloister.crypto.dsse import Signer
from cloister.errors import IntegrityError
from cloister.privacy.accounting.cost import Cost
from cloister.privacy.ledger.book import Book
from cloister.privacy.ledger.head import Head
from cloister.privacy.ledger.rows import Blocks, Hex64
from cloister.privacy.ledger.status import population_tag
from cloister.privacy.ledger.units import DELTA_BITS, RDP_BITS, shown_at_least

__all__ = ["DEBIT_TYPE", "Admission", "Debit", "admission_of", "debit_of", "open_debit", "sign_debit"]

DEBIT_TYPE: Final = "application/vnd.cloister.debit+json"


class Admission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a study has reserved; kept by whoever runs it, to start and close its blocks.

    Attributes:
        number: in the ledger.
        study: digest of the plan, as 64 hexadecimal digits.
        name: for people.
        populations: who is charged.
        cost: of each block.
        blocks: how many may be started, numbered from 0.
        started: blocks that were started when this was asked for; they are spent and never started again.
        state: open, closed by its study, or interrupted.
    """

    number: int
    study: str
    name: str
    populations: tuple[str, ...]
    cost: Cost
    blocks: int
    started: tuple[int, ...] = ()
    state: Literal["open", "closed", "interrupted"] = "open"


class Debit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a study has cost the rows of one owner, for partners and certificates.

    Attributes:
        version: of this statement.
        study: digest of the plan, as 64 hexadecimal digits.
        populations: their tags: keyed hashes, not names, in the order of the names.
        started: blocks that were started, and are spent whether or not they came to their end.
        blocks: blocks that were admitted.
        rdp: of all started blocks, at `order`; rounded up.
        delta: charged for them besides; rounded up.
        order: of the RDP.
        head: of the ledger when this was said.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    study: Hex64
    populations: Annotated[tuple[Hex64, ...], msgspec.Meta(min_length=1, max_length=256)]
    started: Annotated[int, msgspec.Meta(ge=0, le=2**24)]
    blocks: Blocks
    rdp: Annotated[float, msgspec.Meta(ge=0)]
    delta: Annotated[float, msgspec.Meta(ge=0)]
    order: Annotated[int, msgspec.Meta(ge=2)]
    head: Head


def admission_of(book: Book, number: int) -> Admission:
    """Return an admission as it stands. Raises InputError where there is none of this number."""
    plan = book.plan(number)
    return Admission(
        number=number,
        study=plan.study,
        name=plan.name,
        populations=plan.populations,
        cost=Cost(plan.cost.rdp, plan.cost.delta, plan.cost.order),
        blocks=plan.blocks,
        started=tuple(sorted(plan.started)),
        state=plan.state,
    )


def debit_of(book: Book, number: int, head: Head) -> Debit:
    """Return what an admission has cost so far. Raises InputError where there is none of this number."""
    plan = book.plan(number)
    started = len(plan.started)
    return Debit(
        version=1,
        study=plan.study,
        populations=tuple(population_tag(book.tag_key, name) for name in plan.populations),
        started=started,
        blocks=plan.blocks,
        rdp=shown_at_least(plan.rdp * started, RDP_BITS),
        delta=shown_at_least(plan.delta * started, DELTA_BITS),
        order=plan.cost.order,
        head=head,
    )


def sign_debit(debit: Debit, owner: Signer) -> bytes:
    """Return the envelope of a debit."""
    return sign_envelope(DEBIT_TYPE, canonical_bytes(debit), [owner])


def open_debit(envelope: bytes, keys: Mapping[str, VerifyKey]) -> Debit:
    """Return a debit that one of `keys` (fingerprint to key, see `keyring`) signed.

    Raises:
        IntegrityError: it is none, or not signed by any of them.
    """
    payload = open_envelope(envelope, DEBIT_TYPE, keys)
    try:
        return msgspec.json.decode(payload, type=Debit)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError("this is not a debit of a ledger", fix="Ask for it again") from None
