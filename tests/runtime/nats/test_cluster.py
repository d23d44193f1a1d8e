"""Three servers, of which one is lost: the others carry on, and the lease keeps its count."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.runtime.nats.leases import HUB, PASSPHRASE, SITE, lease_of, renewing, taken

from cloister.runtime.nats.lease import _OWN_SECONDS, Lease
from cloister.runtime.nats.server import LocalServer
from cloister.runtime.nats.serverconfig import LEASE_BUCKET
from cloister.runtime.nats.transport import NatsTransport

pytestmark = pytest.mark.slow


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer(tmp_path / "servers", HUB, [SITE], servers=3, passphrase=PASSPHRASE) as started:
        yield started


@contextlib.asynccontextmanager
async def parties(servers: LocalServer) -> AsyncIterator[tuple[NatsTransport, NatsTransport]]:
    async with contextlib.AsyncExitStack() as stack:
        ends = []
        for name in (HUB, SITE):
            ends.append(await NatsTransport.connect(servers.urls, servers.tls_of(name), name, patience=30))
            stack.push_async_callback(ends[-1].close)
        yield ends[0], ends[1]


async def arrives(sender: NatsTransport, receiver: NatsTransport, within: float) -> float:
    """Send until something sent after now arrives; return how long it took."""
    began, number = time.monotonic(), 0
    while time.monotonic() - began < within:
        mark = b"%d %f" % (number := number + 1, began)
        await sender.send(receiver.address, mark)
        while (got := await receiver.receive(0.1)) is not None:
            if got.endswith(b" %f" % began):
                return time.monotonic() - began
    raise AssertionError("nothing arrives")


async def leader(lease: Lease) -> tuple[int, int]:
    """Return how many copies there are of the bucket, and which server orders the writes."""
    client = lease._connection.client
    assert client is not None
    info = await client.jetstream().stream_info(f"KV_{LEASE_BUCKET}")
    assert info.cluster is not None
    assert info.cluster.leader is not None
    return info.config.num_replicas or 0, int(info.cluster.leader.rpartition("-")[2])


def test_a_killed_server_is_survived_by_parties_and_lease(servers: LocalServer) -> None:
    async def play() -> None:
        async with parties(servers) as (hub, site), lease_of(servers) as lease, lease_of(servers) as other:
            await arrives(site, hub, 30)
            await arrives(hub, site, 30)
            first, _ = await taken(lease, 60)
            keeping = asyncio.create_task(renewing(lease))
            copies, ordering = await leader(lease)
            assert copies == 3
            assert await other.acquire() is None
            for number in [n for n in range(3) if n != ordering]:  # the lease does not notice
                servers.kill(number)
                await arrives(site, hub, 30)
                await arrives(hub, site, 30)
                until = time.monotonic() + 7
                while time.monotonic() < until:
                    assert lease.held
                    await asyncio.sleep(0.1)
                await asyncio.to_thread(servers.start, number)
                await asyncio.sleep(3)
            keeping.cancel()
            assert lease.held
            assert await other.acquire() is None
            assert first > 0

    asyncio.run(play())


def test_when_the_server_that_orders_the_writes_is_killed_the_lease_goes_on(servers: LocalServer) -> None:
    """The others take seconds to agree on a successor: the lease may lapse meanwhile, and has a higher term then."""

    async def play() -> None:
        async with lease_of(servers) as lease, lease_of(servers) as other:
            term, _ = await taken(lease, 60)
            keeping = asyncio.create_task(renewing(lease))
            _, ordering = await leader(lease)
            servers.kill(ordering)
            killed = time.monotonic()
            while time.monotonic() - killed < 20:
                assert not other.held
                if not lease.held:
                    again = await lease.acquire()
                    assert again is None or again > term
                    term = again or term
                await asyncio.sleep(0.1)
            assert lease.held
            assert await other.acquire() is None
            keeping.cancel()

    asyncio.run(play())


def test_with_most_servers_lost_nobody_acts_until_they_are_back(servers: LocalServer) -> None:
    async def play() -> None:
        async with lease_of(servers) as lease, lease_of(servers) as other:
            first, _ = await taken(lease, 60)
            keeping = asyncio.create_task(renewing(lease))
            servers.kill(0)
            servers.kill(1)
            await asyncio.sleep(_OWN_SECONDS + 2.5)
            for _ in range(3):
                assert await other.acquire() is None
                assert not lease.held
                assert await lease.acquire() is None
            await asyncio.to_thread(servers.start)
            second, _ = await taken(lease, 60)
            assert second > first
            keeping.cancel()

    asyncio.run(play())
