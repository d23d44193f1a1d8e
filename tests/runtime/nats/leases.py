"""What lease tests share: a process that holds a lease and can be killed, and waiting.

    python -m tests.runtime.nats.leases FOLDER HUB KEY URL...

prints its term once it has the lease, and renews it until it is killed; FOLDER holds the hub's network files.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cloister.runtime.nats.lease import Lease
from cloister.runtime.nats.server import LocalServer
from cloister.runtime.nats.tlsfiles import TlsFiles

HUB = "hub"
SITE = "site"
KEY = "study"
PASSPHRASE = "only for this test"


@asynccontextmanager
async def lease_of(
    server: LocalServer, urls: Sequence[str] | None = None, *, clock: Callable[[], float] | None = None
) -> AsyncIterator[Lease]:
    """A lease on a connection of its own, released by nobody."""
    lease = await Lease.connect(urls or server.urls, server.tls_of(HUB), HUB, KEY)
    if clock is not None:
        lease._clock = clock
    try:
        yield lease
    finally:
        await lease.close()


async def taken(lease: Lease, within: float) -> tuple[int, float]:
    """Ask for a lease as a waiting hub does; return its term, and how long it took."""
    began = time.monotonic()
    while (term := await lease.acquire()) is None:
        assert time.monotonic() - began < within, lease.problem
        await asyncio.sleep(0.2)
    return term, time.monotonic() - began


async def renewing(lease: Lease, every: float = 2.0) -> None:
    """Renew as a hub does, for ever."""
    while True:
        await asyncio.sleep(every)
        await lease.renew()


async def main(folder: Path, hub: str, key: str, urls: Sequence[str]) -> None:
    lease = await Lease.connect(urls, TlsFiles.in_folder(folder, PASSPHRASE), hub, key)
    term, _ = await taken(lease, 30)
    print(term, flush=True)  # noqa: T201  # the test reads it
    await renewing(lease)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
