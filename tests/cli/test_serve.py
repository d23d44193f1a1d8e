"""`cloister serve` and `cloister clients`: a release, a token, a private client, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.homes import PASSPHRASE, be, make_homes
from tests.enclave.attester.machine import needs_swtpm
from tests.governance.releases import World, identity, make_world
from tests.runtime.workers.walls import needs_walls

from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy
from cloister.inference.client import PrivateClient
from cloister.policy import sign_toml

LENIENT = 'kinds = ["tpm"]\nallow_software_tee = true\nallow_self_reported = true\n'
START = "from cloister.cli.start import main; raise SystemExit(main())"
ROW = {"age": 40, "pressure": 120.5, "pain": "none"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("serve"))
    people = (world.hub, *world.sites, identity("server"))
    make_homes(world.root, {each.name: each for each in people})
    world.release()
    path = world.root / "server" / "policy" / "enclave.toml"
    path.parent.mkdir()
    path.write_text(LENIENT)
    owner = Identity.load(world.root / "server" / "identity.json", PASSPHRASE)
    sign_toml(path, EnclavePolicy, ENCLAVE_POLICY, [owner])
    return world


@pytest.fixture(autouse=True)
def _as_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be(monkeypatch, world.root, "server")
    yield
    (world.root / "server" / "clients.toml").unlink(missing_ok=True)


def started(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start `cloister serve` and return it with what it says of itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    text = ""
    while line := process.stdout.readline():
        text += line
        if line == "}\n":
            return process, json.loads(text)
    process.wait(30)
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_release_is_served_to_whoever_has_a_token(
    world: World, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    needs_walls()
    needs_swtpm()
    assert run(["clients", "add", "ward"]) == 0
    token = capsys.readouterr().out.strip()
    process, facts = started(str(world.root / "release"), "--allow-swap")
    with process:
        try:
            assert (facts["kind"], facts["hardware"], facts["clients"]) == ("table", False, 1)
            policy = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)
            with PrivateClient(facts["url"], policy, token=token) as client:
                answer = client.post("http://private/v1/score", json={"rows": [ROW]})
                assert answer.status_code == 200, answer.text
                assert set(answer.json()["predictions"][0]) == {"prediction", "probability"}
                assert client.verified is not None
                assert client.verified.keys.digest.hex() == facts["keys"]
            with PrivateClient(facts["url"], policy, token="clst-nobody's") as client:
                assert client.post("http://private/v1/score", json={"rows": [ROW]}).status_code == 401
        finally:
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "NOT HARDWARE-PROTECTED" in said
    assert said.splitlines()[-1] == "Ended after 2 answers."
    assert token not in said


@pytest.mark.slow
def test_a_sealed_release_is_served_with_the_key_in_the_keystore(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needs_walls()
    needs_swtpm()
    sealed = str(tmp_path / "sealed")
    assert run(["model", "seal", str(world.root / "release"), "--out", sealed, "--name", "risk"]) == 0
    capsys.readouterr()
    process, facts = started(sealed, "--anyone", "--allow-swap")
    with process:
        try:
            assert (facts["kind"], facts["model"], facts["clients"]) == ("table", "risk", None)
            policy = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)
            with PrivateClient(facts["url"], policy, model_digest=facts["model_digest"]) as client:
                answer = client.post("http://private/v1/score", json={"rows": [ROW]})
                assert answer.status_code == 200, answer.text
        finally:
            process.terminate()
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Anybody may ask." in said


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert run(["serve", *arguments]) == code
    return capsys.readouterr().err


def test_what_is_not_served(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    needs_swtpm()
    release = str(world.root / "release")
    assert "nobody may ask yet" in refused(capsys, release)
    assert "exclude each other" in refused(capsys, release, "--anyone", "--clients", "x")
    assert "go together" in refused(capsys, release, "--anyone", "--tls-cert", "x")
    assert "a model or an engine" in refused(capsys, "--anyone")
    assert "a model or an engine" in refused(capsys, release, "--anyone", "--engine", "http://127.0.0.1:1")
    assert "on this machine" in refused(capsys, "--anyone", "--engine", "http://models.example:8000")
    assert "on GPUs" in refused(capsys, release, "--anyone", "--accelerators", "1")
    (tmp_path / "config.json").write_text("{}")
    assert "in the clear on this disk" in refused(capsys, str(tmp_path), "--anyone", code=3)
    assert "there is no model here" in refused(capsys, str(tmp_path / "nothing"), "--anyone")
    assert "certificate cannot be used" in refused(
        capsys, release, "--anyone", "--tls-cert", "none.pem", "--tls-key", "none.key"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(capsys, release, "--anyone", "--port", str(taken.getsockname()[1]))
    assert "the port cannot be had: Address already in use (127.0.0.1:" in said
    assert "vouch" not in said  # what is wrong shows before evidence is made, or a model loaded


@pytest.mark.slow
def test_two_services_of_one_home_and_an_engine_that_is_not_there_yet(world: World) -> None:
    needs_walls()
    needs_swtpm()
    first, facts = started(str(world.root / "release"), "--anyone", "--allow-swap")
    with first:
        try:
            second, further = started("--engine", "http://127.0.0.1:9", "--anyone", "--allow-swap")
            with second:
                second.terminate()
                _, said = second.communicate(timeout=60)
        finally:
            first.terminate()
            first.communicate(timeout=60)
    assert facts["keys"] != further["keys"]
    assert "Nothing answers at 127.0.0.1 9 yet" in said
    assert "evidence covers the worker before it" in said
    assert first.returncode == 0
    assert second.returncode in (0, 130)  # 130 where it was told before it began to answer


def test_clients_come_and_go(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    assert run(["clients", "add", "ward", "--file", str(path), "--json"]) == 0
    token = json.loads(capsys.readouterr().out)["token"]
    assert token.startswith("clst-")
    assert len(token) == 48
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert run(["clients", "add", "ward", "--file", str(path)]) == 2
    assert run(["clients", "add", "lab", "--file", str(path)]) == 0
    capsys.readouterr()
    assert run(["clients", "ls", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "ward\nlab\n"
    assert run(["clients", "rm", "ward", "--file", str(path)]) == 0
    assert run(["clients", "rm", "ward", "--file", str(path)]) == 2
    capsys.readouterr()
    assert run(["clients", "ls", "--file", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"clients": ["lab"]}
    assert run(["clients", "ls"]) == 0
    assert capsys.readouterr().out == "Nobody may ask.\n"
