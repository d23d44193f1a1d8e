from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE

from cloister.crypto import Identity, canonical_bytes, open_envelope, sign_envelope
from cloister.errors import StorageError
from cloister.runtime.nats import NatsTransport, TlsFiles, certificates, server_program
from cloister.runtime.nats.enrolment import REQUEST_TYPE, Request

HUB, SITE, OPERATOR = "ann", "ben", "eve"


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "ScryptCost", lambda *given: type(CHEAP)(*given) if given else CHEAP)


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return int(found.getsockname()[1])


def ask(cloister: Command, homes: Path, name: str, *more: str) -> Path:
    path = homes / "work" / f"{name}.request"
    ending = cloister("keys", "network", "request", "--out", path, *more, home=homes / name)
    assert ending.code == 0, ending.err
    return path


def issued(cloister: Command, homes: Path, *more: object, out: str = "net") -> Path:
    """Ann's hub and Ben's site ask, Eve lets them in; return the folder."""
    hub, site = ask(cloister, homes, HUB, "--force"), ask(cloister, homes, SITE, "--force")
    arguments = ["--hub", hub, "--site", site, "--host", "127.0.0.1", "--out", homes / "work" / out, *more]
    ending = cloister("keys", "network", "issue", *arguments, "--json", home=homes / OPERATOR)
    assert ending.code == 0, ending.err
    assert ending.json["parties"] == [HUB, SITE]
    return homes / "work" / out


def install(cloister: Command, homes: Path, net: Path, name: str, *more: str) -> None:
    bundle = net / "bundles" / f"{name}.json"
    ending = cloister("keys", "network", "install", bundle, *more, home=homes / name)
    assert ending.code == 0, ending.err


