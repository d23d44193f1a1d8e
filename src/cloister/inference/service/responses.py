"""What a front answers by itself: a few whole answers, and the beginnings of sealed ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH, REFUSAL_STATUS

__all__ = [
    "CLOSE",
    "FRESH",
    "JSON",
    "NO_PLAINTEXT",
    "ROOT",
    "SEALED",
    "Send",
    "length",
    "refuse",
    "start",
    "whole",
]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ROOT: Final = msgspec.json.encode({"service": "cloister", "keys": KEYS_PATH, "exchange": EXCHANGE_PATH})
NO_PLAINTEXT: Final = msgspec.json.encode(
    {
        "error": {
            "message": "This service takes no plaintext: nothing of this request was read. Ask it through "
            "`cloister proxy`, which verifies the service and encrypts to it.",
            "type": "invalid_request_error",
            "param": None,
            "code": "plaintext_refused",
        }
    }
)
JSON: Final = (b"content-type", b"application/json")
FRESH: Final = (b"cache-control", b"no-store")
CLOSE: Final = (b"connection", b"close")
SEALED: Final = [(b"content-type", b"application/octet-stream"), FRESH]
_REFUSED: Final = {word: msgspec.json.encode({"refused": word}) for word in REFUSAL_STATUS}


async def start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Send status and headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def whole(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole answer."""
    await start(send, status, [*headers, length(body)])
    await send({"type": "http.response.body", "body": body, "more_body": False})


def length(body: bytes) -> tuple[bytes, bytes]:
    """Return the header that says how long a body is."""
    return b"content-length", str(len(body)).encode()


async def refuse(send: Send, reason: str, *headers: tuple[bytes, bytes]) -> None:
    """Send a refusal: one word, with its status."""
    await whole(send, REFUSAL_STATUS[reason], _REFUSED[reason], JSON, FRESH, *headers)
