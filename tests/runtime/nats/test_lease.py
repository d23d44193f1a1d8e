from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.proxy import Proxy
from tests.runtime.nats.leases import HUB, KEY, PASSPHRASE, SITE, lease_of, renewing, taken

from cloister.runtime.nats.lease import _OWN_SECONDS, TTL_SECONDS, Lease
from cloister.runtime.nats.server import LocalServer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("lease") / "server"
    with LocalServer(folder, HUB, [SITE], passphrase=PASSPHRASE) as started:
        yield started


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def fresh(server: LocalServer) -> None:
    """Nobody holds the lease when a test begins; revisions go on."""

    async def play() -> None:
        async with lease_of(server) as lease:
            client = lease._connection.client
            assert client is not None
            bucket = await lease._open(client)
            await bucket.purge(KEY)

    asyncio.run(play())


def test_one_of_two_gets_it_and_terms_grow(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as one, lease_of(server) as other:
            first = await one.acquire()
            assert first is not None
            assert one.held
            assert await other.acquire() is None
            assert not other.held
            await one.release()
            assert not one.held
            second = await other.acquire()  # at once
            assert second is not None
            assert second > first
            await one.release()  # of what it no longer has
            assert await one.acquire() is None
            assert other.held

    asyncio.run(play())


def test_of_many_at_once_one_gets_it(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as first:
            leases = [Lease(first._connection, KEY) for _ in range(20)]
            terms = await asyncio.gather(*(lease.acquire() for lease in leases))
            assert sum(term is not None for term in terms) == 1
            assert sum(lease.held for lease in leases) == 1

    asyncio.run(play())


def test_studies_have_leases_of_their_own(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as one:
            other = Lease(one._connection, "another")
            assert await one.acquire() is not None
            assert await other.acquire() is not None
            await other.release()

    asyncio.run(play())


def test_who_renews_keeps_it_under_one_term(server: LocalServer) -> None:
    async def play() -> None:
        holder_clock, clock = Clock(0), Clock(0)
        async with (
            lease_of(server, clock=holder_clock) as holder,
            lease_of(server, clock=clock) as other,
        ):
            await holder.acquire()
            for _ in range(10):
                holder_clock.now += 2
                clock.now += 2
                await holder.renew()
                assert holder.held
                assert await other.acquire() is None

    asyncio.run(play())


@pytest.mark.parametrize("ahead", [0.0, -1e6, 1e9])
def test_what_the_clocks_show_does_not_matter(server: LocalServer, ahead: float) -> None:
    async def play() -> None:
        mine, theirs = Clock(1e6), Clock(1e6 + ahead)
        async with lease_of(server, clock=mine) as holder, lease_of(server, clock=theirs) as other:
            first = await holder.acquire()
            assert first is not None
            assert await other.acquire() is None
            for clock in (mine, theirs):
                clock.now += _OWN_SECONDS
            assert not holder.held  # before another acts
            assert await other.acquire() is None
            theirs.now += TTL_SECONDS - _OWN_SECONDS
            second = await other.acquire()
            assert second is not None
            assert second > first
            await holder.renew()
            assert not holder.held

    asyncio.run(play())


def test_a_silent_holder_that_renews_at_the_last_moment_keeps_it(server: LocalServer) -> None:
    async def play() -> None:
        mine, theirs = Clock(0), Clock(0)
        async with lease_of(server, clock=mine) as holder, lease_of(server, clock=theirs) as other:
            await holder.acquire()
            assert await other.acquire() is None
            mine.now += _OWN_SECONDS - 0.1
            await holder.renew()
            theirs.now += TTL_SECONDS
            assert await other.acquire() is None
            assert holder.held

    asyncio.run(play())


def test_between_look_and_overwriting_a_renewal_wins(server: LocalServer) -> None:
    async def play() -> None:
        theirs = Clock(0)
        async with lease_of(server) as holder, lease_of(server, clock=theirs) as other:
            await holder.acquire()
            assert await other.acquire() is None
            theirs.now += TTL_SECONDS
            client = other._connection.client
            assert client is not None
            bucket = await other._open(client)
            read = bucket.get

            async def slow_read(key: str) -> object:
                entry = await read(key)
                await holder.renew()
                return entry

            bucket.get = slow_read
            assert await other.acquire() is None
            assert holder.held
            assert not other.held

    asyncio.run(play())


def test_a_renewal_whose_answer_was_lost_is_found_again(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as holder:
            assert await holder.acquire() is not None
            heard = holder._written
            await holder.renew()
            holder._written = heard  # the server's answer never came
            await holder.renew()
            assert holder.held
            assert holder._written.revision > heard.revision + 1
            holder._written = heard
            await holder.release()
            async with lease_of(server) as other:
                assert await other.acquire() is not None

    asyncio.run(play())


def test_a_library_that_swallows_cancellation_holds_nobody_up(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as holder:
            await holder.acquire()
            client = holder._connection.client
            assert client is not None
            bucket = await holder._open(client)
            write, late = bucket.update, asyncio.Event()

            async def deaf(*arguments: object, **named: object) -> object:
                revision = await write(*arguments, **named)
                while not late.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await late.wait()
                return revision

            bucket.update = deaf
            began = time.monotonic()
            await holder.renew()
            assert time.monotonic() - began < 3
            assert holder.problem
            await holder.release()
            late.set()  # the renewal's answer comes after all
            await asyncio.sleep(0.05)
            assert not holder.held

    asyncio.run(play())


def test_an_acquisition_whose_answer_was_lost_is_taken_up(server: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(server) as holder:
            first = await holder.acquire()
            second = await holder.acquire()
            assert first is not None
            assert second is not None
            assert second > first

    asyncio.run(play())


def test_a_lease_that_lapsed_is_not_renewed(server: LocalServer) -> None:
    async def play() -> None:
        clock = Clock(0)
        async with lease_of(server, clock=clock) as holder:
            await holder.acquire()
            clock.now += _OWN_SECONDS
            await holder.renew()
            assert not holder.held
            assert await holder.acquire() is not None

    asyncio.run(play())


@pytest.mark.slow
def test_a_killed_holder_is_followed(server: LocalServer) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.runtime.nats.leases",
            server.folder / "parties" / HUB,
            HUB,
            KEY,
            *server.urls,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )

    async def play(first: int) -> None:
        async with lease_of(server) as other:
            for _ in range(10):  # longer than the lease lasts unrenewed
                assert await other.acquire() is None
                await asyncio.sleep(0.8)
            process.kill()
            process.wait()
            second, after = await taken(other, 15)
            assert second > first
            assert TTL_SECONDS - 2 - 1 < after < TTL_SECONDS + 2

    try:
        assert process.stdout is not None
        asyncio.run(play(int(process.stdout.readline())))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_holder_that_is_cut_off_stops_before_another_acts(server: LocalServer) -> None:
    async def play(proxy: Proxy) -> None:
        async with lease_of(server, [f"tls://127.0.0.1:{proxy.port}"]) as holder, lease_of(server) as other:
            first = await holder.acquire()
            assert first is not None
            keeping = asyncio.create_task(renewing(holder))
            assert await other.acquire() is None
            await asyncio.sleep(3)
            proxy.cut()
            while holder.held:
                assert not other.held
                await other.acquire()
                assert not (holder.held and other.held)
                await asyncio.sleep(0.05)
            second, _ = await taken(other, 15)
            assert second > first
            proxy.mend()
            back = time.monotonic()
            while time.monotonic() - back < 2:
                assert not holder.held
                await other.renew()
                assert other.held
                await asyncio.sleep(0.1)
            keeping.cancel()

    with Proxy(("127.0.0.1", server.ports[0])) as proxy:
        asyncio.run(play(proxy))


@pytest.mark.slow
def test_without_the_server_there_is_no_lease_and_afterwards_there_is(tmp_path: Path) -> None:
    async def play(server: LocalServer) -> None:
        async with lease_of(server) as lease:
            first = await lease.acquire()
            assert first is not None
            server.kill()
            began = time.monotonic()
            while lease.held:
                await lease.renew()
                await asyncio.sleep(0.1)
            assert time.monotonic() - began < _OWN_SECONDS + 1
            assert await lease.acquire() is None
            assert lease.problem
            await asyncio.to_thread(server.start)
            second, _ = await taken(lease, 20)
            assert second > first  # the store kept count

    with LocalServer(tmp_path / "server", HUB, [SITE], passphrase=PASSPHRASE) as server:
        asyncio.run(play(server))


def test_a_site_has_no_lease(server: LocalServer) -> None:
    async def play() -> None:
        lease = await Lease.connect(server.urls, server.tls_of(SITE), SITE, KEY)
        try:
            assert await lease.acquire() is None
            assert lease.problem
        finally:
            await lease.close()

    asyncio.run(play())