@contextmanager
def running(folder: Path, port: int) -> Iterator[str]:
    """Start the server as the manual says: in its folder."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [server_program(), "-c", "nats-server.conf"], cwd=folder, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.05)
        yield f"tls://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tls(homes: Path, name: str) -> TlsFiles:
    return TlsFiles.in_folder(homes / name / "network", PASSPHRASE)


def carries(homes: Path, url: str) -> None:
    """Hub and site exchange a datagram over the server."""

    async def play() -> None:
        hub = await NatsTransport.connect(url, tls(homes, HUB), HUB)
        site = await NatsTransport.connect(url, tls(homes, SITE), SITE)
        try:
            await site.send(HUB, b"from the site")
            assert await hub.receive(5) == b"from the site"
            await hub.send(SITE, b"from the hub")
            assert await site.receive(5) == b"from the hub"
        finally:
            await hub.close()
            await site.close()

    asyncio.run(play())


def test_request_issue_install_and_the_network_carries(homes: Path, cloister: Command, port: int) -> None:
    net = issued(cloister, homes, "--port", str(port))
    for name in (HUB, SITE):
        install(cloister, homes, net, name)
    for key in ("server.key", "nats-server.conf"):
        assert (net / key).stat().st_mode & 0o077 == 0
    assert net.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in (homes / HUB / "network").iterdir()) == [
        "authority.pem",
        "certificate.pem",
        "network.key",
    ]
    with running(net, port) as url:
        carries(homes, url)


def test_the_operator_can_let_in_another_under_the_same_authority(
    homes: Path, cloister: Command, port: int
) -> None:
    net = issued(cloister, homes, "--port", str(port))
    for name in (HUB, SITE):
        install(cloister, homes, net, name)
    again = [f"--site={ask(cloister, homes, OPERATOR)}", f"--port={port}"]
    requests = [
        "--hub",
        ask(cloister, homes, HUB, "--force"),
        "--site",
        ask(cloister, homes, SITE, "--force"),
    ]
    more = homes / "work" / "more"
    ending = cloister(
        "keys",
        "network",
        "issue",
        *requests,
        *again,
        "--host=127.0.0.1",
        "--out",
        more,
        home=homes / OPERATOR,
    )
    assert ending.code == 0, ending.err
    with running(more, port) as url:
        carries(homes, url)  # with what was installed before


def test_a_waiting_request_does_not_take_a_party_off_the_network(
    homes: Path, cloister: Command, port: int
) -> None:
    net = issued(cloister, homes, "--port", str(port))
    for name in (HUB, SITE):
        install(cloister, homes, net, name)
    before = (homes / SITE / "network" / "network.key").read_bytes()
    newer = issued(cloister, homes, "--port", str(port), out="newer")
    assert (homes / SITE / "network" / "network.key").read_bytes() == before
    with running(net, port) as url:
        carries(homes, url)
    install(cloister, homes, newer, SITE)
    assert (homes / SITE / "network" / "network.key").read_bytes() != before
    install(cloister, homes, newer, SITE)  # twice does no harm
    with running(newer, port) as url:
        carries(homes, url)


def test_a_request_made_twice_is_for_one_key(homes: Path, cloister: Command) -> None:
    first = ask(cloister, homes, SITE)
    refused = cloister("keys", "network", "request", "--out", first)
    assert (refused.code, "--force" in refused.err) == (2, True)
    kept = first.with_name("kept")
    shutil.copy(first, kept)
    ask(cloister, homes, SITE, "--force")
    arguments = ["--hub", ask(cloister, homes, HUB), "--site", kept, "--host", "localhost"]
    net = homes / "work" / "net"
    ending = cloister("keys", "network", "issue", *arguments, "--out", net, home=homes / OPERATOR)
    assert ending.code == 0, ending.err
    install(cloister, homes, net, SITE)


def issue_with(cloister: Command, homes: Path, request: Path, *more: str) -> tuple[int, str]:
    hub = ask(cloister, homes, HUB, "--force")
    out = homes / "work" / "refused"
    arguments = ["--hub", hub, "--site", request, "--host", "localhost", "--out", out, *more]
    ending = cloister("keys", "network", "issue", *arguments, home=homes / OPERATOR)
    assert not out.exists()
    return ending.code, ending.err


def test_a_request_of_nobody_trusted_is_refused(homes: Path, cloister: Command) -> None:
    stranger = Identity.generate(SITE)  # under the name of one who is
    stranger.save(homes / "stranger" / "identity.json", PASSPHRASE, cost=CHEAP)
    path = ask(cloister, homes, "stranger")
    code, said = issue_with(cloister, homes, path)
    assert (code, "not signed by one identity that is trusted" in said) == (1, True)
    assert not (homes / OPERATOR / "operator").exists()


def test_a_request_for_anothers_name_is_refused(
    homes: Path, people: dict[str, Identity], cloister: Command
) -> None:
    csr = certificates.NetworkKey.generate().request(HUB).decode()
    path = homes / "work" / "forged"
    path.write_bytes(sign_envelope(REQUEST_TYPE, canonical_bytes(Request(HUB, csr)), [people[SITE]]))
    code, said = issue_with(cloister, homes, path)
    assert (code, "certificate of another" in said) == (1, True)
    path.write_bytes(sign_envelope(REQUEST_TYPE, canonical_bytes(Request(SITE, csr)), [people[SITE]]))
    code, said = issue_with(cloister, homes, path)
    assert (code, "for another name" in said) == (1, True)


@pytest.mark.parametrize("change", ["altered", "other type", "unknown field", "garbage"])
def test_a_request_that_is_none_is_refused(
    homes: Path, people: dict[str, Identity], cloister: Command, change: str
) -> None:
    path = ask(cloister, homes, SITE)
    ben = people[SITE]
    payload = open_envelope(path.read_bytes(), REQUEST_TYPE, {ben.fingerprint: ben.public.verify_key})
    if change == "altered":
        envelope = json.loads(path.read_bytes())
        envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
        path.write_text(json.dumps(envelope))
    elif change == "other type":
        path.write_bytes(sign_envelope("application/json", payload, [ben]))
    elif change == "unknown field":
        more = json.dumps(json.loads(payload) | {"admin": True}).encode()
        path.write_bytes(sign_envelope(REQUEST_TYPE, more, [ben]))
    else:
        path.write_bytes(b"\x00garbage")
    code, said = issue_with(cloister, homes, path)
    assert code == 1
    assert said.count("\n") == 1


def test_the_same_party_twice_is_refused(homes: Path, cloister: Command) -> None:
    code, said = issue_with(cloister, homes, ask(cloister, homes, HUB))
    assert (code, "one name" in said) == (2, True)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--cluster"], "three servers"),
        (["--port", "6222"], "one port"),
        (["--host", "a b"], "neither a host name"),
    ],
)
def test_what_does_not_fit_is_said(homes: Path, cloister: Command, more: list[str], expected: str) -> None:
    code, said = issue_with(cloister, homes, ask(cloister, homes, SITE), *more)
    assert (code, expected in said) == (2, True)


def test_bundles_that_do_not_fit_change_nothing(homes: Path, cloister: Command) -> None:
    net = issued(cloister, homes)
    folder = homes / SITE / "network"

    def refused(bundle: Path, *more: str) -> str:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        ending = cloister("keys", "network", "install", bundle, *more, home=homes / SITE)
        assert ending.code in (1, 2)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        return ending.err

    mine, other = net / "bundles" / f"{SITE}.json", net / "bundles" / f"{HUB}.json"
    assert "this bundle is for" in refused(other)
    assert "fingerprint is another" in refused(mine, "--operator", "00" * 32)
    garbage = homes / "work" / "garbage"
    garbage.write_bytes(b"{}")
    assert "not a bundle" in refused(garbage)
    mixed = json.loads(mine.read_text()) | {"certificate": json.loads(other.read_text())["certificate"]}
    garbage.write_text(json.dumps(mixed))
    assert "another name or key" in refused(garbage)
    foreign = certificates.Authority.generate("Cloister network").pem.decode()
    garbage.write_text(json.dumps(json.loads(mine.read_text()) | {"authority": foreign}))
    assert "another authority" in refused(garbage)
    no_pem = json.loads(mine.read_text()) | {"certificate": "nothing"}
    garbage.write_text(json.dumps(no_pem))
    assert "Traceback" not in refused(garbage)


def test_another_operator_needs_a_word(homes: Path, cloister: Command) -> None:
    net = issued(cloister, homes)
    fingerprint = json.loads(cloister_json(cloister, homes, net))["operator"]
    shutil.rmtree(homes / OPERATOR / "operator")
    other = issued(cloister, homes, out="other")
    bundle = other / "bundles" / f"{SITE}.json"
    ending = cloister("keys", "network", "install", bundle, home=homes / SITE)
    assert (ending.code, "another operator" in ending.err) == (2, True)
    assert fingerprint[:16] in ending.err
    install(cloister, homes, other, SITE, "--replace")


def cloister_json(cloister: Command, homes: Path, net: Path) -> str:
    bundle = net / "bundles" / f"{SITE}.json"
    ending = cloister("keys", "network", "install", bundle, "--json", home=homes / SITE)
    assert ending.code == 0
    again = cloister(
        "keys", "network", "install", bundle, "--operator", ending.json["operator"].upper(), home=homes / SITE
    )
    assert (again.code, again.err) == (0, "")
    return ending.out


def test_install_without_a_request(homes: Path, cloister: Command) -> None:
    net = issued(cloister, homes)
    shutil.rmtree(homes / SITE / "network")
    ending = cloister("keys", "network", "install", net / "bundles" / f"{SITE}.json", home=homes / SITE)
    assert (ending.code, "keys network request" in ending.err) == (2, True)


def test_a_party_of_another_operator_is_not_let_in(homes: Path, cloister: Command, port: int) -> None:
    net = issued(cloister, homes, "--port", str(port))
    shutil.rmtree(homes / OPERATOR / "operator")
    other = issued(cloister, homes, "--port", str(port), out="other")
    install(cloister, homes, other, SITE)
    shutil.copy(net / "ca.pem", homes / SITE / "network" / "authority.pem")  # it takes the server for its own

    async def play(url: str) -> None:
        with pytest.raises(StorageError):
            await NatsTransport.connect(url, tls(homes, SITE), SITE, patience=2)

    with running(net, port) as url:
        asyncio.run(play(url))


def test_no_secret_is_shown(homes: Path, cloister: Command) -> None:
    hub, site = ask(cloister, homes, HUB), ask(cloister, homes, SITE)
    assert b"PRIVATE" not in hub.read_bytes() + site.read_bytes()
    arguments = ["--hub", hub, "--site", site, "--host", "localhost", "--out", homes / "work" / "net"]
    ending = cloister("keys", "network", "issue", *arguments, home=homes / OPERATOR)
    assert "PRIVATE" not in ending.out + ending.err
    assert PASSPHRASE not in ending.out + ending.err
    for path in (homes / "work" / "net").rglob("*"):
        if path.is_file() and path.name != "server.key":
            assert b"PRIVATE" not in path.read_bytes()
    assert (
        b"ENCRYPTED PRIVATE" in (homes / OPERATOR / "operator" / "authority" / "authority.key").read_bytes()
    )


def test_a_clusters_machines_get_a_folder_each(homes: Path, cloister: Command) -> None:
    more = ["--host", "nats-2.example.org", "--host", "::1", "--cluster", "--leaf-port", "7422"]
    net = issued(cloister, homes, *more)
    machines = sorted(path.name for path in net.iterdir() if path.name.startswith("server-"))
    assert machines == ["server-0-127.0.0.1", "server-1-nats-2.example.org", "server-2-..1"]
    texts = [(net / machine / "nats-server.conf").read_text() for machine in machines]
    assert all("nats-route://nats-2.example.org:6222" in text for text in texts)
    assert all("nats-route://[::1]:6222" in text for text in texts)
    authorities = {(net / machine / "route-ca.pem").read_bytes() for machine in machines}
    assert len(authorities) == 1
    assert authorities != {(net / machines[0] / "ca.pem").read_bytes()}
    for machine in machines:
        checked = subprocess.run(
            [server_program(), "-c", "nats-server.conf", "-t"], cwd=net / machine, capture_output=True
        )
        assert checked.returncode == 0, checked.stderr
