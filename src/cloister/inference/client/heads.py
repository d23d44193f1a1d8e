"""What of a request goes into the exchange: method, path, and headers that say something to the application.

What stays with the client: host, cookies, what names the client's software or machine, and what only concerns
the connection. `Authorization: Bearer` becomes the credential, unless the client has a token of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from cloister.crypto import PublicIdentity
from cloister.errors import InputError
from cloister.inference.exchange.messages import RequestHead

__all__ = ["SEAL_TO", "credential_of", "head_of", "readers_header"]

SEAL_TO: Final = "cloister-seal-to"
"""The header that names readers."""
MAX_READERS: Final = 16
_MAX_READERS_HEADER: Final = 15 << 10
_KEPT_BACK: Final = frozenset(
    {
        "host",
        "authorization",
        "proxy-authorization",
        "cookie",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "accept-encoding",
        "user-agent",
        "referer",
        "origin",
        "forwarded",
        "via",
        "x-real-ip",
        "traceparent",
        "tracestate",
        "baggage",
        SEAL_TO,
    }
)
_KEPT_BACK_FAMILIES: Final = ("x-stainless-", "x-forwarded-", "sec-")


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return what a request's Authorization header proves with; empty where it has none.

    Raises:
        InputError: it is of another scheme than Bearer.
    """
    for name, value in headers:
        if name.lower() == b"authorization":
            scheme, _, credential = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() != "bearer":
                raise InputError(
                    "a service takes no other credential than a bearer token",
                    fix="Give its token as API key",
                )
            return credential.strip()
    return ""


def head_of(
    method: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    policy: str,
    token: str | None,
    seal_to: str,
) -> RequestHead:
    """Return the head of a request as it goes into the exchange.

    Args:
        method: such as "POST".
        target: path and query.
        headers: as the application gave them.
        policy: digest of the client's enclave policy.
        token: the client's own; None for the application's bearer token.
        seal_to: value of the header that names readers; empty for none.

    Raises:
        InputError: it cannot be sent.
    """
    kept: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in _KEPT_BACK or name.startswith(_KEPT_BACK_FAMILIES):
            continue
        value = raw_value.decode("latin-1")
        kept[name] = f"{kept[name]}, {value}" if name in kept else value
    if seal_to and method == "POST":
        kept[SEAL_TO] = seal_to
    credential = credential_of(headers) if token is None else token
    return RequestHead(method, target.decode("latin-1"), kept, policy, credential)


def readers_header(readers: Sequence[PublicIdentity]) -> str:
    """Return the header's value that asks for answers sealed to these people; empty for nobody.

    Raises:
        InputError: there are too many of them for a header.
    """
    if not readers:
        return ""
    people = b",".join(reader.to_json().strip() for reader in readers)
    value = base64.b64encode(msgspec.json.format(b"[" + people + b"]", indent=-1)).decode()
    if len(readers) > MAX_READERS or len(value) > _MAX_READERS_HEADER:
        raise InputError(
            f"{len(readers)} readers are too many for one request",
            fix="Name fewer; or seal to yourself and pass it on with `cloister seal`",
        )
    return value
