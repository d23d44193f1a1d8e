"""Front, pipe and door together, with an application of the test's own."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.enclave.doubles import AttesterDouble
from tests.inference.service.world import NONCE, EchoApp, World, ask, opened, world

from cloister.crypto import sha256
from cloister.enclave import Evidence
from cloister.errors import PolicyRefused
from cloister.inference.application import Reply, Request
from cloister.inference.exchange import (
    EXCHANGE_PATH,
    KEYS_PATH,
    Asking,
    KeySet,
    Published,
    RequestHead,
    keys_report_data,
)
from cloister.inference.service import Client, Limits


def test_a_whole_answer_goes_through() -> None:
    async def main() -> None:
        async with world() as here:
            head, body = await ask(here, "/v1/echo?x=1", b"a prompt")
            assert (head.status, body) == (200, b"echo a prompt")
            request = here.application.asked[0]
            assert (request.method, request.path, request.client) == ("POST", "/v1/echo?x=1", "")
            assert here.front.stats() == {"answered": 1, "attested": 1, "open": 0}

    asyncio.run(main())


@pytest.mark.parametrize("size", [0, 1, 5_000, 70_000, 3_000_000])
def test_answers_and_requests_of_any_size(size: int) -> None:
    async def main() -> None:
        async with world() as here:
            assert (await ask(here, "/large", str(size).encode()))[1] == bytes(size)
            assert (await ask(here, "/echo", bytes(size)))[1] == b"echo " + bytes(size)

    asyncio.run(main())


def test_pieces_come_as_they_are_made() -> None:
    """The second piece is made only after the client has opened the first."""

    async def main() -> None:
        turn = asyncio.Semaphore(1)
        async with world(EchoApp(gate=turn.acquire)) as here:
            asking = Asking(await here.keys(), RequestHead("POST", "/stream"), b"one two three")
            got = b""
            async for event in streamed(here, asking):
                got += event
                turn.release()
            asking.finish()
            assert got == b"one two three "
            assert here.application.ended == 1

    asyncio.run(asyncio.wait_for(main(), 30))


async def streamed(here: World, asking: Asking) -> Any:
    """Yield pieces of a body. httpx2's ASGI transport collects an answer first, so this is ASGI by hand."""
    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not sent.is_set():
            sent.set()
            return {"type": "http.request", "body": asking.request, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": EXCHANGE_PATH, "headers": [], "query_string": b""}
    task = asyncio.ensure_future(here.front(scope, receive, answers.put))
    start = await answers.get()
    assert start["status"] == 200
    more = True
    while more:
        message = await answers.get()
        more = message["more_body"]
        for event in asking.feed(message["body"]):
            if isinstance(event, bytes) and event:
                yield event
    await task


def test_keys_come_with_evidence_that_carries_the_nonce() -> None:
    async def main() -> None:
        attester = AttesterDouble()
        async with world(attester=attester) as here:
            answer = await here.client.get(KEYS_PATH, params={"nonce": NONCE.hex()})
            published = Published.from_json(answer.content)
            keys = KeySet.from_bytes(published.keys)
            assert attester.made == [Evidence.from_json(published.evidence)]
            assert keys_report_data(NONCE, keys) in attester.made[0].evidence
            assert (keys.model, keys.model_digest) == ("echo", "e" * 64)
            assert answer.headers["cache-control"] == "no-store"

    asyncio.run(main())


@pytest.mark.parametrize(
    "query", ["", "nonce=", "nonce=" + "a" * 63, "nonce=" + "A" * 64, "nonce=" + "a" * 64 + "&x=1"]
)
def test_keys_are_not_shown_without_a_nonce(query: str) -> None:
    async def main() -> None:
        async with world() as here:
            answer = await here.client.get(f"{KEYS_PATH}?{query}")
            assert (answer.status_code, answer.json()) == (400, {"refused": "request"})

    asyncio.run(main())


def test_where_no_evidence_can_be_made_the_operator_is_told_and_the_client_is_not() -> None:
    class Broken:
        def attest(self, report_data: bytes) -> Evidence:
            raise PolicyRefused("the TPM is locked", where="/dev/tpm0")

    async def main() -> None:
        async with world(attester=Broken()) as here:
            answer = await here.client.get(KEYS_PATH, params={"nonce": NONCE.hex()})
            assert (answer.status_code, answer.json()) == (503, {"refused": "busy"})
            assert here.lines == ["No evidence could be made: the TPM is locked (/dev/tpm0)."]

    asyncio.run(main())


def test_the_root_says_where_to_ask() -> None:
    async def main() -> None:
        async with world() as here:
            answer = await here.client.get("/")
            assert answer.json() == {"service": "cloister", "keys": KEYS_PATH, "exchange": EXCHANGE_PATH}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("POST", "/"),
        ("PUT", EXCHANGE_PATH),
        ("GET", EXCHANGE_PATH),
        ("POST", KEYS_PATH),
        ("POST", EXCHANGE_PATH + "/"),
    ],
)
def test_there_is_no_path_for_plaintext(method: str, path: str) -> None:
    async def main() -> None:
        read: list[str] = []

        async def body() -> Any:
            read.append("read")
            yield b'{"messages": []}'

        async with world() as here:
            answer = await here.client.request(method, path, content=body())
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "plaintext_refused"
            assert "cloister proxy" in answer.json()["error"]["message"]
            assert answer.headers["connection"] == "close"
            assert (read, here.application.asked) == ([], [])

    asyncio.run(main())


CLIENTS = [Client("ward", sha256(b"clst-a").hex()), Client("lab", sha256(b"clst-b").hex())]


