"""Answers sealed to readers: these and no others open them, and who asked does not."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.inference.openai.engine import ScriptedEngine, body_of, chat_body, get, post

from cloister.crypto import Identity, PublicIdentity, open_bytes, sealed_recipients
from cloister.errors import InputError
from cloister.inference.application import Reply, Request
from cloister.inference.openai import OpenAIApp, SealingApp

ANN, BEN, EVE = (Identity.generate(name) for name in ("ann", "ben", "eve"))
CHAT = "/v1/chat/completions"


def header(*readers: PublicIdentity) -> str:
    return base64.b64encode(b"[" + b",".join(each.to_json() for each in readers) + b"]").decode()


def sealed(request: Request, inner: Any = None) -> Reply:
    app = SealingApp(inner or OpenAIApp(ScriptedEngine("SECRET answer")))
    return asyncio.run(app(request))


def asking(value: str, **more: Any) -> Request:
    return post(CHAT, chat_body(**more), **{"cloister-seal-to": value})


def test_each_reader_opens_it_and_nobody_else() -> None:
    reply = sealed(asking(header(BEN.public, ANN.public)))
    assert (reply.status, dict(reply.headers)) == (200, {"content-type": "application/cloister-sealed"})
    assert isinstance(reply.body, bytes)
    assert b"SECRET" not in reply.body
    assert sealed_recipients(reply.body) == (BEN.public.fingerprint, ANN.public.fingerprint)
    for reader in (ANN, BEN):
        answer = json.loads(open_bytes(reply.body, reader))
        assert answer["choices"][0]["message"]["content"] == "SECRET answer"
    with pytest.raises(InputError):
        open_bytes(reply.body, EVE)


def test_without_the_header_nothing_is_sealed() -> None:
    reply = sealed(post(CHAT, chat_body()))
    assert reply.headers["content-type"] == "application/json"


def test_lists_of_models_are_sealed_too() -> None:
    request = get("/v1/models")
    reply = sealed(Request("GET", request.path, {"cloister-seal-to": header(ANN.public)}, b""))
    assert isinstance(reply.body, bytes)
    assert json.loads(open_bytes(reply.body, ANN))["object"] == "list"


def test_a_stream_is_refused_before_the_engine_begins() -> None:
    engine = ScriptedEngine()
    reply = sealed(asking(header(ANN.public), stream=True), OpenAIApp(engine))
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "stream"  # type: ignore[arg-type]
    assert engine.asked == []


def test_a_refusal_can_be_read_by_who_asked() -> None:
    reply = sealed(asking(header(ANN.public), n=99))
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "n"  # type: ignore[arg-type]


def _altered() -> str:
    value = json.loads(ANN.public.to_json())
    value["name"] = "eve"
    return base64.b64encode(json.dumps([value]).encode()).decode()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "!",
        "é",
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b"{").decode(),
        base64.b64encode(b"[1]").decode(),
        base64.b64encode(b"[" * 5000).decode(),
        base64.b64encode(b"\xff").decode(),
        base64.b64encode(ANN.public.to_json()).decode(),
        header(*[ANN.public] * 17),
        _altered(),
    ],
)
def test_readers_that_are_none(value: str) -> None:
    engine = ScriptedEngine()
    reply = sealed(asking(value), OpenAIApp(engine))
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == "cloister-seal-to"  # type: ignore[arg-type]
    assert engine.asked == []


class Inner:
    """An application that answers in pieces, and says whether they were let go of."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.closed, self.headers = error, 0, {}

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            yield b"one "
            if self.error:
                raise self.error
            yield b"two"
        finally:
            self.closed += 1

    async def __call__(self, request: Request) -> Reply:
        self.headers = dict(request.headers)
        return Reply(200, {"content-type": "text/plain", "x-id": "7"}, self._pieces())

    def aclose(self) -> None:
        self.closed += 1


def test_pieces_are_gathered() -> None:
    inner = Inner()
    reply = sealed(asking(header(ANN.public)), inner)
    assert open_bytes(asyncio.run(body_of(reply)), ANN) == b"one two"
    assert "x-id" not in reply.headers
    assert "cloister-seal-to" not in inner.headers
    asyncio.run(SealingApp(inner).aclose())
    assert inner.closed == 2


def test_an_answer_that_breaks_off_is_not_sealed() -> None:
    inner = Inner(InputError("SECRET"))
    reply = sealed(asking(header(ANN.public)), inner)
    assert reply.status == 500
    assert b"SECRET" not in asyncio.run(body_of(reply))
    assert inner.closed == 1
