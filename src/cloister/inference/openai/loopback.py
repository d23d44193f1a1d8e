"""An OpenAI-compatible server on this machine's loopback (vLLM, llama.cpp and others), passed through.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings     GET /v1/models, /v1/models/ID

and nothing else: what else such servers offer manages them, or keeps what clients sent. Of a request the
server gets path and body; no header, no credential, no name of the client.

Steps: 1 method and path are among those above; 2 the body is a JSON object, and names a model that may be
asked for; 3 only fields that are about this one answer go on (`passed`), with a `cache_salt` of this client
and without `cache_prompt`, so that prompts that vLLM, SGLang or llama.cpp keep do not answer others faster;
4 it goes out over a socket that is handed over; 5 events come back one by one as they come, for several at
once would show their length; any other answer whole. Closing the iterator, or cancelling the call, closes the
connection, and with that the server's work.

It does not check what the server answers. A server that ignores both must run without a cache of prompts, or
clients could learn from timing what others asked.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final

import msgspec

from cloister.crypto import hmac_sha256
from cloister.errors import InputError, ProtocolError
from cloister.inference.application import Reply, Request
from cloister.inference.openai.errors import Refusal, json_reply
from cloister.inference.openai.fields import read_object
from cloister.inference.openai.passed import passed
from cloister.inference.openai.paths import model_in, route, unknown_model
from cloister.inference.openai.streams import close

if TYPE_CHECKING:
    import httpcore2

__all__ = ["LoopbackApp"]

_POSTS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_HEADERS: Final = (
    ("host", "localhost"),
    ("accept", "application/json, text/event-stream"),
    ("accept-encoding", "identity"),
    ("content-type", "application/json"),
)
_RETURNED: Final = frozenset({"content-type", "content-encoding", "retry-after"})
_ORIGIN: Final = "http://localhost"
_LONGEST: Final = 64 << 20
_LONGEST_EVENT: Final = 1 << 20
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")
_CONNECTIONS: Final = 256
_TIMES: Final = {"connect": 10.0, "read": 600.0, "write": 60.0, "pool": 600.0}
"""Seconds: the first token of a long prompt may take minutes."""
_IDLE_SECONDS: Final = 2.0
_encode = msgspec.json.Encoder().encode


class LoopbackApp:
    """Passes requests to a server over sockets that are handed to it.

    Args:
        connect: returns a socket that is connected to the server. May block: it is called in a thread,
            by one thread at a time.
        names: the models that clients may ask for; empty leaves that to the server.

    Raises:
        InputError: the packages that it takes are not installed.
    """

    def __init__(self, connect: Callable[[], socket.socket], names: Sequence[str] = ()) -> None:
        try:
            import anyio._backends._asyncio  # noqa: F401  else imported at the first request
            import httpcore2

            from cloister.inference.openai.sockets import HandedOver
        except ImportError:
            raise InputError(
                "httpx2 is not installed: no server can be asked", fix="Install cloister[serve]"
            ) from None
        self._http = httpcore2
        self._models = dict.fromkeys(names, int(time.time()))
        self._sockets = HandedOver(connect)
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS, network_backend=self._sockets
        )
        self._secret = os.urandom(32)

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return await route(request, dict.fromkeys(_POSTS, self._ask), self._models or self._list)  # 1

    async def aclose(self) -> None:
        """Close every connection."""
        self._sockets.close()
        await self._pool.aclose()

    async def _ask(self, request: Request) -> Reply:
        fields = read_object(request.body)  # 2
        if self._models and fields.get("model") not in self._models:
            raise unknown_model(str(fields.get("model")))
        fields = passed(fields) | {"cache_salt": self._salt(request.client), "cache_prompt": False}  # 3
        path = request.path.partition("?")[0]
        return await self._send("POST", path, _encode(fields))

    async def _list(self, request: Request) -> Reply:
        reply = await self._send("GET", "/v1/models")
        name = model_in(request.path)
        if not name or reply.status != 200 or not isinstance(reply.body, bytes):
            return reply
        try:
            listed = msgspec.json.decode(reply.body, type=_Models).data
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise _broken() from None
        for each in listed:
            if each.get("id") == name:
                return json_reply(each)
        raise unknown_model(name)

    def _salt(self, client: str) -> str:
        """Return what keeps apart what is cached for each client; who has no name shares with nobody."""
        told = hmac_sha256(self._secret, client.encode()) if client else os.urandom(32)
        return base64.b64encode(told).decode()

    async def _send(self, method: str, path: str, body: bytes = b"") -> Reply:
        headers = [*_HEADERS, ("content-length", str(len(body)))] if body else _HEADERS
        request = self._http.Request(
            method, _ORIGIN + path, headers=headers, content=body, extensions={"timeout": _TIMES}
        )
        try:
            response = await self._pool.handle_async_request(request)  # 4
        except (self._http.ConnectError, self._http.ConnectTimeout, self._http.PoolTimeout):
            raise Refusal(
                "The model server cannot be reached. Try again later.", status=503, code="engine_unreachable"
            ) from None
        except _errors(self._http):
            raise _broken() from None
        return await self._reply(response)

    async def _reply(self, response: httpcore2.Response) -> Reply:
        body = _Body(response, _errors(self._http))
        returned = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers}
        kept = {name: value for name, value in returned.items() if name in _RETURNED}
        kept.setdefault("content-type", "application/octet-stream")
        if 200 <= response.status < 300 and kept["content-type"].startswith("text/event-stream"):
            return Reply(response.status, kept, _Events(body))  # 5
        pieces, length = [], 0
        try:
            async for piece in body:
                pieces.append(piece)
                length += len(piece)
                if length > _LONGEST:
                    raise _broken()
        except ProtocolError:
            raise _broken() from None
        finally:
            await body.aclose()
        good = 200 <= response.status < 300
        if not good and (response.status < 400 or not kept["content-type"].startswith("application/json")):
            raise _broken(response.status)  # a redirect leads nowhere from here; a page is no error object
        return Reply(response.status, kept, b"".join(pieces))


class _Models(msgspec.Struct):
    """A list of models as servers give it; what else they say of a model is passed on."""

    data: list[dict[str, object]]


class _Body:
    """The pieces of a server's answer; closing it closes the connection, unless all of it has come."""

    def __init__(self, response: httpcore2.Response, errors: tuple[type[Exception], ...]) -> None:
        self._response, self._errors = response, errors
        self._pieces: AsyncIterator[bytes] = response.aiter_stream()

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            await self._response.aclose()
            raise
        except self._errors:
            await self._response.aclose()
            raise ProtocolError("the model server broke off its answer") from None

    async def aclose(self) -> None:
        await close(self._pieces)
        await self._response.aclose()


class _Events:
    """The same, one event a piece, however the server's writes were cut; a huge one comes in parts."""

    def __init__(self, body: _Body) -> None:
        self._body, self._held, self._searched = body, b"", 0

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> bytes:
        while len(self._held) <= _LONGEST_EVENT:
            end = _BLANK_LINE.search(self._held, max(self._searched - 3, 0))
            if end is not None:
                return self._take(end.end())
            self._searched = len(self._held)
            try:
                self._held += await anext(self._body)
            except StopAsyncIteration:
                if not self._held:
                    raise
                break
        return self._take(len(self._held))

    async def aclose(self) -> None:
        await self._body.aclose()

    def _take(self, count: int) -> bytes:
        piece, self._held, self._searched = self._held[:count], self._held[count:], 0
        return piece


def _broken(status: int = 500) -> Refusal:
    return Refusal(
        "The model server did not answer as it should.",
        status=status if status >= 400 else 500,
        code="engine_failed",
    )


def _errors(http: ModuleType) -> tuple[type[Exception], ...]:
    return (http.NetworkError, http.ProtocolError, http.TimeoutException)
