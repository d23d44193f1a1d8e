"""An OpenAI-compatible endpoint on the client's own machine, before a service that takes no plaintext.

    application  --HTTP on loopback-->  proxy  ==private exchange==>  service

    client = AsyncPrivateClient(url, policy)
    async with Proxy(client) as proxy:      verifies the service, or fails
        await until_told(web_server(proxy), listen("127.0.0.1", 8100))

Order of a request: 1 it is for this machine by name, and comes from no web page; 2 its path is under `/v1/`;
3 its body is read, up to the limit; 4 it goes through the exchange; 5 an answer that is no event stream is
handed on when it is complete and its receipt was checked; an event stream is handed on as it comes, without
its `[DONE]` until then; 6 what fails becomes an OpenAI error object, in a stream an error event, after which
the connection is cut.

Invariants: no request leaves in the clear, nor to anybody but the one service; an application that goes away
cancels the work in the enclave; nothing of a request or an answer is kept or logged.

It trusts this machine: whatever runs here, of any user, may use it, with the token it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final, Self

import httpx2
import msgspec

from cloister.inference.client import page
from cloister.inference.client.asgi import (
    BodyTooLong,
    ClientGone,
    Incoming,
    Receive,
    Scope,
    Send,
    headers_of,
    send_whole,
)
from cloister.inference.client.failures import Failure, failure_of
from cloister.inference.client.localdoor import handed_on, request_of, stranger
from cloister.inference.client.outside import TURN
from cloister.inference.client.privateclient import AsyncPrivateClient
from cloister.inference.client.sealedanswers import Asked, SealedAnswers
from cloister.inference.client.turn import SEALED_TYPE, Turn
from cloister.inference.client.verify import Verified, now_utc
from cloister.inference.exchange import MAX_BODY

__all__ = ["Proxy"]

_AHEAD_SECONDS: Final = 600.0
"""How long before a verification ends the next one is made."""
_RETRY_SECONDS: Final = 60.0

_NO_PATH: Final = Failure(
    404, "not_found", "There is no such path; OpenAI's begin with /v1/.", "invalid_request_error"
)
_TOO_LARGE: Final = Failure(
    413, "request_too_large", f"A request has more than {MAX_BODY >> 20} MiB.", "invalid_request_error"
)


class Proxy:
    """The ASGI application.

    Args:
        client: asks the service; closed with this.
        answers: where answers go that are sealed to others; the client seals to the same readers.

    Attributes:
        requests: how many were sent through the exchange.
        receipts: how many of their answers ended with a receipt that was checked.
        problem: why the last attempt to verify anew failed; empty where it did not.
    """

    def __init__(self, client: AsyncPrivateClient, *, answers: SealedAnswers | None = None) -> None:
        self._client, self._answers = client, answers
        self._transport = client.transport
        self._keeping: asyncio.Task[None] | None = None
        self.requests = self.receipts = 0
        self.problem = ""

    async def __aenter__(self) -> Self:
        """Verify the service, and keep it verified.

        Raises:
            PolicyRefused, VerificationError, ProtocolError: it does not pass.
            httpx2.TransportError: it cannot be reached.
        """
        try:
            await self._client.attest()
        except BaseException:
            await self._client.aclose()
            raise
        self._keeping = asyncio.create_task(self._keep_verified())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of an application."""
        if scope["type"] != "http":
            return
        failure = stranger(scope)  # 1
        if failure is not None:
            await _fail(send, failure)
        elif scope["path"] == "/":
            await self._show(scope, send)
        elif not scope["path"].startswith("/v1/"):  # 2
            await _fail(send, _NO_PATH)
        else:
            incoming = Incoming(receive, MAX_BODY)
            with contextlib.suppress(ClientGone):
                try:
                    body = await incoming.body()  # 3
                except BodyTooLong:
                    await _fail(send, _TOO_LARGE)
                    return
                await incoming.while_there(self._forward(scope, body, send))

    @property
    def url(self) -> str:
        """The service's address."""
        return self._transport.url

    @property
    def verified(self) -> Verified | None:
        """The service as it was last verified."""
        return self._transport.verified

    def facts(self) -> dict[str, object]:
        """Return what the page shows."""
        readers = [] if self._answers is None else [each.name for each in self._answers.readers]
        store = self._client.store
        return page.facts(
            self._transport.url,
            self._transport.relay,
            self._transport.verified,
            self.problem,
            {"requests": self.requests, "receipts": self.receipts},
            readers,
            None if store is None else str(store.path),
        )

    async def _forward(self, scope: Scope, body: bytes, send: Send) -> None:
        try:
            asked = None
            if self._answers is not None and scope["method"] == "POST":
                asked = self._answers.ask(scope["path"], body)
                body = asked.body
            self.requests += 1
            response = await self._transport.handle_async_request(request_of(scope, body))  # 4
        except Exception as error:  # noqa: BLE001  # whatever it was, the application gets an error object
            await _fail(send, failure_of(error))
            return
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "text/event-stream":
                await self._stream(response, send)
            else:
                await self._whole(response, kind, asked, send)
        finally:
            await response.aclose()

    async def _whole(self, response: httpx2.Response, kind: str, asked: Asked | None, send: Send) -> None:
        try:
            content = await response.aread()  # 5
            self._count(response)
            if kind == SEALED_TYPE and asked is not None and self._answers is not None:
                path = await asyncio.to_thread(self._answers.keep, content)
                kind, content = self._answers.answer(asked, path)
                await send_whole(send, 200, content, kind)
                return
        except Exception as error:  # noqa: BLE001  # as above
            await _fail(send, failure_of(error))
            return
        headers = [*handed_on(response), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, response: httpx2.Response, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": [*handed_on(response), (b"cache-control", b"no-store")],
            }
        )
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101  # an asynchronous transport's
        try:
            async for piece in stream:  # 5
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:  # noqa: BLE001  # as above
            event = failure_of(error).to_event()  # 6
            await send({"type": "http.response.body", "body": event, "more_body": True})
            return  # without an end: the server cuts the connection
        self._count(response)
        await send({"type": "http.response.body", "body": b""})

    def _count(self, response: httpx2.Response) -> None:
        turn = response.extensions.get(TURN)
        self.receipts += isinstance(turn, Turn) and turn.receipt is not None

    async def _show(self, scope: Scope, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _fail(send, _NO_PATH)
            return
        found = self.facts()
        accept = headers_of(scope).get(b"accept", b"")
        if b"text/html" in accept:
            guard = (
                (b"content-security-policy", page.CONTENT_SECURITY),
                (b"referrer-policy", b"no-referrer"),
            )
            await send_whole(send, 200, page.html_page(found), "text/html; charset=utf-8", guard)
        else:
            content = msgspec.json.format(msgspec.json.encode(found), indent=2)
            await send_whole(send, 200, content, "application/json")

    async def _keep_verified(self) -> None:
        while True:
            verified = self._transport.verified
            left = 0.0 if verified is None else (verified.until - now_utc()).total_seconds() - _AHEAD_SECONDS
            await asyncio.sleep(max(left, _RETRY_SECONDS))
            try:
                await self._client.attest()
                self.problem = ""
            except Exception as error:  # noqa: BLE001  # shown on the page; requests fail once it has lapsed
                self.problem = failure_of(error).message


async def _fail(send: Send, failure: Failure) -> None:
    await send_whole(send, failure.status, failure.to_json(), "application/json", failure.headers)
