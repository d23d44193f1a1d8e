"""Open sockets to an engine on this machine, for a worker that can open none.

    worker   Connections.connect()     asks with one byte, gets a connected socket
    front    Connector                 connects to one fixed address, hands the socket over, keeps no copy

Invariants:
- the address is fixed before the worker runs, and on this machine: 127.0.0.1, ::1, localhost, or the path
  of a Unix socket; a worker cannot say where to, only when;
- the worker looks who is at the other end of what it was handed, and uses nothing else;
- the front keeps no copy: it reads nothing of what is said there.

What it does not do: what goes over loopback is in the clear, and whoever administers the machine can read it
there. An engine belongs in the same enclave as its service; evidence has to cover both.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cloister.errors import InputError, StorageError

__all__ = ["Address", "Connections", "Connector"]

_ASK: Final = b"c"
_GIVEN: Final = b"s"
_NONE: Final = b"n"
_SECONDS: Final = 10.0
_HOSTS: Final = {"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "::1": "::1"}


@dataclass(frozen=True)
class Address:
    """Where an engine answers.

    Attributes:
        host: "127.0.0.1" or "::1"; empty for a Unix socket.
        port: of TCP; 0 for a Unix socket.
        path: of a Unix socket; empty for TCP.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in "http://127.0.0.1:8000", with or without a path "/" or "/v1", or in
        "unix:/run/engine.sock".

        Raises:
            InputError: it is none, or leads off this machine.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
                raise InputError("the path of a Unix socket is absolute and short", where=text[:200])
            return cls(path=path)
        try:
            parts = urlsplit(text)
            host, port = _HOSTS.get(parts.hostname or ""), parts.port or 80
        except ValueError:
            raise InputError("the engine's address is none", where=text[:200], fix=_FIX) from None
        if host is None:
            raise InputError(
                "an engine is asked in the clear, so it must be on this machine", where=text[:200], fix=_FIX
            )
        odd = parts.query or parts.fragment or parts.username or parts.password
        if parts.scheme != "http" or odd or parts.path not in ("", "/", "/v1", "/v1/"):
            raise InputError("the engine's address is none", where=text[:200], fix=_FIX)
        return cls(host=host, port=port)

    @property
    def peer(self) -> str:
        """What `socket.getpeername` says of a connection to it."""
        return self.path or f"{self.host} {self.port}"

    def connect(self) -> socket.socket:
        """Return a connected socket; of TCP, one that delays nothing. Raises OSError."""
        if self.path:
            made = socket.socket(socket.AF_UNIX)
            target: object = self.path
        else:
            made = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
            target = (self.host, self.port)
        try:
            made.settimeout(_SECONDS / 2)
            made.connect(target)  # type: ignore[arg-type]  # one of the two forms of its family
            made.settimeout(None)
            if not self.path:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            made.close()
            raise
        return made


_FIX: Final = "Give http://127.0.0.1:PORT, or unix:/path/of/its/socket"


class Connector:
    """The front's end: a thread that connects, as often as it is asked.

    Args:
        sock: this end of the pair.
        address: where to.
    """

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._socket, self._address = sock, address
        self._thread = threading.Thread(target=self._serve, name="cloister-connect", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(1):
                try:
                    made = self._address.connect()
                except OSError:
                    self._socket.sendall(_NONE)
                    continue
                with made:
                    socket.send_fds(self._socket, [_GIVEN], [made.fileno()])


class Connections:
    """The worker's end. Several threads may use it.

    Args:
        sock: on the one descriptor over which the worker may be handed sockets.
        peer: what the other end of each must be: `Address.peer`.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._socket, self._peer, self._lock = sock, peer, threading.Lock()
        sock.settimeout(_SECONDS)

    def connect(self) -> socket.socket:
        """Return a socket that is connected to the engine; blocks for as long as that takes.

        Raises:
            StorageError: the engine does not answer, or what was handed over leads elsewhere.
        """
        with self._lock:
            try:
                self._socket.sendall(_ASK)
                said, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
            except OSError as error:
                raise StorageError("the engine cannot be reached: nobody connects to it") from error
        if said != _GIVEN or len(descriptors) != 1:
            raise StorageError("the engine does not answer", fix="See whether it runs")
        try:
            made = socket.socket(fileno=descriptors[0])
        except OSError:
            os.close(descriptors[0])
            raise StorageError("what was handed over is no socket") from None
        with contextlib.suppress(OSError):
            if made.type & socket.SOCK_STREAM and _name(made.getpeername()) == self._peer:
                return made
        made.close()
        raise StorageError("what was handed over is no connection to the engine")


def _name(peer: object) -> str:
    if isinstance(peer, bytes | str):
        return peer.decode("utf-8", "replace") if isinstance(peer, bytes) else peer
    return f"{peer[0]} {peer[1]}" if isinstance(peer, tuple) else ""
