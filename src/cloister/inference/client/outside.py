"""What the synchronous and the asynchronous transport share: how a request is sealed, and how what comes back
is judged before it is opened. No I/O.

What a service says outside of an exchange counts for nothing but one of four words of refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import httpx2
import msgspec

from cloister.crypto import PublicIdentity
from cloister.enclave.evidence import MAX_EVIDENCE
from cloister.errors import InputError, IntegrityError
from cloister.inference.client.address import Address
from cloister.inference.client.heads import head_of, readers_header
from cloister.inference.client.turn import ANSWER_TYPE, Keep, Refusal, Turn, refusal
from cloister.inference.client.verify import Challenge, Verified, Verifier

__all__ = [
    "ANY_HOST",
    "MAX_PUBLISHED",
    "NO_KEYS_NOW",
    "TURN",
    "ExchangeError",
    "Outside",
    "broken",
    "is_answer",
    "keys_in",
    "local_answer",
    "response_of",
    "too_long",
    "word",
]

TURN: Final = "cloister"
"""Name among a response's extensions of the `Turn` that it came from: its service, and at its end the
receipt."""
ANY_HOST: Final = "private"
"""The host that a request may always name: the service, wherever it is."""
MAX_PUBLISHED: Final = 4 * MAX_EVIDENCE // 3 + (64 << 10)
_VERIFY_TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0).as_dict()

Code = Literal["not_private", "exchange_broken", "exchange_refused"]
NO_KEYS_NOW: Final = "the service is busy and shows no keys now"
"""What is said of a service that answers, and has no evidence to show."""


class ExchangeError(httpx2.RemoteProtocolError):
    """The other side did not keep to the exchange, or somebody between did not let it.

    Attributes:
        code: "not_private" where it answered in the clear, "exchange_refused" where it took no request,
            "exchange_broken" where an answer did not verify or was cut.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


class Outside:
    """One client's service, and how its requests are sealed.

    Args:
        url: the service.
        verifier: how its evidence is judged.
        token: the client's own credential; None for the application's bearer token.
        seal_to: readers of the answers; empty for the client.
        keep: is given each checked receipt.
        relay: what is asked in the service's place.

    Attributes:
        service: its address.
        asked: the address that is connected to.
        relay: the relay's address, normalised; None without one.
        verifier: as given.
    """

    def __init__(
        self,
        url: str,
        verifier: Verifier,
        *,
        token: str | None,
        seal_to: Sequence[PublicIdentity],
        keep: Keep | None,
        relay: str | None,
    ) -> None:
        self.service = Address(url)
        self.asked = self.service if relay is None else Address(relay)
        self.relay = None if relay is None else self.asked.url
        self.verifier = verifier
        self._token, self._readers, self._keep = token, tuple(seal_to), keep
        self._seal_to = readers_header(self._readers)
        self._hosts = {self.service.host, ANY_HOST}
        self._exchange = httpx2.URL(self.asked.exchange)

    def keys_request(self, challenge: Challenge) -> httpx2.Request:
        """Return what asks for the key set."""
        return httpx2.Request(
            "GET", self.asked.keys(challenge.nonce), extensions={"timeout": _VERIFY_TIMEOUT}
        )

    def seal(self, request: httpx2.Request, body: bytes, verified: Verified) -> Turn:  # 2
        """Return a request, sealed to a key set. Raises InputError where it cannot be sent."""
        url = request.url
        if url.host not in self._hosts:
            raise InputError(
                "a private client asks its one service and nobody else",
                where=url.host,
                fix=f"Write http://{ANY_HOST} for it, and use another client for other hosts",
            )
        head = head_of(
            request.method,
            url.raw_path,
            request.headers.raw,
            policy=verified.policy_digest,
            token=self._token,
            seal_to=self._seal_to,
        )
        return Turn(verified, head, body, readers=self._readers, keep=self._keep)

    def outside(self, turn: Turn, request: httpx2.Request) -> httpx2.Request:  # 3
        """Return what carries a sealed request; of the application's own it takes the time to wait alone."""
        timeout = request.extensions.get("timeout")
        return httpx2.Request(
            "POST",
            self._exchange,
            headers=[(b"content-type", ANSWER_TYPE.encode())],
            content=turn.request,
            extensions={} if timeout is None else {"timeout": timeout},
        )


def is_answer(response: httpx2.Response) -> bool:
    """Tell whether a body may be an answer that is to be opened; anything else is in the clear."""
    return response.status_code == 200 and response.headers.get("content-type") == ANSWER_TYPE


def word(status: int, body: bytes) -> Refusal:
    """Return why the service took no request. Raises ExchangeError where it said anything else."""
    reason = refusal(status, body)
    if reason is None:
        raise ExchangeError(
            "not_private",
            f"the service answered outside of the exchange (status {status}); what it said was not used",
        )
    return reason


def local_answer(reason: Refusal) -> httpx2.Response:
    """Return the local answer for a service that takes no request now, or not this one."""
    if reason == "busy":
        status, text = 503, "the service is busy; ask again later"
    elif reason == "too-large":
        status, text = 413, "the request is larger than the service takes"
    else:
        raise ExchangeError(
            "exchange_refused",
            "the service does not know its own keys"
            if reason == "stale-key"
            else "the service does not take the sealed request; does it run another version?",
        )
    error = {"message": text, "type": "service_refused", "param": None, "code": reason.replace("-", "_")}
    content = msgspec.json.encode({"error": error})
    headers = {"content-type": "application/json", **({"retry-after": "1"} if status == 503 else {})}
    return httpx2.Response(status, headers=headers, content=content)


def keys_in(status: int, body: bytes) -> bytes:
    """Return what may be a key set with evidence.

    Raises:
        ExchangeError: it is none.
        httpx2.ConnectError: the service is busy.
    """
    if status == 503:
        raise httpx2.ConnectError(NO_KEYS_NOW)
    if status != 200:
        raise ExchangeError(
            "not_private", f"the service shows no keys (status {status}); is this the address of one?"
        )
    return body


def response_of(turn: Turn, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> httpx2.Response:
    """Return the answer as the application gets it. Raises ExchangeError where it has no head."""
    head = turn.head
    if head is None:
        raise ExchangeError("exchange_broken", "the answer has no head")
    headers = [(name.encode(), value.encode("latin-1")) for name, value in head.headers.items()]
    return httpx2.Response(
        head.status,
        headers=headers,
        stream=stream,
        extensions={"http_version": b"HTTP/1.1", TURN: turn},
    )


def broken(error: IntegrityError) -> ExchangeError:
    """Return the error of an answer that did not verify."""
    return ExchangeError("exchange_broken", str(error))


def too_long() -> ExchangeError:
    """Return the error of a body that exceeds its limit."""
    return ExchangeError("not_private", "the service's answer is longer than any that is expected")
