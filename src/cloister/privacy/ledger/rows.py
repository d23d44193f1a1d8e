"""What the ledger consists of: rows, each hashed with all before it.

    hash 0      SHA-256 of a label
    hash n      SHA-256(hash n-1 | row n), row n being the canonical JSON of one of the structs below

Rows are numbered from 1. What they mean is in `book`; what they may say is in these types and no more. A row
is never removed and its meaning never changes: a new meaning is a new type of row.

Every row has the id of the request that made it, so that a request that is made again after a crash makes no
second row; and the time, which decides nothing.
"""

from __future__ import annotations

import datetime
import secrets
from typing import Annotated, Final

import msgspec

from cloister.crypto import PublicIdentity, canonical_bytes, sha256
from cloister.errors import CloisterError
from cloister.privacy.accounting.cost import Cost
from cloister.privacy.ledger.cap import Cap, check_cost
from cloister.privacy.ledger.doubt import LedgerInDoubt

__all__ = [
    "FIRST_HASH",
    "Admit",
    "AnchorAt",
    "Bind",
    "Charge",
    "Checkpoint",
    "Close",
    "Commit",
    "Declare",
    "Genesis",
    "Owner",
    "Row",
    "Spend",
    "Start",
    "decode_row",
    "encode_row",
    "new_id",
    "next_hash",
    "now",
]

FIRST_HASH: Final = sha256(b"cloister privacy ledger v1")

Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Short = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Names = Annotated[tuple[Short, ...], msgspec.Meta(min_length=1, max_length=256)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
BlockNumber = Annotated[int, msgspec.Meta(ge=0, lt=2**24)]
Blocks = Annotated[int, msgspec.Meta(ge=1, le=2**24)]


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `Cost` as rows write it: RDP at the order, and delta'."""

    rdp: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    delta: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    order: Annotated[int, msgspec.Meta(ge=2, le=2**20)]

    @classmethod
    def of(cls, cost: Cost) -> Charge:
        """Return what rows write for a cost. Raises InputError as `check_cost`."""
        order = check_cost(cost)
        return cls(float(cost.rdp), float(cost.delta), order)


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="row"):
    id: Hex32
    at: Short


class Genesis(_Row, frozen=True, tag="genesis"):
    """The first row: whose ledger it is, its id, and the key of the tags that partners see."""

    version: Annotated[int, msgspec.Meta(ge=1, le=1)]
    ledger: Hex32
    owner: PublicIdentity
    tag_key: Hex64


class Owner(_Row, frozen=True, tag="owner"):
    """The owner has new keys; the successions prove that the former keys' owner wanted them."""

    owner: PublicIdentity
    successions: tuple[bytes, ...]


class AnchorAt(_Row, frozen=True, tag="anchor"):
    """From now on the newest head is also kept in this file, without which the ledger does not open."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class Declare(_Row, frozen=True, tag="declare"):
    """A population has this cap: its first, or a lower one."""

    population: Short
    cap: Cap


class Bind(_Row, frozen=True, tag="bind"):
    """A dataset's rows belong to these populations; `sha256` is of their fingerprints, kept beside."""

    dataset: Short
    populations: Names
    sha256: Hex64
    count: Number


class Admit(_Row, frozen=True, tag="admit"):
    """A study reserves `blocks` times `cost` in these populations; its number is that of this row."""

    populations: Names
    study: Hex64
    name: Short
    cost: Charge
    blocks: Blocks


class Start(_Row, frozen=True, tag="start"):
    """A block of an admission is spent from here on."""

    admission: Number
    block: BlockNumber


class Commit(_Row, frozen=True, tag="commit"):
    """A started block came to its end. It costs what it cost; this is for the record."""

    admission: Number
    block: BlockNumber


class Close(_Row, frozen=True, tag="close"):
    """An admission starts no more blocks; those unstarted are free again."""

    admission: Number
    interrupted: bool


class Spend(_Row, frozen=True, tag="spend"):
    """A query is spent in these populations."""

    populations: Names
    what: Short
    cost: Charge


class Checkpoint(_Row, frozen=True, tag="checkpoint"):
    """SHA-256 of the state that all rows before this one make."""

    state: Hex64


Row = Genesis | Owner | AnchorAt | Declare | Bind | Admit | Start | Commit | Close | Spend | Checkpoint

_DECODER: Final = msgspec.json.Decoder(Row)


def new_id() -> str:
    """Return a fresh id for a request: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def now() -> str:
    """Return the time as rows write it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def encode_row(row: Row) -> bytes:
    """Return the canonical bytes that are stored and hashed."""
    return canonical_bytes(row)


def decode_row(number: int, body: bytes) -> Row:
    """Return row `number`. Raises LedgerInDoubt where it is none."""
    try:
        row: Row = _DECODER.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError, CloisterError):
        raise LedgerInDoubt(
            f"row {number} of the ledger cannot be read", fix="Restore the ledger from its newest copy"
        ) from None
    return row


def next_hash(before: bytes, body: bytes) -> bytes:
    """Return the hash of the row with these bytes, after the row with hash `before`."""
    return sha256(before, body)
