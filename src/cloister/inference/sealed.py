"""Sealed rows in, sealed predictions out: what lies between client and server is ciphertext of padded size.

1. The client draws a 32-byte nonce and seals {nonce, the reader's public identity, rows} to the server's
   sealing key (HPKE, ML-KEM768-X25519; info names this protocol and the server).
2. The server opens it in memory, predicts, and seals the predictions to the reader named inside. The
   nonce, which only whoever opened the request can know, goes into the HPKE info; SHA-256 of the request
   goes into the associated data.
3. The client opens the answer with the reader's key, the nonce and the request. An answer to another
   request, by another server, or for another reader does not open.

A refusal (rows that break the schema) is an answer like any other: sealed, padded, with the reason inside.

Plaintexts are padded to a power of two of at least 16 KiB. What stays visible: who asks whom and when,
how long the server takes, the bucket of each message (so: the number of rows times the width of a row
within a factor of two, or that it is below 16 KiB).

What it does not do: keep the server's operator from the rows, which are in the server's memory; tell the
server who asks (restrict `readers` where only known keys may be answered); remember requests (an old
request answered again yields the same predictions to the same reader).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Annotated, Protocol, TypeVar

import msgspec
import pyarrow as pa
from msgspec import Meta, Struct

from cloister.crypto import Identity, PublicIdentity, hpke_open, hpke_seal, sha256
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.types import RandomBytes

__all__ = ["SealedRequest", "TablePredictor", "answer", "seal_request"]

_REQUEST = b"cloister/predict/request/v1"
_ANSWER = b"cloister/predict/answer/v1"
_SMALLEST = 16 << 10
_LARGEST = 64 << 20

Cell = float | int | str | bool | None
Columns = Annotated[dict[Annotated[str, Meta(max_length=256)], list[Cell]], Meta(max_length=10_000)]


class TablePredictor(Protocol):
    """What turns rows into predictions; `cloister.inference.Predictor` does."""

    def predict(self, table: pa.Table) -> pa.Table:
        """Return one row of predictions for each row. Raises InputError where a row breaks the schema."""


class _Request(Struct, frozen=True, forbid_unknown_fields=True):
    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]
    reader: Annotated[bytes, Meta(max_length=64 << 10)]
    rows: Columns


class _Answer(Struct, frozen=True, forbid_unknown_fields=True):
    predictions: Columns | None = None
    refusal: Annotated[str, Meta(max_length=2000)] | None = None


_Message = TypeVar("_Message", _Request, _Answer)


def _pad(payload: bytes) -> bytes:
    bucket = max(_SMALLEST, 1 << (len(payload) + 3).bit_length())
    if bucket > _LARGEST:
        raise InputError(f"the rows need more than {_LARGEST >> 20} MiB", fix="Send them in several requests")
    return len(payload).to_bytes(4, "big") + payload + bytes(bucket - 4 - len(payload))


def _unpad(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:4], "big")
    if len(padded) < 4 or length > len(padded) - 4 or any(padded[4 + length :]):
        raise IntegrityError(
            "a sealed message is padded wrongly", fix="Check that both ends run the same version"
        )
    return padded[4 : 4 + length]


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(check(kind) for check in checks) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _columns(table: pa.Table) -> dict[str, list[Cell]]:
    if len(set(table.column_names)) != table.num_columns:
        raise InputError("two columns have the same name", fix="Rename one of them")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not _is_plain(column.type):
            raise InputError(
                "a column holds values other than numbers, text and true or false",
                where=f"column {name[:100]}",
                fix="Convert or leave out that column",
            )
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _table(columns: dict[str, list[Cell]]) -> pa.Table:
    try:
        return pa.table({name: pa.array(values) for name, values in columns.items()})
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise InputError(
            "the columns are not a table", fix="Give every column one type and the same number of rows"
        ) from error


def _encode(message: _Request | _Answer) -> bytes:
    return _pad(msgspec.msgpack.encode(message))


def _decode(padded: bytes, kind: type[_Message]) -> _Message:
    try:
        return msgspec.msgpack.decode(_unpad(padded), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise IntegrityError(
            "a sealed message holds something else", fix="Check that both ends run the same version"
        ) from error


class SealedRequest:
    """A request that was sealed, and what is needed to open its answer.

    Attributes:
        message: the bytes for the server.
    """

    def __init__(self, message: bytes, nonce: bytes) -> None:
        self.message = message
        self._nonce = nonce

    def __repr__(self) -> str:
        return f"SealedRequest({len(self.message)} bytes)"

    def __reduce__(self) -> str:
        raise TypeError("a sealed request holds a secret and is not pickled")

    def open_answer(self, sealed: bytes, reader: Identity) -> pa.Table:
        """Open the answer to this request.

        Args:
            sealed: what the server returned.
            reader: the identity that `seal_request` named.

        Returns:
            One row of predictions for each row of the request, in its order.

        Raises:
            IntegrityError: not an answer to this request, or not for this reader.
            InputError: the server refused the rows; the reason names line and column.
        """
        padded = hpke_open(
            reader.sealing, sealed, info=_ANSWER + self._nonce, associated_data=_ANSWER + sha256(self.message)
        )
        result = _decode(padded, _Answer)
        if result.predictions is None:
            raise InputError(f"the server refused the rows: {result.refusal or 'no reason given'}")
        return _table(result.predictions)


def seal_request(
    rows: pa.Table,
    server: PublicIdentity,
    reply_to: PublicIdentity,
    *,
    insecure_test_random: RandomBytes | None = None,
) -> SealedRequest:
    """Seal rows to a server.

    Args:
        rows: the columns the model needs; at most 64 MiB when encoded.
        server: whose sealing key opens it.
        reply_to: who shall be able to read the predictions.
        insecure_test_random: source of the nonce in tests.

    Raises:
        InputError: the rows are too many, or hold values that cannot be sent.
    """
    nonce = (insecure_test_random or os.urandom)(32)
    padded = _encode(_Request(nonce, reply_to.to_json(), _columns(rows)))
    sealed = hpke_seal(
        server.sealing_key, padded, info=_REQUEST + server.fingerprint.encode(), associated_data=_REQUEST
    )
    return SealedRequest(sealed, nonce)


def answer(
    request: bytes, server: Identity, predictor: TablePredictor, *, readers: Collection[str] | None = None
) -> bytes:
    """Open a request in memory, predict, seal the predictions to the reader it names.

    Args:
        request: `SealedRequest.message`.
        server: whose key it was sealed to.
        predictor: the model.
        readers: fingerprints that may be answered; None answers any.

    Raises:
        IntegrityError: not a request to this server.
        PolicyRefused: the reader is not one of `readers`.
    """
    info = _REQUEST + server.public.fingerprint.encode()
    asked = _decode(hpke_open(server.sealing, request, info=info, associated_data=_REQUEST), _Request)
    reader = PublicIdentity.from_json(asked.reader)
    if readers is not None and reader.fingerprint not in readers:
        raise PolicyRefused(
            "this reader may not be answered", where=reader.fingerprint[:16], fix="Add it to the readers"
        )
    try:
        padded = _encode(_Answer(predictions=_columns(predictor.predict(_table(asked.rows)))))
    except InputError as error:
        padded = _encode(_Answer(refusal=str(error)[:2000]))
    return hpke_seal(
        reader.sealing_key, padded, info=_ANSWER + asked.nonce, associated_data=_ANSWER + sha256(request)
    )