def test_whoever_has_no_token_gets_one_answer_that_is_sealed_like_any_other() -> None:
    async def main() -> None:
        async with world(clients=CLIENTS) as here:
            head, body = await ask(here, "/echo", b"x", token="clst-b")
            assert (head.status, head.headers["x-client"]) == (200, "lab")
            refused = [await ask(here, "/echo", b"x", token=token) for token in ("", "clst-c", "clst-a ")]
            for head, body in refused:
                assert head.status == 401
                assert json.loads(body)["error"]["code"] == "invalid_api_key"
            assert len({body for _, body in refused}) == 1
            assert len(here.application.asked) == 1

    asyncio.run(main())


def test_what_an_application_raises_stays_inside() -> None:
    async def main() -> None:
        async with world() as here:
            head, body = await ask(here, "/raise", b"a secret prompt")
            assert head.status == 500
            assert b"secret" not in body
            asking = Asking(await here.keys(), RequestHead("POST", "/break"), b"a secret")
            answer = await here.client.post(EXCHANGE_PATH, content=asking.request)
            assert answer.status_code == 200
            with pytest.raises(Exception, match="cut"):
                opened(asking, answer.content)
            assert here.front.stats()["cut"] == 1

    asyncio.run(main())


async def refused(here: World, content: bytes) -> tuple[int, str]:
    answer = await here.client.post(EXCHANGE_PATH, content=content)
    return answer.status_code, answer.json()["refused"]


def test_refusals_are_one_word() -> None:
    async def main() -> None:
        async with world() as here:
            request = Asking(await here.keys(), RequestHead("POST", "/echo"), b"x").request
            flipped = bytearray(request)
            flipped[-1] ^= 1
            assert await refused(here, b"") == (400, "request")
            assert await refused(here, b"\x01") == (400, "request")
            assert await refused(here, b'{"model": "gpt"}' * 200) == (400, "request")
            assert await refused(here, request[:-1]) == (400, "request")  # cut; and used up
            assert await refused(here, request) == (400, "request")
            other = Asking(await here.keys(), RequestHead("POST", "/echo"), b"x").request
            flipped = bytearray(other)
            flipped[5] ^= 1
            assert await refused(here, bytes(flipped)) == (409, "stale-key")
            flipped = bytearray(other)
            flipped[-1] ^= 1
            assert await refused(here, bytes(flipped)) == (400, "request")
            assert here.application.asked == []

    asyncio.run(main())


def test_a_request_that_is_too_large_is_not_taken() -> None:
    async def main() -> None:
        limits = Limits(body=5_000)
        async with world(limits=limits) as here:
            keys = await here.keys()
            fits = Asking(keys, RequestHead("POST", "/echo"), bytes(5_000)).request
            assert (await here.client.post(EXCHANGE_PATH, content=fits)).status_code == 200
            longer = Asking(keys, RequestHead("POST", "/echo"), bytes(5_001)).request
            assert await refused(here, longer) == (413, "too-large")
            assert await refused(here, longer + bytes(limits.sealed_body)) == (413, "too-large")

            async def endless() -> Any:
                yield Asking(keys, RequestHead("POST", "/echo"), b"").request[:2000]
                for _ in range(100):
                    yield bytes(10_000)

            answer = await here.client.post(EXCHANGE_PATH, content=endless())
            assert answer.status_code in (400, 413)
            assert here.front.stats()["open"] == 0

    asyncio.run(main())


def test_no_more_streams_than_there_is_room_for() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        async with world(EchoApp(gate=gate.wait), limits=Limits(streams=2)) as here:
            keys = await here.keys()
            first = [asyncio.ensure_future(ask(here, "/echo", b"x")) for _ in range(2)]
            while len(here.application.asked) < 2:
                await asyncio.sleep(0.01)
            other = Asking(keys, RequestHead("POST", "/echo"), b"x").request
            assert await refused(here, other) == (503, "busy")
            gate.set()
            assert [body for _, body in await asyncio.gather(*first)] == [b"echo x"] * 2

    asyncio.run(asyncio.wait_for(main(), 30))


def test_keys_turn_and_old_ones_are_taken_for_a_while() -> None:
    async def main() -> None:
        now = [datetime(2026, 7, 1, 12, 0, tzinfo=UTC)]
        async with world(clock=lambda: now[0], lifetime=600) as here:
            old = await here.keys()
            late, later = (Asking(old, RequestHead("POST", "/echo"), b"x") for _ in range(2))
            now[0] += timedelta(seconds=610)
            assert (await here.keys()).digest != old.digest
            answer = await here.client.post(EXCHANGE_PATH, content=late.request)
            assert opened(late, answer.content)[1] == b"echo x"
            now[0] += timedelta(seconds=600)
            assert await refused(here, later.request) == (409, "stale-key")

    asyncio.run(main())


def test_an_answer_that_cannot_begin_is_closed_all_the_same() -> None:
    """Its engine would work on for a client that has been told nothing."""
    closed = []

    class Pieces:
        def __aiter__(self) -> Pieces:
            return self

        async def __anext__(self) -> bytes:
            raise AssertionError

        async def aclose(self) -> None:
            closed.append(1)

    async def application(request: Request) -> Reply:
        return Reply(200, {"content-type": "x" * (20 << 10)}, Pieces())

    application.aclose = lambda: None  # type: ignore[attr-defined]

    async def main() -> None:
        async with world(application) as here:
            asking = Asking(await here.keys(), RequestHead("POST", "/x"), b"")
            answer = await here.client.post(EXCHANGE_PATH, content=asking.request)
            assert answer.content == b""
            assert closed == [1]

    asyncio.run(main())
