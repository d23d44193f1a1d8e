"""Attacks on the network, against a real server: who has no certificate, a foreign one, or one's own and bad
intentions."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from cloister.crypto import SECRET_ACCESS, ScryptCost
from cloister.errors import StorageError
from cloister.runtime.nats import Authority, LocalServer, NatsTransport, NetworkKey, TlsFiles


def raw_context(server: LocalServer, name: str | None) -> ssl.SSLContext:
    if name is not None:
        return server.tls_of(name).client_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(server.network("hub") / "authority.pem")
    return context


def first_words(server: LocalServer, context: ssl.SSLContext, *, port: int | None = None) -> bytes:
    """What the server says to whoever connects so; b"" or an OSError where it says nothing."""
    with (
        socket.create_connection(("127.0.0.1", port or server.ports[0]), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        line.settimeout(5)
        return line.recv(4096)


def assert_refused(server: LocalServer, context: ssl.SSLContext, *, port: int | None = None) -> None:
    try:
        said = first_words(server, context, port=port)
    except TimeoutError:
        raise
    except OSError:
        said = b""
    assert said == b""


def foreign(folder: Path, server: LocalServer, name: str) -> TlsFiles:
    """Files of a party whose certificate is signed by an authority of its own."""
    key, authority = NetworkKey.generate(), Authority.generate()
    key.save(folder / "network.key", "x", cost=ScryptCost(n=2**14))
    (folder / "certificate.pem").write_bytes(authority.organisation(name, key.request(name)))
    shutil.copy(server.network("hub") / "authority.pem", folder)
    return TlsFiles.in_folder(folder, "x")


async def rogue(server: LocalServer, name: str) -> tuple[Client, list[str]]:
    """A client with a party's own certificate that does as it likes, and what the server said to it."""
    said: list[str] = []

    async def note(error: Exception) -> None:
        said.append(str(error))

    client = Client()
    await client.connect(
        server.urls[0],
        tls=raw_context(server, name),
        tls_handshake_first=True,
        allow_reconnect=False,
        error_cb=note,
    )
    return client, said


async def wait_for_refusal(said: list[str]) -> None:
    async with asyncio.timeout(5):
        while not any("permissions violation" in words for words in said):
            await asyncio.sleep(0.01)


def test_one_with_a_certificate_is_let_in(server: LocalServer) -> None:
    assert first_words(server, raw_context(server, "alice")).startswith(b"INFO ")


def test_one_without_a_certificate_is_not(server: LocalServer) -> None:
    assert_refused(server, raw_context(server, None))


def test_one_with_a_certificate_of_another_authority_is_not(server: LocalServer, tmp_path: Path) -> None:
    files = foreign(tmp_path, server, "alice")
    assert_refused(server, files.client_context())
    with pytest.raises(StorageError, match="does not accept this party's certificate"):
        asyncio.run(NatsTransport.connect(server.urls, files, "alice", patience=1.0))


def test_one_whom_the_configuration_does_not_name_is_not(server: LocalServer, tmp_path: Path) -> None:
    key = NetworkKey.generate()
    key.save(tmp_path / "network.key", "x", cost=ScryptCost(n=2**14))
    certificate = server.authority.organisation("mallory", key.request("mallory"))
    (tmp_path / "certificate.pem").write_bytes(certificate)
    shutil.copy(server.network("hub") / "authority.pem", tmp_path)
    files = TlsFiles.in_folder(tmp_path, "x")
    with pytest.raises(StorageError, match="knows no organisation by this certificate"):
        asyncio.run(NatsTransport.connect(server.urls, files, "mallory", patience=1.0))


def test_an_older_tls_is_refused_at_both_ends(server: LocalServer) -> None:
    old = raw_context(server, "alice")
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|alert"):
        first_words(server, old)
    assert raw_context(server, "alice").minimum_version == ssl.TLSVersion.TLSv1_3


def test_the_server_says_nothing_in_the_clear(server: LocalServer) -> None:
    with socket.create_connection(("127.0.0.1", server.ports[0]), 5) as plain:
        plain.settimeout(0.5)
        with pytest.raises(TimeoutError):
            plain.recv(4096)


