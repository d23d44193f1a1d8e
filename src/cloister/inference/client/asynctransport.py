"""`transport`, for asyncio: its order of steps and its invariants hold here, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx2

from cloister.crypto import PublicIdentity
from cloister.errors import IntegrityError
from cloister.inference.client.outside import (
    MAX_PUBLISHED,
    Outside,
    broken,
    is_answer,
    keys_in,
    local_answer,
    response_of,
    too_long,
    word,
)
from cloister.inference.client.turn import MAX_REFUSAL, Keep, Refusal, Turn
from cloister.inference.client.verify import Verified, Verifier

__all__ = ["AsyncPrivateTransport"]


class AsyncPrivateTransport(httpx2.AsyncBaseTransport):
    """Sends requests of an `httpx2.AsyncClient` privately, on one asyncio loop; as `PrivateTransport`."""

    def __init__(
        self,
        url: str,
        verifier: Verifier,
        inner: httpx2.AsyncBaseTransport,
        *,
        token: str | None = None,
        seal_to: Sequence[PublicIdentity] = (),
        keep: Keep | None = None,
        relay: str | None = None,
    ) -> None:
        self._outside = Outside(url, verifier, token=token, seal_to=seal_to, keep=keep, relay=relay)
        self.url, self.relay = self._outside.service.url, self._outside.relay
        self._inner = inner
        self._lock = asyncio.Lock()
        self.verified: Verified | None = None

    async def attest(self) -> Verified:
        """Verify the service now, whatever was verified before; raises as `PrivateTransport.attest`."""
        async with self._lock:
            return await self._attest()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request; errors as in the module's docstring."""
        body = await request.aread()
        verified = await self._ready()  # 1
        answer = await self._ask(request, body, verified)
        if answer == "stale-key":  # 4
            async with self._lock:
                known = self.verified
                verified = known if known is not None and known is not verified else await self._attest()
            answer = await self._ask(request, body, verified)
        return answer if isinstance(answer, httpx2.Response) else local_answer(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    async def _ready(self) -> Verified:
        verified = self.verified
        if verified is not None and not self._outside.verifier.due(verified):
            return verified
        async with self._lock:
            verified = self.verified
            if verified is not None and not self._outside.verifier.due(verified):
                return verified
            return await self._attest()

    async def _attest(self) -> Verified:
        challenge = self._outside.verifier.challenge()
        response = await self._inner.handle_async_request(self._outside.keys_request(challenge))
        data = keys_in(response.status_code, await _awhole(response, MAX_PUBLISHED))
        # appraisal may take tens of milliseconds, which streams of other requests need not wait for
        self.verified = await asyncio.to_thread(self._outside.verifier.check, data, challenge)
        return self.verified

    async def _ask(
        self, request: httpx2.Request, body: bytes, verified: Verified
    ) -> httpx2.Response | Refusal:
        turn = self._outside.seal(request, body, verified)
        response = await self._inner.handle_async_request(self._outside.outside(turn, request))
        if not is_answer(response):
            return word(response.status_code, await _awhole(response, MAX_REFUSAL))
        stream = _AsyncAnswer(turn, response)
        try:
            await stream.begin()
            return response_of(turn, stream)
        except BaseException:
            await response.aclose()
            raise


class _AsyncAnswer(httpx2.AsyncByteStream):
    """The body of an answer, opened as it comes."""  # 5

    def __init__(self, turn: Turn, response: httpx2.Response) -> None:
        self._turn, self.response_of = turn, response
        stream = response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise TypeError("the inner transport is not an asynchronous one")
        self._chunks = aiter(stream)
        self._ready: list[bytes] = []

    async def begin(self) -> None:
        """Read until the head is there."""
        try:
            while self._turn.head is None:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    self._ready += self._turn.finish()
                    return
                self._ready += self._turn.feed(chunk)
        except IntegrityError as error:
            raise broken(error) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._ready:
            yield piece
        self._ready = []
        try:
            async for chunk in self._chunks:
                for piece in self._turn.feed(chunk):
                    yield piece
            for piece in self._turn.finish():  # 6
                yield piece
        except IntegrityError as error:
            raise broken(error) from error

    async def aclose(self) -> None:
        await self.response_of.aclose()


async def _awhole(response: httpx2.Response, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, and close."""
    found = bytearray()
    try:
        stream = response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise TypeError("the inner transport is not an asynchronous one")
        async for chunk in stream:
            found += chunk
            if len(found) > limit:
                raise too_long()
    finally:
        await response.aclose()
    return bytes(found)
