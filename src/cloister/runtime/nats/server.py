"""NATS servers on this machine's loopback, for `cloister up`, tests and benchmarks.

`LocalServer` makes an authority, certificates for every party and a configuration in a folder, and runs one
server or a cluster of them. It stops and starts again on the same ports with the same store, as a machine
that was switched off does.
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
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cloister.crypto import SECRET_ACCESS, ScryptCost
from cloister.errors import InputError, StorageError
from cloister.files import write_atomic
from cloister.runtime.nats.certificates import Authority, NetworkKey
from cloister.runtime.nats.serverconfig import Cluster, Leaf, Tls, server_config
from cloister.runtime.nats.tlsfiles import TlsFiles

__all__ = ["LocalServer", "server_program"]

_LOOPBACK: Final = "127.0.0.1"
_PATIENCE: Final = 15.0
_CHEAP: Final = ScryptCost(n=2**14)  # keys of a network that lives on one machine for a while


def server_program() -> Path:
    """Return where the NATS server's program is: beside this Python, where its wheel puts it, or on the PATH.

    Raises:
        InputError: it is nowhere.
    """
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise InputError("there is no nats-server", fix="Install it with `pip install 'cloister[nats]'`")
    return Path(found)


class LocalServer:
    """One NATS server, or a cluster of them, with certificates for a hub and its sites.

    Args:
        folder: everything goes there; made where missing.
        hub: the hub's name.
        sites: the sites' names.
        servers: how many; a cluster keeps its lease with one of three lost.
        passphrase: of the parties' network keys.
        leaf: whether organisations may connect servers of their own.
        cost: of a guess at the passphrase; give the usual one where it protects more than this network.

    Attributes:
        urls: the servers' addresses, as `NatsTransport.connect` takes them.
        ports, route_ports, leaf_ports: where each server listens for parties, for the others, for leaves.
        authority: which signs for the parties.
    """

    def __init__(
        self,
        folder: Path,
        hub: str,
        sites: Sequence[str],
        *,
        servers: int = 1,
        passphrase: str = "local",  # noqa: S107  # for a network on loopback
        leaf: bool = False,
        cost: ScryptCost = _CHEAP,
    ) -> None:
        self.folder = folder
        self._hub, self._sites = hub, tuple(sites)
        self._passphrase, self._cost = passphrase, cost
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * servers
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.authority = Authority.generate()
        ports = free_ports(3 * servers)
        self.ports, self.route_ports, self.leaf_ports = (tuple(ports[i::3]) for i in range(3))
        self.urls = tuple(f"tls://{_LOOPBACK}:{port}" for port in self.ports)
        self._write_certificates()
        for index in range(servers):
            write_atomic(self._config(index), self._text(index, leaf=leaf).encode(), mode=0o600)

    def _config(self, index: int) -> Path:
        return self.folder / f"server-{index}.conf"

    def _write_certificates(self) -> None:
        routes = Authority.generate("Cloister routes")
        for prefix, authority in (("server", self.authority), ("route", routes)):
            key = NetworkKey.generate()
            write_atomic(self.folder / f"{prefix}.key", key.to_pem(SECRET_ACCESS), mode=0o600)
            write_atomic(self.folder / f"{prefix}.pem", authority.server(key, [_LOOPBACK, "localhost"]))
            write_atomic(self.folder / f"{prefix}-authority.pem", authority.pem)
        for name in (self._hub, *self._sites):
            self._write_party(name)

    def _write_party(self, name: str) -> None:
        folder, key = self.network(name), NetworkKey.generate()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key.save(folder / "network.key", self._passphrase, cost=self._cost, replace=True)
        write_atomic(folder / "certificate.pem", self.authority.organisation(name, key.request(name)))
        write_atomic(folder / "authority.pem", self.authority.pem)

    def _tls(self, prefix: str) -> Tls:
        return Tls(
            self.folder / f"{prefix}-authority.pem",
            self.folder / f"{prefix}.pem",
            self.folder / f"{prefix}.key",
        )

    def _text(self, index: int, *, leaf: bool) -> str:
        cluster = None
        if len(self.ports) > 1:
            others = [f"{_LOOPBACK}:{port}" for port in self.route_ports]
            cluster = Cluster("local", _LOOPBACK, self.route_ports[index], others, self._tls("route"))
        return server_config(
            name=f"local-{index}",
            hub=self._hub,
            sites=self._sites,
            tls=self._tls("server"),
            store=self.folder / f"store-{index}",
            host=_LOOPBACK,
            port=self.ports[index],
            cluster=cluster,
            leaf=Leaf(_LOOPBACK, self.leaf_ports[index]) if leaf else None,
        )

    def network(self, name: str) -> Path:
        """Return the folder of a party's network files."""
        return self.folder / "parties" / name

    def tls_of(self, name: str) -> TlsFiles:
        """Return the network files of a party."""
        return TlsFiles.in_folder(self.network(name), self._passphrase)

    def start(self, index: int | None = None) -> None:
        """Start one server, or all, and return when they answer.

        Raises:
            StorageError: one does not start; the error ends with what it said last.
        """
        chosen = range(len(self.ports)) if index is None else (index,)
        for each in chosen:
            self._start(each)
        for each in chosen:
            self._wait(each)

    def _start(self, index: int) -> None:
        process = self._processes[index]
        if process is not None and process.poll() is None:
            return
        with (self.folder / f"server-{index}.log").open("ab") as log:
            self._processes[index] = subprocess.Popen(
                [server_program(), "-c", self._config(index)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the command that started it, which then stops it
            )

    def _wait(self, index: int) -> None:
        process, deadline = self._processes[index], time.monotonic() + _PATIENCE
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection((_LOOPBACK, self.ports[index]), 1.0).close()
                return
            time.sleep(0.02)
        self.kill(index)
        raise StorageError(
            f"the NATS server does not start: {self._last_words(index)}",
            where=str(self._config(index)),
            fix="See its log beside the configuration",
        )

    def _last_words(self, index: int) -> str:
        lines = (self.folder / f"server-{index}.log").read_text(errors="replace").split("\n")
        return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "it said nothing")

    def pid(self, index: int = 0) -> int:
        """Return the process id of a server that runs. Raises InputError where it does not."""
        process = self._processes[index]
        if process is None or process.poll() is not None:
            raise InputError("this server does not run", where=f"server {index}", fix="Start it")
        return process.pid

    def stop(self, index: int | None = None) -> None:
        """Stop one server, or all, in order."""
        self._end(index, signal.SIGTERM)

    def kill(self, index: int | None = None) -> None:
        """Kill one server, or all, as a power cut would."""
        self._end(index, signal.SIGKILL)

    def _end(self, index: int | None, number: signal.Signals) -> None:
        chosen = range(len(self._processes)) if index is None else (index,)
        running = [(each, process) for each in chosen if (process := self._processes[each]) is not None]
        for _, process in running:
            if process.poll() is None:
                os.kill(process.pid, number)
        for each, process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._processes[each] = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
