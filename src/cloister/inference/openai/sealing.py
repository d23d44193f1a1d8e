"""Replies that are sealed to their readers before they leave the worker.

    cloister-seal-to: base64 of a JSON list of public identities, 1 to 16

Whoever asks need not be whoever reads: with this header the whole body of an answer is sealed to exactly
these readers, as `cloister seal` does, and only they open it (`cloister open`). A refusal, status 400 and
above, is about the request and stays readable for who asked.

Steps: 1 the header is read, each identity proves itself; 2 a stream is refused, since it has no end to wait
for; 3 the application within answers, without knowing; 4 its body is gathered, and sealed.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cloister.crypto import PublicIdentity, seal_bytes
from cloister.errors import CloisterError
from cloister.inference.application import Application, Reply, Request
from cloister.inference.openai.errors import Refusal
from cloister.inference.openai.streams import close

__all__ = ["SEALED", "SEAL_TO", "SealingApp"]

SEAL_TO: Final = "cloister-seal-to"
"""The header that names readers."""
SEALED: Final = "application/cloister-sealed"
"""Content type of a sealed body."""
_LONGEST: Final = 64 << 20

_Readers = Annotated[tuple[PublicIdentity, ...], Meta(min_length=1, max_length=16)]


class _Asked(msgspec.Struct):
    stream: object = False


class SealingApp:
    """Seals the replies of another application where a request asks for it.

    Args:
        inner: the application; closed with this.
    """

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        if SEAL_TO not in request.headers:
            return await self._inner(request)
        try:
            readers = _readers(request.headers[SEAL_TO])  # 1
            if _streams(request.body):  # 2
                raise Refusal(
                    "An answer that is sealed to readers is not streamed: send stream as false.",
                    param="stream",
                    code="unsupported_value",
                )
            headers = {name: value for name, value in request.headers.items() if name != SEAL_TO}
            reply = await self._inner(dataclasses.replace(request, headers=headers))  # 3
            if reply.status >= 400:
                return reply
            return Reply(
                reply.status, {"content-type": SEALED}, seal_bytes(await _gather(reply), readers)
            )  # 4
        except Refusal as refusal:
            return refusal.reply()

    async def aclose(self) -> None:
        """Close the application within."""
        ended = self._inner.aclose()
        if hasattr(ended, "__await__"):
            await ended


def _readers(header: str) -> tuple[PublicIdentity, ...]:
    try:
        return msgspec.json.decode(base64.b64decode(header, validate=True), type=_Readers)
    except (binascii.Error, ValueError, RecursionError, CloisterError):
        raise Refusal(
            "The header names no readers: it holds the base64 of a JSON list of 1 to 16 public identities.",
            param=SEAL_TO,
            code="invalid_value",
        ) from None


def _streams(body: bytes) -> bool:
    """Return whether a body asks for a stream; what is no request is for the application to refuse."""
    try:
        return bool(msgspec.json.decode(body, type=_Asked).stream)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


async def _gather(reply: Reply) -> bytes:
    """Return the whole body. Raises Refusal where it is too long to be held, or breaks off."""
    if isinstance(reply.body, bytes):
        return reply.body
    pieces, length = [], 0
    try:
        async for piece in reply.body:
            pieces.append(piece)
            length += len(piece)
            if length > _LONGEST:
                raise Refusal("The answer is too long to be sealed.", status=500, code="internal_error")
    except Refusal:
        raise
    except Exception:  # noqa: BLE001  what broke is not for a client; that it did, is
        raise Refusal("The answer broke off.", status=500, code="internal_error") from None
    finally:
        await close(reply.body)
    return b"".join(pieces)
