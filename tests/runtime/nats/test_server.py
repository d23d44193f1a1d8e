from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import InputError, StorageError
from cloister.runtime.nats import (
    Cluster,
    Leaf,
    LocalServer,
    Tls,
    server_config,
    server_program,
)

TLS = Tls(Path("/etc/a.pem"), Path('/etc/with "quotes" and $dollar/s.pem'), Path("/etc/s.key"))


def text(**changed: object) -> str:
    settings: dict[str, object] = {"name": "n1", "hub": "hub", "sites": ["a", "b"], "tls": TLS}
    return server_config(**(settings | {"store": Path("/var/nats")} | changed))  # type: ignore[arg-type]


def checked(config: str, folder: Path) -> str:
    """What the server itself says to a configuration."""
    (folder / "c.conf").write_text(config)
    done = subprocess.run([server_program(), "-t", "-c", folder / "c.conf"], capture_output=True, text=True)
    return done.stderr + done.stdout


def test_the_server_takes_every_kind_of_configuration(tmp_path: Path) -> None:
    for name in ("server", "other"):
        with LocalServer(tmp_path / name, "hub", ["a", "b"]):
            pass
    folder = tmp_path / "server"
    tls = Tls(folder / "server-authority.pem", folder / "server.pem", folder / "server.key")
    cluster = Cluster("c", "127.0.0.1", 6222, ["127.0.0.1:6223"], tls)
    for extra in ({}, {"cluster": cluster}, {"leaf": Leaf("127.0.0.1", 7422)}, {"sites": []}):
        assert "is valid" in checked(text(tls=tls, store=tmp_path / "store", **extra), tmp_path)


def test_a_path_stays_one_value(tmp_path: Path) -> None:
    assert r'cert_file: "/etc/with \"quotes\" and $dollar/s.pem"' in text()
    with pytest.raises(InputError, match="control character"):
        text(store=Path("/a\nport: 1"))


@pytest.mark.parametrize("sites", [["a", "a"], ["hub"], ["A"], ["a.b"], ["*"], [">"], ['a"']])
def test_names_are_one_each_and_harmless(sites: list[str]) -> None:
    with pytest.raises(InputError):
        text(sites=sites)


def test_what_decides_over_safety_is_in_the_text() -> None:
    config = text(leaf=Leaf("127.0.0.1", 7422))
    assert config.count('min_version: "1.3"') == 2
    assert config.count("verify_and_map: true") == 2
    assert config.count("handshake_first: true") == 2
    assert "password" not in config
    assert "sync_interval: always" in config


def test_a_server_stops_starts_again_and_is_killed(tmp_path: Path) -> None:
    server = LocalServer(tmp_path, "hub", ["a"])
    with pytest.raises(InputError, match="does not run"):
        server.pid()
    with server:
        first = server.pid()
        server.start()
        assert server.pid() == first
        server.stop()
        server.start()
        assert server.pid() != first
        last = server.pid()
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    server = LocalServer(tmp_path, "hub", ["a"])
    (tmp_path / "server.key").write_text("no key")
    with pytest.raises(StorageError, match=r"does not start: .*(?i:certificate|key)"), server:
        pass


def test_without_the_program_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no nats-server"):
        server_program()
