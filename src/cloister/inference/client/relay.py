"""A relay between clients and one service, so that the service does not see who asks (roles of RFC 9458).

    client  ->  relay  ->  service
    the relay sees the client's address and sealed bytes; the service sees the relay's address

Invariants:
- it forwards GET of the key set and POST of an exchange to one fixed service, and nothing else; it resolves
  no address that a request names;
- of a request's headers only content type and length go on, and nothing about the client is added; of the
  answer's the same come back;
- it keeps nothing and logs nothing; sizes and the number of requests in progress are bounded, and a client
  that hardly sends, or does not read, is let go;
- it holds no key: what it alters, cuts or repeats does not open at the other end, and evidence is bound to
  the client's nonce.

It must be run by somebody other than the service, or it hides nothing. The credential in a request is sealed
to the enclave; a credential of one's own still tells the enclave which client it is. Timing and sizes pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, MutableMapping
from typing import Any, Final

import httpx2

from cloister.inference.client.address import Address
from cloister.inference.client.asgi import (
    BodyTooLong,
    ClientGone,
    Incoming,
    Receive,
    Scope,
    Send,
    TooSlow,
    headers_of,
    send_whole,
)
from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH, MAX_BODY

__all__ = ["Relay"]

MAX_REQUEST: Final = MAX_BODY + (4 << 20)
"""Bytes of a sealed request: the largest body, its padding and its frames."""
_QUERY: Final = re.compile(rb"nonce=[0-9a-f]{64}")
_STATUSES: Final = frozenset({200, 400, 409, 413, 503})
_KINDS: Final = frozenset({"application/json", "application/octet-stream"})
_TIMEOUT: Final = httpx2.Timeout(600.0, connect=10.0).as_dict()


class Relay:
    """The ASGI application.

    Args:
        url: the service; nothing else is ever asked.
        inner: what connects to it; closed with this. None for connections of its own.
        streams: requests at a time; more are told that it is busy.
        verify: of the service's TLS: True, or a context.
        patience: seconds for which a client may neither send nor read.

    Attributes:
        service: where it forwards to.
    """

    def __init__(
        self,
        url: str,
        *,
        inner: httpx2.AsyncBaseTransport | None = None,
        streams: int = 256,
        verify: ssl.SSLContext | bool = True,
        patience: float = 60.0,
    ) -> None:
        self.service = Address(url)
        self._inner = inner or httpx2.AsyncHTTPTransport(
            verify=verify,
            trust_env=False,
            limits=httpx2.Limits(max_connections=streams, max_keepalive_connections=streams),
        )
        self._exchange = httpx2.URL(self.service.exchange)
        self._left, self._patience = streams, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, or refuse it."""
        if scope["type"] != "http":
            return
        asked = scope["method"], scope["path"]
        known = asked == ("POST", EXCHANGE_PATH) or (
            asked == ("GET", KEYS_PATH) and _QUERY.fullmatch(scope["query_string"]) is not None
        )
        if not known:
            await _refuse(send, 404, "request")
        elif self._left <= 0:
            await _refuse(send, 503, "busy")
        else:
            self._left -= 1
            try:
                incoming = Incoming(receive, MAX_REQUEST, patience=self._patience)

                async def read(message: MutableMapping[str, Any]) -> None:
                    async with asyncio.timeout(self._patience):
                        await send(message)

                await incoming.while_there(self._forward(scope, incoming, read))
            except ClientGone:
                pass
            finally:
                self._left += 1

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    async def _forward(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        begun = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                request = await self._request(scope, incoming)
                response = await self._inner.handle_async_request(request)
                stack.push_async_callback(response.aclose)
                kind = response.headers.get("content-type", "")
                if response.status_code not in _STATUSES or kind not in _KINDS:
                    await _refuse(send, 502, "request")
                    return
                headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
                length = response.headers.get("content-length", "")
                if length.isascii() and length.isdigit():
                    headers.append((b"content-length", length.encode()))
                begun = True
                await send(
                    {"type": "http.response.start", "status": response.status_code, "headers": headers}
                )
                async for data in _chunks(response):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except BodyTooLong:
            await _refuse(send, 413, "too-large")
        except TooSlow:
            await _refuse(send, 400, "request")
        except TimeoutError:  # it does not read: the connection is cut
            pass
        except httpx2.TransportError:
            if not begun:  # else the connection is cut, as the service's was
                await _refuse(send, 503, "busy")

    async def _request(self, scope: Scope, incoming: Incoming) -> httpx2.Request:
        extensions = {"timeout": _TIMEOUT}
        if scope["method"] == "GET":
            async for _ in incoming.stream():
                raise BodyTooLong  # a question for keys has no body
            nonce = bytes.fromhex(scope["query_string"].removeprefix(b"nonce=").decode())
            return httpx2.Request("GET", self.service.keys(nonce), extensions=extensions)
        headers = [(b"content-type", b"application/octet-stream")]
        length = headers_of(scope).get(b"content-length", b"")
        if length.isdigit():
            if int(length) > MAX_REQUEST:
                raise BodyTooLong
            headers.append((b"content-length", length))
        return httpx2.Request(
            "POST", self._exchange, headers=headers, content=incoming.stream(), extensions=extensions
        )


async def _chunks(response: httpx2.Response) -> AsyncIterator[bytes]:
    stream = response.stream
    if not isinstance(stream, httpx2.AsyncByteStream):
        raise TypeError("the inner transport is not an asynchronous one")
    async for data in stream:
        yield data


async def _refuse(send: Send, status: int, reason: str) -> None:
    await send_whole(send, status, b'{"refused": "%s"}' % reason.encode(), "application/json")
