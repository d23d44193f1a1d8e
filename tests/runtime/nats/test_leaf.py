"""A server in an organisation's own network: it joins that organisation's account, and none else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.crypto import SECRET_ACCESS
from cloister.runtime.nats import LocalServer, NatsTransport, NetworkKey, server_program
from cloister.runtime.nats.server import free_ports


@contextlib.contextmanager
def leaf_of(server: LocalServer, name: str, folder: Path) -> Iterator[int]:
    """Run a server in the network of `name`, for anybody on this machine, without TLS; yield its port."""
    key = NetworkKey.load(server.network(name) / "network.key", "local")
    (folder / "leaf.key").write_bytes(key.to_pem(SECRET_ACCESS))
    (port,) = free_ports(1)
    files = {
        "cert_file": str(server.network(name) / "certificate.pem"),
        "key_file": str(folder / "leaf.key"),
        "ca_file": str(server.network(name) / "authority.pem"),
        "handshake_first": True,
    }
    remote = {"url": f"tls://127.0.0.1:{server.leaf_ports[0]}", "tls": files}
    config = {"listen": f"127.0.0.1:{port}", "leafnodes": {"remotes": [remote]}}
    (folder / "leaf.conf").write_text(json.dumps(config))
    with (folder / "leaf.log").open("wb") as log:
        process = subprocess.Popen([server_program(), "-c", folder / "leaf.conf"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while "Leafnode connection created" not in (folder / "leaf.log").read_text():
            assert time.monotonic() < deadline, (folder / "leaf.log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("spied", ["cloister.v1.bob.>", "cloister.v1.hub.bob"])
def test_a_leaf_carries_its_organisation_and_hears_no_other(
    server: LocalServer, tmp_path: Path, spied: str
) -> None:
    from nats.aio.client import Client

    async def play(port: int) -> None:
        hub, bob = [
            await NatsTransport.connect(server.urls, server.tls_of(name), name) for name in ("hub", "bob")
        ]
        inside = Client()
        await inside.connect(f"nats://127.0.0.1:{port}")
        own, other = await inside.subscribe("cloister.v1.alice.>"), await inside.subscribe(spied)
        await inside.flush()
        await asyncio.sleep(0.5)  # interest travels to the other server
        await inside.publish("cloister.v1.hub.alice", b"honest")
        await inside.publish("cloister.v1.hub.bob", b"forged")
        await inside.publish("cloister.v1.bob.hub", b"forged")
        await hub.send("bob", b"for bob")
        await bob.send("hub", b"from bob")
        await hub.send("alice", b"for alice")
        assert (await own.next_msg(5)).data == b"for alice"
        assert {await hub.receive(5), await hub.receive(5)} == {b"honest", b"from bob"}
        assert await bob.receive(5) == b"for bob"
        assert [await hub.receive(0.1), await bob.receive(0.1)] == [None, None]
        heard = [other._pending_queue.get_nowait().data for _ in range(other.pending_msgs)]
        assert set(heard) <= {b"forged"}  # its own, in its own account
        for end in (hub, bob):
            await end.close()
        await inside.close()

    with leaf_of(server, "alice", tmp_path) as port:
        asyncio.run(play(port))
