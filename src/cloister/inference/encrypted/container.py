"""The files of encrypted scoring: rows, scores, and a client's key. One layout for the three.

    "cloister-he/1\\n" | u32 header length | header | u32 envelope length | envelope | body

Integers are big-endian. The header is canonical JSON and names the SHA-256 of the body. The envelope is
empty, or a DSSE envelope over exactly the header, by whoever computed the scores.

`read`, in this order: 1. the lengths account for every byte; 2. the header parses strictly, is of the kind
that was asked for and canonical; 3. the body is the one it names. What the body holds is for `blocks`,
whose sizes follow from the header: a body has that length or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.network import MAX_FEATURES, MAX_OUTPUTS
from cloister.inference.encrypted.parameters import CIRCUITS, Circuit, Parameters
from cloister.inference.encrypted.residues import packed_bytes
from cloister.inference.encrypted.scheme import SEED_BYTES

__all__ = [
    "BODY_LIMIT",
    "FILE_LIMIT",
    "Container",
    "KeyHeader",
    "RowsHeader",
    "ScoresHeader",
    "blocks",
    "read",
    "rows_bytes",
    "write",
]

BODY_LIMIT: Final = 1 << 30
_HEADER_LIMIT: Final = 4 << 20
_ENVELOPE_LIMIT: Final = 8 << 20
FILE_LIMIT: Final = BODY_LIMIT + _HEADER_LIMIT + _ENVELOPE_LIMIT + 64
_MAGIC: Final = b"cloister-he/1\n"
_MAX_BLOCKS: Final = 1 << 16

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Blocks = Annotated[int, Meta(ge=1, le=_MAX_BLOCKS)]


class RowsHeader(Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/he/rows/v1"):
    """Encrypted rows, from client to server. It says how many blocks there are, of N / 2 rows each.

    Attributes:
        card: SHA-256 of the card they were encrypted by.
        circuit: which parameters.
        features: ciphertexts in a block.
        blocks: how many.
        body: SHA-256 of the body.
    """

    card: _Digest
    circuit: Circuit
    features: Annotated[int, Meta(ge=1, le=MAX_FEATURES)]
    blocks: _Blocks
    body: _Digest

    @property
    def parameters(self) -> Parameters:
        """The parameters."""
        return CIRCUITS[self.circuit]

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes before the blocks, and bytes of a block."""
        parameters = self.parameters
        keys = len(parameters.data) * (packed_bytes(parameters.primes, parameters.degree) + SEED_BYTES)
        fresh = packed_bytes(parameters.data, parameters.degree) + SEED_BYTES
        return (keys if self.circuit == "hidden" else 0), self.features * fresh


class ScoresHeader(Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/he/scores/v1"):
    """Encrypted scores, from server to client.

    Attributes:
        request: SHA-256 of the header of the rows that were scored, which names their bytes.
        card: of the model that scored them.
        circuit: which parameters.
        outputs: ciphertexts in a block.
        blocks: how many.
        body: SHA-256 of the body.
    """

    request: _Digest
    card: _Digest
    circuit: Circuit
    outputs: Annotated[int, Meta(ge=1, le=MAX_OUTPUTS)]
    blocks: _Blocks
    body: _Digest

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes before the blocks, and bytes of a block."""
        parameters = CIRCUITS[self.circuit]
        return 0, self.outputs * 2 * packed_bytes(parameters.data[:1], parameters.degree)


class KeyHeader(Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/he/key/v1"):
    """A client's key to the scores of one file of rows; the body is the secret.

    Attributes:
        card: the card.
        request: SHA-256 of the header of those rows.
        rows: how many of them there are.
        body: SHA-256 of the body.
    """

    card: Card
    request: _Digest
    rows: Annotated[int, Meta(ge=1, le=_MAX_BLOCKS * 8192)]
    body: _Digest

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes before the blocks, and bytes of a block."""
        parameters = CIRCUITS[self.card.circuit]
        return 0, packed_bytes(parameters.primes, parameters.degree)

    @property
    def blocks(self) -> int:
        """One."""
        return 1


_Header = TypeVar("_Header", RowsHeader, ScoresHeader, KeyHeader)


class Container(NamedTuple):
    """The parts of a file, but for the parsed header."""

    header: bytes
    envelope: bytes
    body: memoryview


def write(header: RowsHeader | ScoresHeader | KeyHeader, body: bytes, envelope: bytes = b"") -> bytes:
    """Return the bytes of a file."""
    head = canonical_bytes(header)
    sizes = (len(each).to_bytes(4, "big") for each in (head, envelope))
    return b"".join((_MAGIC, next(sizes), head, next(sizes), envelope, body))


def read(data: bytes, kind: type[_Header]) -> tuple[_Header, Container]:
    """Return the header and the parts of a file.

    Raises:
        InputError: it is none of these files, or another one than `kind`.
        IntegrityError: it was cut or altered.
    """
    if len(data) > FILE_LIMIT or not data.startswith(_MAGIC):  # 1
        raise InputError("not a file of encrypted scoring", fix="Check which file it is")
    head, at = _part(data, len(_MAGIC), _HEADER_LIMIT)
    envelope, at = _part(data, at, _ENVELOPE_LIMIT)
    body = memoryview(data)[at:]
    try:  # 2
        header = msgspec.json.decode(head, type=RowsHeader | ScoresHeader | KeyHeader)
        canonical = canonical_bytes(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CloisterError) as error:
        raise IntegrityError(
            "the header of a file of encrypted scoring does not parse", fix="Get the file again"
        ) from error
    if not isinstance(header, kind):
        raise InputError(
            f"this is a file of another kind: {type(header).__name__[:-6].lower()}",
            fix="Check the order of the files",
        )
    if canonical != head:
        raise IntegrityError("a header is not in canonical form", fix="Get the file again")
    before, each = header.sizes  # 3
    if len(body) != before + header.blocks * each or sha256(body).hex() != header.body:
        raise IntegrityError("the file was cut or altered", fix="Get the file again")
    return header, Container(head, envelope, body)


def blocks(header: RowsHeader | ScoresHeader, body: memoryview) -> Iterator[memoryview]:
    """Yield the blocks of a body that `read` returned."""
    before, each = header.sizes
    for at in range(before, len(body), each):
        yield body[at : at + each]


def rows_bytes(circuit: Circuit, features: int, count: int) -> int:
    """Return how many bytes the body of `count` blocks of rows has."""
    before, each = RowsHeader("0" * 64, circuit, features, count, "0" * 64).sizes
    return before + count * each


def _part(data: bytes, at: int, limit: int) -> tuple[bytes, int]:
    length = int.from_bytes(data[at : at + 4], "big")
    end = at + 4 + length
    if length > limit or end > len(data):
        raise IntegrityError("the file was cut or altered", fix="Get the file again")
    return data[at + 4 : end], end
