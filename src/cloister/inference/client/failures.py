"""What the proxy tells an application of a failure: a status and OpenAI's error object.

    502 evidence_refused       the service's evidence or keys did not pass; nothing was sent to it
    502 not_private            it answered outside of the exchange
    502 exchange_broken        its answer did not verify, or was cut
    502 exchange_refused       it took no sealed request
    503 service_unreachable    no connection
    504 service_timeout        no answer in time
    413 request_too_large      the proxy takes no such body
    400 invalid_request        the request cannot be sent
    500 receipt_not_kept       the answer was right; its receipt could not be written, so it is not handed on

Refusals by the service, 503 busy and 413 too_large, are made by the transport. None but
`service_unreachable` and `service_timeout` is worth another try, and the others say so in the header that the
official client heeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httpx2
import msgspec

from cloister.errors import CloisterError, InputError, StorageError
from cloister.inference.client.outside import NO_KEYS_NOW, ExchangeError

__all__ = ["Failure", "failure_of"]

_NO_RETRY: Final = ((b"x-should-retry", b"false"),)


@dataclass(frozen=True)
class Failure:
    """One failure, ready to be sent.

    Attributes:
        status: of HTTP.
        code: for programs.
        message: for people.
        kind: OpenAI's `type`.
    """

    status: int
    code: str
    message: str
    kind: str = "private_exchange_error"

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Headers beside it."""
        return () if self.status in (503, 504) else _NO_RETRY

    def to_json(self) -> bytes:
        """Return the error object."""
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.code}}
        )

    def to_event(self) -> bytes:
        """Return the error object as an event of a stream that has begun."""
        return b"data: " + self.to_json() + b"\n\n"


def failure_of(error: Exception) -> Failure:
    """Return what is told of an error that a private transport raised."""
    match error:
        case ExchangeError():
            return Failure(502, error.code, str(error))
        case httpx2.TimeoutException():
            return Failure(504, "service_timeout", "The service did not answer in time.")
        case httpx2.RemoteProtocolError() | httpx2.ReadError():
            return Failure(502, "exchange_broken", "The connection broke before the answer was complete.")
        case httpx2.ConnectError() if "certificate verify failed" in str(error).lower():
            return Failure(503, "service_unreachable", "The service's TLS certificate does not verify.")
        case httpx2.ConnectError() if str(error) == NO_KEYS_NOW:
            return Failure(503, "service_busy", "The service is busy, or can make no evidence now.")
        case httpx2.TransportError():
            return Failure(503, "service_unreachable", "The service cannot be reached.")
        case InputError() | httpx2.InvalidURL():
            return Failure(400, "invalid_request", str(error), "invalid_request_error")
        case StorageError():
            return Failure(500, "receipt_not_kept", str(error))
        case CloisterError():
            return Failure(502, "evidence_refused", str(error))
        case _:
            return Failure(500, "internal_error", f"The proxy failed ({type(error).__name__}).")
