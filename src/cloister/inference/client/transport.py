"""A transport for `httpx2` that sends every request through a private exchange, and nothing any other way.

Order of a request: 1 a verified key set is at hand, or the service is verified first; 2 the request, whatever
its method, is sealed to it; 3 it is sent to the service's one path; 4 where the service says that it does not
have these keys (any more), the service is verified anew and the request is sealed and sent once more; 5 the
answer is opened as it comes; 6 its receipt is checked at its end, and kept where the client keeps receipts.

Invariants:
- no request is sent in the clear, and no answer in the clear is taken for one: what the service says outside
  an exchange is looked at for one of four words of refusal and dropped, redirects included;
- outside there is one fixed address, one method and a length: no header of the application, no environment's
  proxy, no cookie;
- a request is sent at most twice, the second time only on step 4. Whoever sits between can provoke that: then
  the service may answer it twice, and the first answer is lost;
- `httpx2` errors are of the network or of a broken exchange (`ExchangeError`); Cloister's own are of what was
  verified, and were raised before anything was sent.

Timing, the size of padded frames and the client's address remain visible; `relay` hides the last.
`asynctransport` is the same for asyncio, line by line.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

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

__all__ = ["PrivateTransport"]


class PrivateTransport(httpx2.BaseTransport):
    """Sends requests of an `httpx2.Client` privately; threads may share it.

    Args:
        url: the service.
        verifier: how its evidence is judged.
        inner: what carries the sealed bytes; closed with this.
        token: what the client proves with that it may ask; None for the application's bearer token.
        seal_to: to whom answers are sealed before they leave the enclave; empty for the client itself.
        keep: is given each checked receipt.
        relay: the address that is asked in the place of the service's.

    Attributes:
        url: the service's, normalised.
        relay: the relay's, normalised; None without one.
        verified: the service as it was last verified; None before.
    """

    def __init__(
        self,
        url: str,
        verifier: Verifier,
        inner: httpx2.BaseTransport,
        *,
        token: str | None = None,
        seal_to: Sequence[PublicIdentity] = (),
        keep: Keep | None = None,
        relay: str | None = None,
    ) -> None:
        self._outside = Outside(url, verifier, token=token, seal_to=seal_to, keep=keep, relay=relay)
        self.url, self.relay = self._outside.service.url, self._outside.relay
        self._inner = inner
        self._lock = threading.Lock()
        self.verified: Verified | None = None

    def attest(self) -> Verified:
        """Verify the service now, whatever was verified before.

        Raises:
            PolicyRefused, VerificationError, ProtocolError: it does not pass.
            httpx2.TransportError: it cannot be reached.
        """
        with self._lock:
            return self._attest()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request; errors as in the module's docstring."""
        body = request.read()
        verified = self._ready()  # 1
        answer = self._ask(request, body, verified)
        if answer == "stale-key":  # 4
            with self._lock:
                known = self.verified
                verified = known if known is not None and known is not verified else self._attest()
            answer = self._ask(request, body, verified)
        return answer if isinstance(answer, httpx2.Response) else local_answer(answer)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()

    def _ready(self) -> Verified:
        verified = self.verified
        if verified is not None and not self._outside.verifier.due(verified):
            return verified
        with self._lock:
            verified = self.verified
            if verified is not None and not self._outside.verifier.due(verified):
                return verified
            return self._attest()

    def _attest(self) -> Verified:
        challenge = self._outside.verifier.challenge()
        response = self._inner.handle_request(self._outside.keys_request(challenge))
        data = keys_in(response.status_code, _whole(response, MAX_PUBLISHED))
        self.verified = self._outside.verifier.check(data, challenge)
        return self.verified

    def _ask(self, request: httpx2.Request, body: bytes, verified: Verified) -> httpx2.Response | Refusal:
        turn = self._outside.seal(request, body, verified)
        response = self._inner.handle_request(self._outside.outside(turn, request))
        if not is_answer(response):
            return word(response.status_code, _whole(response, MAX_REFUSAL))
        stream = _Answer(turn, response)
        try:
            stream.begin()
            return response_of(turn, stream)
        except BaseException:
            response.close()
            raise


class _Answer(httpx2.SyncByteStream):
    """The body of an answer, opened as it comes."""  # 5

    def __init__(self, turn: Turn, response: httpx2.Response) -> None:
        self._turn, self.response_of = turn, response
        stream = response.stream
        if not isinstance(stream, httpx2.SyncByteStream):
            raise TypeError("the inner transport is not a synchronous one")
        self._chunks = iter(stream)
        self._ready: list[bytes] = []

    def begin(self) -> None:
        """Read until the head is there."""
        try:
            while self._turn.head is None:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self._ready += self._turn.finish()
                    return
                self._ready += self._turn.feed(chunk)
        except IntegrityError as error:
            raise broken(error) from error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._ready
        self._ready = []
        try:
            for chunk in self._chunks:
                yield from self._turn.feed(chunk)
            yield from self._turn.finish()  # 6
        except IntegrityError as error:
            raise broken(error) from error

    def close(self) -> None:
        self.response_of.close()


def _whole(response: httpx2.Response, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, and close."""
    found = bytearray()
    try:
        stream = response.stream
        if not isinstance(stream, httpx2.SyncByteStream):
            raise TypeError("the inner transport is not a synchronous one")
        for chunk in stream:
            found += chunk
            if len(found) > limit:
                raise too_long()
    finally:
        response.close()
    return bytes(found)
