"""The network of a deployed benchmark: a server with TLS on both sides, on loopback; and the way in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.deployment_world import PASSPHRASE, World
from cloister.runtime.nats import LocalServer, NatsTransport, TlsFiles

__all__ = ["enter", "serve"]


@contextmanager
def serve(world: World, hub: str, sites: Sequence[str]) -> Iterator[list[str]]:
    """Run a server for the hub and these sites, each with its own certificate; yield its addresses."""
    with LocalServer(world.folder / "server", hub, sites, passphrase=PASSPHRASE) as server:
        yield list(server.urls)


async def enter(world: World, name: str, urls: Sequence[str]) -> NatsTransport:
    """Return the transport of a party, connected."""
    files = TlsFiles.in_folder(world.folder / "server" / "parties" / name, PASSPHRASE)
    return await NatsTransport.connect(list(urls), files, name)
