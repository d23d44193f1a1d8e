from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.contracts.transport import TransportContract

from cloister.errors import InputError, PassphraseError, StorageError
from cloister.runtime.nats import MAX_DATAGRAM, LocalServer, NatsTransport, TlsFiles
from cloister.runtime.nats import transport as module
from cloister.types import Transport


@asynccontextmanager
async def parties(server: LocalServer, *names: str) -> AsyncIterator[list[NatsTransport]]:
    async with AsyncExitStack() as stack:
        joined = []
        for name in names:
            joined.append(await NatsTransport.connect(server.urls, server.tls_of(name), name))
            stack.push_async_callback(joined[-1].close)
        yield joined


class TestNatsTransport(TransportContract):
    @pytest.fixture(autouse=True)
    def _serve(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        # "alice" is the hub here, and "bob" a site: sites have no way to each other
        if not hasattr(type(self), "server"):
            type(self).server = LocalServer(tmp_path_factory.mktemp("contract"), "alice", ["bob"])
        type(self).server.start()

    @classmethod
    def teardown_class(cls) -> None:
        cls.server.kill()

    server: LocalServer

    async def connect(self) -> tuple[Transport, Transport]:
        alice, bob = [
            await NatsTransport.connect(self.server.urls, self.server.tls_of(name), name)
            for name in ("alice", "bob")
        ]
        return alice, bob

    async def disconnect(self, alice: Transport, bob: Transport) -> None:
        for end in (alice, bob):
            assert isinstance(end, NatsTransport)
            await end.close()


def test_traffic_is_counted_by_peer(server: LocalServer) -> None:
    async def play() -> None:
        async with parties(server, "hub", "alice", "bob") as (hub, alice, bob):
            await hub.send("alice", bytes(10))
            await bob.send("hub", bytes(20))
            assert await alice.receive(2) == bytes(10)
            assert await hub.receive(2) == bytes(20)
            assert (hub.sent_bytes, hub.received_bytes) == ({"alice": 10}, {"bob": 20})
            assert alice.received_bytes == {"hub": 10}

    asyncio.run(play())


def test_what_is_no_datagram_and_no_name_is_refused(server: LocalServer) -> None:
    async def play() -> None:
        async with parties(server, "hub") as (hub,):
            with pytest.raises(InputError, match="larger"):
                await hub.send("alice", bytes(MAX_DATAGRAM + 1))
            for name in ("*", ">", "a.b", "a b", ""):
                with pytest.raises(InputError):
                    await hub.send(name, b"x")

    asyncio.run(play())


def test_a_server_that_comes_back_is_found_again_and_said_so(tmp_path: Path) -> None:
    async def play() -> None:
        with LocalServer(tmp_path, "hub", ["alice"]) as server:
            async with parties(server, "hub", "alice") as (hub, alice):
                back, gone = asyncio.Event(), asyncio.Event()
                alice.on_reconnect, alice.on_loss = back.set, gone.set
                await asyncio.to_thread(server.kill)
                async with asyncio.timeout(10):
                    await gone.wait()
                assert not alice.connected
                await alice.send("hub", b"lost")
                assert alice.dropped == 1
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(10):
                    await back.wait()
                    while not hub.connected:
                        await asyncio.sleep(0.05)
                await alice.send("hub", b"again")
                assert await hub.receive(5) == b"again"

    asyncio.run(play())


def test_a_sender_does_not_hang_when_its_connection_is_lost_under_load(tmp_path: Path) -> None:
    async def play() -> None:
        with LocalServer(tmp_path, "hub", ["alice"]) as server:
            async with parties(server, "hub", "alice") as (hub, _):

                async def pour() -> None:
                    while hub.connected:
                        await hub.send("alice", bytes(1 << 20))

                pouring = asyncio.create_task(pour())
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.kill)
                async with asyncio.timeout(5):
                    await pouring

    asyncio.run(play())


@pytest.mark.parametrize("busy", [False, True])
def test_a_connection_that_only_seems_to_be_there_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """As where a cable is cut: nobody says that the connection has ended, and what is sent stays."""
    monkeypatch.setattr(module, "_PING_EVERY", 0.2)
    monkeypatch.setattr(module, "_SILENCE", 1.0)

    async def play() -> None:
        with LocalServer(tmp_path, "hub", ["alice"]) as server:
            async with parties(server, "hub") as (hub,):
                gone, back = asyncio.Event(), asyncio.Event()
                hub.on_loss, hub.on_reconnect = gone.set, back.set
                os.kill(server.pid(), signal.SIGSTOP)
                try:
                    async with asyncio.timeout(10):
                        while busy and not gone.is_set():
                            await hub.send("alice", bytes(1 << 20))
                        await gone.wait()
                finally:
                    os.kill(server.pid(), signal.SIGCONT)
                async with asyncio.timeout(15):
                    await back.wait()

    asyncio.run(play())


def test_a_quiet_connection_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PING_EVERY", 0.1)
    monkeypatch.setattr(module, "_SILENCE", 0.5)

    async def play() -> None:
        with LocalServer(tmp_path, "hub", ["alice"]) as server:
            async with parties(server, "hub") as (hub,):
                lost: list[bool] = []
                hub.on_loss = lambda: lost.append(True)
                await asyncio.sleep(1.5)
                assert not lost

    asyncio.run(play())


def test_what_is_not_taken_is_dropped_beyond_a_bound(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INCOMING", 3000)

    async def play() -> None:
        async with parties(server, "hub", "alice") as (hub, alice):
            for number in range(5):
                await hub.send("alice", bytes([number]) * 1000)
            async with asyncio.timeout(5):
                while alice.dropped < 2:
                    await asyncio.sleep(0.01)
            assert [await alice.receive(0.1) for _ in range(4)] == [
                *(bytes([number]) * 1000 for number in range(3)),
                None,
            ]
            await hub.send("alice", b"there is room again")
            assert await alice.receive(2) == b"there is room again"

    asyncio.run(play())


def test_of_several_servers_one_that_is_there_is_taken(server: LocalServer) -> None:
    async def play() -> None:
        urls = ["tls://127.0.0.1:1", *server.urls]
        hub = await NatsTransport.connect(urls, server.tls_of("hub"), "hub")
        assert hub.connected
        await hub.close()
        assert not hub.connected
        await hub.close()

    asyncio.run(play())


def test_a_server_that_is_not_there_is_said_in_one_sentence(server: LocalServer) -> None:
    async def play() -> None:
        with pytest.raises(StorageError, match="no server could be reached") as caught:
            await NatsTransport.connect("tls://127.0.0.1:1", server.tls_of("hub"), "hub", patience=0.5)
        assert str(caught.value).count("\n") == 0
        assert "127.0.0.1:1" in caught.value.where

    asyncio.run(play())


@pytest.mark.parametrize("url", ["nats://127.0.0.1:4222", "127.0.0.1:4222", "ws://localhost"])
def test_only_addresses_with_tls_are_taken(server: LocalServer, url: str) -> None:
    with pytest.raises(InputError, match="tls://"):
        asyncio.run(NatsTransport.connect(url, server.tls_of("hub"), "hub"))


def test_a_wrong_passphrase_is_told_at_once(server: LocalServer) -> None:
    files = TlsFiles.in_folder(server.network("hub"), "wrong")
    with pytest.raises(PassphraseError):
        asyncio.run(NatsTransport.connect(server.urls, files, "hub"))
    assert "wrong" not in repr(files)


def test_importing_the_room_imports_no_client_library() -> None:
    code = "import sys, cloister.runtime.nats; print('nats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