def test_a_server_that_wants_no_tls_gets_not_a_word(server: LocalServer) -> None:
    """Somebody on the wire answers for the server, in the clear, and says that TLS is not needed."""
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info: dict[str, Any] = {"server_id": "x", "version": "2.15.1", "max_payload": 1 << 20, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        heard.append(await reader.read(4096))
        writer.close()

    async def play() -> None:
        listening = await asyncio.start_server(pretend, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            with pytest.raises(StorageError):
                await NatsTransport.connect(
                    f"tls://127.0.0.1:{port}", server.tls_of("alice"), "alice", patience=1.0
                )

    asyncio.run(play())
    assert heard
    assert all(b"CONNECT" not in words and words[:1] == b"\x16" for words in heard)


def test_a_server_with_another_name_or_authority_is_not_spoken_to(
    server: LocalServer, tmp_path: Path
) -> None:
    with (
        LocalServer(tmp_path, "hub", ["alice"]) as other,
        pytest.raises(StorageError, match="certificate is not"),
    ):
        asyncio.run(NatsTransport.connect(other.urls, server.tls_of("hub"), "hub", patience=1.0))
    # an address of this machine that is not in the certificate
    url = server.urls[0].replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(StorageError):
        asyncio.run(NatsTransport.connect(url, server.tls_of("hub"), "hub", patience=1.0))


def test_the_certificate_of_a_party_does_not_pass_as_a_server(server: LocalServer, tmp_path: Path) -> None:
    pem = tmp_path / "alice.pem"
    key = NetworkKey.load(server.network("alice") / "network.key", "local")
    pem.write_bytes(key.to_pem(SECRET_ACCESS) + (server.network("alice") / "certificate.pem").read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def play() -> None:
        async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        listening = await asyncio.start_server(welcome, "127.0.0.1", 0, ssl=context)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            with pytest.raises(StorageError, match="certificate is not accepted"):
                await NatsTransport.connect(
                    f"tls://127.0.0.1:{port}", server.tls_of("bob"), "bob", patience=1.0
                )

    asyncio.run(play())


@pytest.mark.parametrize(
    "target",
    [
        "cloister.v1.hub.bob",  # in another's name
        "cloister.v1.bob.alice",  # to another site, in one's own
        "cloister.v1.bob.hub",  # to another site, in the hub's
        "cloister.v1.alice.hub",
        "$JS.API.INFO",
        "$KV.cloister-lease.study",
        "$SYS.REQ.SERVER.PING",
    ],
)
def test_a_site_publishes_only_to_the_hub_and_in_its_own_name(server: LocalServer, target: str) -> None:
    async def play() -> None:
        ends = [
            await NatsTransport.connect(server.urls, server.tls_of(name), name) for name in ("hub", "bob")
        ]
        client, said = await rogue(server, "alice")
        await client.publish(target, b"forged")
        await client.publish("cloister.v1.hub.alice", b"honest")
        await client.flush()
        await wait_for_refusal(said)
        assert await ends[0].receive(2) == b"honest"
        assert [await end.receive(0.05) for end in ends] == [None, None]
        for end in ends:
            await end.close()
        await client.close()

    asyncio.run(play())


@pytest.mark.parametrize(
    "source", ["cloister.v1.bob.>", "cloister.v1.*.hub", "cloister.v1.hub.>", ">", "_INBOX.>", "$SYS.>"]
)
def test_a_site_reads_only_what_is_for_it(server: LocalServer, source: str) -> None:
    async def play() -> None:
        hub = await NatsTransport.connect(server.urls, server.tls_of("hub"), "hub")
        client, said = await rogue(server, "alice")
        heard: list[bytes] = []

        async def hear(message: Any) -> None:
            heard.append(message.data)

        await client.subscribe(source, cb=hear)
        await client.flush()
        await wait_for_refusal(said)
        await hub.send("bob", b"for bob alone")
        await hub.client.flush()
        await client.flush()
        assert heard == []
        await client.close()
        await hub.close()

    asyncio.run(play())


def test_the_hub_does_not_write_in_the_name_of_a_site(server: LocalServer) -> None:
    async def play() -> None:
        bob = await NatsTransport.connect(server.urls, server.tls_of("bob"), "bob")
        client, said = await rogue(server, "hub")
        await client.publish("cloister.v1.bob.alice", b"forged")
        await client.flush()
        await wait_for_refusal(said)
        assert await bob.receive(0.1) is None
        await bob.close()
        await client.close()

    asyncio.run(play())


def test_a_party_does_not_pass_as_a_server_of_the_cluster(tmp_path: Path) -> None:
    with LocalServer(tmp_path, "hub", ["alice"], servers=3) as cluster:
        server = ssl.create_default_context(cafile=tmp_path / "route-authority.pem")
        server.load_cert_chain(tmp_path / "route.pem", tmp_path / "route.key")
        assert first_words(cluster, server, port=cluster.route_ports[0]).startswith(b"INFO ")
        party = raw_context(cluster, "alice")
        party.load_verify_locations(tmp_path / "route-authority.pem")
        assert_refused(cluster, party, port=cluster.route_ports[0])
