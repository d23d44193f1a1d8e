"""What the blocks of an exchange hold: the head of a request, the head of an answer, and the ending.

Each is canonical msgpack: a map of its fields in their order, keys of headers sorted, nothing more. What is
decoded is encoded again and must give the same bytes, so that a digest of the bytes is a digest of the
meaning.

Invariants: nothing in a head can break the lines of an HTTP message that it is copied into (names of headers
are lower-case tokens, values hold no control characters, a path is printable and begins with "/"); a head
fits one block; neither repr nor errors show a path, a header or a credential.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from cloister.crypto import Buffer
from cloister.errors import InputError, IntegrityError

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "Ending", "RequestHead", "ResponseHead", "decode", "encode"]

MAX_HEADERS: Final = 64
"""Headers of one message."""
MAX_HEADER_BYTES: Final = 16 << 10
"""Characters of all names and values together."""

_METHOD: Final = re.compile(r"[A-Z]{1,16}")
_PATH: Final = re.compile(r"/[!-\"$-~]{0,8191}")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_POLICY: Final = re.compile(r"(?:[0-9a-f]{64})?")
_CREDENTIAL: Final = re.compile(r"[ -~]{0,4096}")
_MAX_RECEIPT: Final = 1_900


class _Message(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what travels; what is in it is private."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return []


class RequestHead(_Message, frozen=True):
    """What is asked, before the body.

    Attributes:
        method: upper-case letters, such as "POST".
        path: from the root, query included; no host.
        headers: lower-case names to values; at most 64, 16 KiB in all.
        policy: SHA-256 of the enclave policy under which the client accepted the service, hex; or empty.
        credential: what the client proves with that it may ask; or empty.

    Raises:
        InputError: one of them cannot be sent; the message does not say its value.
    """

    method: str
    path: str
    headers: dict[str, str] = {}
    policy: str = ""
    credential: str = ""

    def __post_init__(self) -> None:
        for what, value, pattern in (
            ("method", self.method, _METHOD),
            ("path", self.path, _PATH),
            ("policy digest", self.policy, _POLICY),
            ("credential", self.credential, _CREDENTIAL),
        ):
            if not pattern.fullmatch(value):
                raise InputError(f"a request's {what} has a form that cannot be sent", fix="Correct it")
        _check_headers(self.headers)


class ResponseHead(_Message, frozen=True):
    """The beginning of an answer.

    Attributes:
        status: of HTTP, 200 to 599.
        headers: lower-case names to values; at most 64, 16 KiB in all.

    Raises:
        InputError: one of them cannot be sent.
    """

    status: int
    headers: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise InputError("an answer's status is not between 200 and 599", fix="Correct it")
        _check_headers(self.headers)


class Ending(_Message, frozen=True):
    """The end of an answer: the signed receipt, and what opens the digests in it.

    Attributes:
        receipt: a DSSE envelope.
        request_salt: 32 bytes, of the digest of the request.
        answer_salt: 32 bytes, of the digest of the answer.
    """

    receipt: bytes
    request_salt: bytes
    answer_salt: bytes

    def __post_init__(self) -> None:
        if len(self.receipt) > _MAX_RECEIPT or len(self.request_salt) != 32 or len(self.answer_salt) != 32:
            raise InputError("an ending's receipt is too long, or a salt has not 32 bytes")


def _check_headers(headers: Mapping[str, str]) -> None:
    total = 0
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InputError(
                "a header has a name or a value that cannot be sent", fix="Names are lower-case tokens"
            )
        total += len(name) + len(value)
    if len(headers) > MAX_HEADERS or total > MAX_HEADER_BYTES:
        raise InputError(
            f"more than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES >> 10} KiB of them",
            fix="Send fewer",
        )


_MessageType = TypeVar("_MessageType", RequestHead, ResponseHead, Ending)
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")
_decoders: Final = {
    kind: msgspec.msgpack.Decoder(kind, strict=True) for kind in (RequestHead, ResponseHead, Ending)
}


def encode(message: RequestHead | ResponseHead | Ending) -> bytes:
    """Return the canonical bytes of a message."""
    return _encoder.encode(message)


def decode(data: Buffer, kind: type[_MessageType]) -> _MessageType:
    """Return the message in `data`.

    Raises:
        IntegrityError: it is none of this kind, or not in canonical form. It does not say what was found.
    """
    try:
        message: _MessageType = _decoders[kind].decode(data)  # type: ignore[assignment]  # the table's own kind
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError):
        raise _none(kind) from None
    if _encoder.encode(message) != data:
        raise _none(kind)
    return message


def _none(kind: type[_Message]) -> IntegrityError:
    return IntegrityError(
        f"bytes that are no {kind.__name__} of an exchange", fix="Check that both ends run one version"
    )
