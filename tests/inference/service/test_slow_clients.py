"""Clients that go away, stand still, or read nothing: their work ends, and nobody else waits."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.inference.service.test_exchange import streamed
from tests.inference.service.world import EchoApp, World, ask, world

from cloister.inference.exchange import EXCHANGE_PATH, Asking, RequestHead
from cloister.inference.service import Limits
from cloister.inference.service.pipe import WINDOW

SCOPE = {"type": "http", "method": "POST", "path": EXCHANGE_PATH, "headers": [], "query_string": b""}


class Caller:
    """An ASGI server's view of one client, under the test's thumb.

    Args:
        body: what it sends; `None` stands still instead of going on.
    """

    def __init__(self, *body: bytes | None) -> None:
        self._body = list(body)
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._body and self._body[0] is not None:
            return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.sent.append(message)

    def call(self, here: World) -> asyncio.Task[None]:
        return asyncio.ensure_future(here.front(dict(SCOPE), self.receive, self.send))


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def asking(here: World, path: str, body: bytes) -> Asking:
    return Asking(await here.keys(), RequestHead("POST", path), body)


def test_a_client_that_goes_away_ends_its_stream_and_its_work() -> None:
    async def main() -> None:
        gate = asyncio.Semaphore(1)
        async with world(EchoApp(gate=gate.acquire)) as here:
            caller = Caller((await asking(here, "/stream", b"one two three")).request)
            task = caller.call(here)
            await until(lambda: len(caller.sent) >= 2)
            caller.gone.set()
            await asyncio.wait_for(task, 20)
            await until(lambda: here.application.closed == 1)
            assert here.application.ended == 0
            assert here.front.stats() == {"attested": 1, "cancelled": 1, "open": 0}

    asyncio.run(main())


def test_a_client_that_goes_away_before_the_first_byte() -> None:
    async def main() -> None:
        never = asyncio.Event()
        async with world(EchoApp(gate=never.wait)) as here:
            caller = Caller((await asking(here, "/echo", b"x")).request)
            task = caller.call(here)
            await until(lambda: here.application.asked)
            caller.gone.set()
            await asyncio.wait_for(task, 20)
            assert (caller.sent, here.front.stats()["cancelled"]) == ([], 1)

    asyncio.run(main())


def test_a_client_that_goes_away_in_the_middle_of_its_request() -> None:
    async def main() -> None:
        async with world() as here:
            request = (await asking(here, "/echo", bytes(5000))).request
            caller = Caller(request[:3000], None)
            task = caller.call(here)
            await until(lambda: here.front.stats()["open"] == 1)
            caller.gone.set()
            await asyncio.wait_for(task, 20)
            assert here.application.asked == []
            assert (await ask(here, "/echo", b"x"))[1] == b"echo x"

    asyncio.run(main())


def test_who_sends_nothing_is_dropped() -> None:
    async def main() -> None:
        async with world(limits=Limits(stall_seconds=0.2)) as here:
            request = (await asking(here, "/echo", bytes(5000))).request
            caller = Caller(request[:3000], None)
            await asyncio.wait_for(caller.call(here), 20)
            assert caller.sent[0]["status"] == 400
            assert here.front.stats()["stalled"] == 1

    asyncio.run(main())


class Trickler(Caller):
    """Sends a byte now and then: never still for long, and never done."""

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        if self.gone.is_set():
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"\1", "more_body": True}


def test_who_sends_a_byte_now_and_then_is_dropped() -> None:
    """A place in the service is not held for the price of a byte a minute."""

    async def main() -> None:
        async with world(limits=Limits(stall_seconds=0.3)) as here:
            caller = Trickler()
            try:
                await asyncio.wait_for(caller.call(here), 5)
            finally:
                caller.gone.set()
            assert caller.sent[0]["status"] == 400
            assert here.front.stats()["stalled"] == 1

    asyncio.run(main())


def test_who_sends_much_may_take_longer() -> None:
    async def main() -> None:
        async with world(limits=Limits(stall_seconds=0.3)) as here:
            request = (await asking(here, "/echo", bytes(300_000))).request

            class Steady(Caller):
                async def receive(self) -> dict[str, Any]:
                    if len(self._body) > 1:
                        await asyncio.sleep(0.06)
                    return await super().receive()

            cuts = range(0, len(request), len(request) // 10)
            caller = Steady(*(request[at : at + len(request) // 10] for at in cuts))
            await asyncio.wait_for(caller.call(here), 20)
            assert caller.sent[0]["status"] == 200

    asyncio.run(main())


def test_who_reads_nothing_is_dropped_and_delays_nobody() -> None:
    """The worker makes no more than a window for it; the others' streams go on meanwhile."""

    async def main() -> None:
        async with world(limits=Limits(stall_seconds=0.5)) as here:
            caller = Caller((await asking(here, "/long", b"100000")).request)
            caller.reads.clear()
            task = caller.call(here)
            await until(lambda: here.front.stats()["open"] == 1)
            other = await asking(here, "/long", b"2000")
            got = b"".join([piece async for piece in streamed(here, other)])
            other.finish()
            assert got == bytes(2_000_000)
            assert not task.done()
            await asyncio.wait_for(task, 20)
            await until(lambda: here.application.closed == 2)
            assert here.application.ended == 1
            assert here.front.stats()["stalled"] == 1

    asyncio.run(main())


def test_who_reads_slowly_gets_everything() -> None:
    async def main() -> None:
        async with world() as here:
            question = await asking(here, "/long", b"3000")
            caller = Caller(question.request)
            caller.reads.clear()
            task = caller.call(here)
            await until(lambda: here.front.stats()["open"] == 1)
            await asyncio.sleep(0.1)
            caller.reads.set()
            await asyncio.wait_for(task, 20)
            assert sum(len(message.get("body", b"")) for message in caller.sent) > 2 * WINDOW
            pieces = [event for message in caller.sent[1:] for event in question.feed(message["body"])]
            question.finish()
            assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == bytes(3_000_000)

    asyncio.run(main())
