"""Refusals as OpenAI words them: a status and {"error": {message, type, param, code}}.

400 invalid_request_error     what was asked does not fit; `param` names the field
401 invalid_request_error     invalid_api_key; made by the door, which alone knows credentials
404 invalid_request_error     no such path, or no such model
405 invalid_request_error     the path takes another method
413 invalid_request_error     the body is too large
429 rate_limit_error          this client asks too often
500 server_error              the engine failed; nothing more is told
503 server_error              too many requests wait
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cloister.errors import CloisterError, InputError, StorageError
from cloister.inference.application import Reply

__all__ = ["JSON", "Refusal", "error_object", "json_reply", "refusal_of"]

JSON: Final = {"content-type": "application/json"}
"""Headers of a reply in JSON."""
_TYPES: Final = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_LONGEST: Final = 1000
"""Characters of a message: it may name what a client sent, and need not give all of it back."""

_encode = msgspec.json.Encoder().encode


class Refusal(InputError):
    """A request that is answered with an error object.

    Args:
        what: one or two sentences for people.
        status: of HTTP, 400 to 599.
        param: the field it is about, such as "messages[0].content".
        code: a word for programs, such as "model_not_found".
        headers: further headers of the reply, lower-case.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status, self.param, self.code = status, param, code
        self._headers = dict(headers or {})

    def reply(self) -> Reply:
        """Return the reply that says so."""
        return Reply(self.status, JSON | self._headers, _encode(error_object(self)))


def error_object(refusal: Refusal) -> dict[str, object]:
    """Return the error object of a refusal, as it stands in a body or in an event of a stream."""
    return {
        "error": {
            "message": refusal.what[:_LONGEST],
            "type": _TYPES.get(refusal.status, "invalid_request_error"),
            "param": None if refusal.param is None else refusal.param[:_LONGEST],
            "code": refusal.code,
        }
    }


def json_reply(value: object, status: int = 200) -> Reply:
    """Return a reply with `value` as JSON."""
    return Reply(status, JSON, _encode(value))


def refusal_of(error: Exception, *, param: str | None = None) -> Refusal:
    """Return what a client is told of an error: only an InputError's words are meant for it.

    Args:
        error: as an engine raised it.
        param: the field that an InputError is about.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(_sentence(error), param=param)
    if isinstance(error, StorageError):
        return Refusal("Too many requests wait already. Try again later.", status=503, code="overloaded")
    return Refusal("The server could not answer. Try again later.", status=500, code="internal_error")


def _sentence(error: CloisterError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:]
