"""The elected writer: the one process of a home that changes its ledger, for itself and for the others.

Whoever holds the lock of the ledger's folder is the writer; the system frees the lock when a process ends,
however it ends, and then any of the others takes it. The writer serves a Unix socket in the folder, in a
thread of its own: each turn it reads all requests that have arrived and carries them out as one group, with
one signature and one commit. For those who were in the groups before it waits a fraction of a commit. A group
that fails ends the writer: everybody is told, the lock is freed, and whoever comes next reads the ledger from
the disk.

Who connects must run as the same user and prove that it holds the owner's keys; so does the writer.

Not covered: somebody who runs as the same user may stop or trace this process. A process that is stopped and
not ended keeps the lock, and the others wait for it, then give up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from cloister.crypto import Identity
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, StorageError
from cloister.privacy.ledger.counting import Counters
from cloister.privacy.ledger.engine import Engine
from cloister.privacy.ledger.wire import (
    MAX_MESSAGE,
    Greeting,
    Hello,
    Reply,
    Request,
    Welcome,
    challenge,
    encode,
    frame,
    frames,
    refused,
)

__all__ = ["Writer", "socket_path"]

_SOCKET: Final = "writer.sock"
_LONGEST_ADDRESS: Final = 100
_MAX_HELLO: Final = 4096
_PAUSE: Final = 0.05
"""Seconds without a request after which the head beside the folder is written."""
_AT_LEAST: Final = 1.0
"""Seconds after which it is written though requests go on."""
_GATHER: Final = 0.002
"""Seconds that a group waits at most for those who were in the groups before it."""
_CREDENTIALS: Final = struct.Struct("3i")
_LEFT_TO_PARENTS: Final[list[object]] = []
"""Writers of the process that this one was forked from: closing their file here would disturb its owner."""
_HELLO: Final = msgspec.msgpack.Decoder(Hello)
_REQUEST: Final = msgspec.msgpack.Decoder(Request)


@contextlib.contextmanager
def socket_path(folder: Path) -> Iterator[str]:
    """Yield the path of a folder's socket in few enough bytes for the system, which takes 107."""
    path = str(folder.absolute() / _SOCKET)
    if len(os.fsencode(path)) < _LONGEST_ADDRESS:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)


class _Peer:
    """A process at the other end of a socket; `nonce` is set until it has proved itself."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.nonce: bytes | None = os.urandom(32)


class Writer:
    """Serves one folder from a thread, from `elect` until `close` or until a group fails.

    Attributes:
        ended: set when it serves no more and the lock is free.
    """

    def __init__(self, folder: Path, lock: int, engine: Engine, identity: Identity) -> None:
        self.ended = threading.Event()
        self._folder = folder
        self._lock = lock
        self._engine = engine
        self._identity = identity
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(folder)
        self._waker, self._wake = socket.socketpair()
        self._peers: dict[int, _Peer] = {}
        self._stopping = False
        self._usual: tuple[set[_Peer], set[_Peer]] = (set(), set())
        self._cost = 0.0
        self._saved = time.monotonic()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="cloister-ledger", daemon=True)
        _leave_to_parent(self)
        self._thread.start()

    @classmethod
    def elect(
        cls,
        folder: Path,
        identity: Identity,
        successions: Sequence[bytes] = (),
        counters: Counters | None = None,
    ) -> Writer | None:
        """Return the writer of a folder, running; or None where another process, or another object, is it.

        Raises:
            LedgerInDoubt: the ledger is not what its owner signed.
            StorageError: the file system refused.
        """
        lock = _try_lock(folder)
        if lock is None:
            return None
        try:
            engine = Engine.open(folder, identity, successions=successions, counters=counters)
            try:
                return cls(folder, lock, engine, identity)
            except OSError as error:
                engine.close()
                raise StorageError(
                    f"cannot serve the ledger: {error.strerror}",
                    where=str(folder),
                    fix="Keep the home on a local disk",
                ) from None
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Finish the group at hand, then stop; return when another process may take over."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._waker.send(b"\x00")
        self._thread.join()
        self._waker.close()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._release()
            with contextlib.suppress(OSError):
                (self._folder / _SOCKET).unlink()
            try:
                self._engine.close()
            finally:
                os.close(self._lock)
                self.ended.set()

    def _turn(self) -> None:
        """Take what has arrived, as one group."""
        group = self._arrived(_PAUSE if self._engine.unsaved else None)
        if group:
            self._wait_for_usual(group)
            begin = time.monotonic()
            replies = self._carry_out([request for _, request in group])
            self._usual = (self._usual[1], {peer for peer, _ in group})
            self._cost = time.monotonic() - begin
            for (peer, _), reply in zip(group, replies, strict=True):
                self._send(peer, reply)
        if self._engine.unsaved and (not group or time.monotonic() - self._saved > _AT_LEAST):
            with contextlib.suppress(StorageError):  # an older head stays there, which is no harm
                self._engine.save_head()
            self._saved = time.monotonic()

    def _wait_for_usual(self, group: list[tuple[_Peer, Request]]) -> None:
        """Wait a fraction of a commit for those who were in the last groups: they mostly come at once."""
        deadline = time.monotonic() + min(_GATHER, self._cost / 4)
        missing = set.union(*self._usual) - {peer for peer, _ in group}
        while missing and (rest := deadline - time.monotonic()) > 0:
            more = self._arrived(rest)
            group += more
            missing -= {peer for peer, _ in more}

    def _arrived(self, timeout: float | None) -> list[tuple[_Peer, Request]]:
        """Return the requests that have arrived whole; wait for the first of them, or for a wake-up."""
        group: list[tuple[_Peer, Request]] = []
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is not self._wake:
                peer: _Peer = key.data
                if mask & selectors.EVENT_WRITE:
                    self._flush(peer)
                if mask & selectors.EVENT_READ:
                    group += ((peer, request) for request in self._read(peer))
        return group

    def _carry_out(self, requests: list[Request]) -> list[Reply]:
        try:
            return self._engine.handle(requests)
        except CloisterError as error:
            ending: CloisterError = error
        except Exception as error:  # noqa: BLE001  # everybody of the group waits for an answer
            ending = StorageError(
                f"the ledger met an error it did not expect ({type(error).__name__})",
                where=str(self._folder),
                fix="Try again; what was written before counts",
            )
        self._stopping = True
        return [refused(ending)] * len(requests)

    def _accept(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        link.setblocking(False)
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] not in (os.getuid(), 0):
            link.close()
            return
        peer = _Peer(link)
        self._peers[link.fileno()] = peer
        self._selector.register(link, selectors.EVENT_READ, peer)
        self._queue(peer, encode(Greeting(peer.nonce or b"", self._engine.book.ledger, os.getpid())))

    def _read(self, peer: _Peer) -> Iterator[Request]:
        """Yield the requests that have arrived whole."""
        try:
            data = peer.link.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        peer.incoming += data
        try:
            for message in frames(peer.incoming, _MAX_HELLO if peer.nonce else MAX_MESSAGE):
                if peer.nonce is not None:
                    self._meet(peer, message, peer.nonce)
                else:
                    yield _REQUEST.decode(message)
        except (CloisterError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            known = (
                error
                if isinstance(error, PolicyRefused)
                else InputError("the ledger does not know a request")
            )
            self._send(peer, refused(known))
            self._drop(peer)

    def _meet(self, peer: _Peer, message: bytes, nonce: bytes) -> None:
        """Check that a client holds the owner's keys; prove the same."""
        hello = _HELLO.decode(message)
        ledger = self._engine.book.ledger
        try:
            if hello.fingerprint != self._identity.fingerprint:
                raise IntegrityError("another identity")
            self._identity.public.verify(hello.signature, challenge(b"client", nonce, hello.nonce, ledger))
        except IntegrityError:
            raise PolicyRefused(
                "the ledger belongs to another identity",
                where=str(self._folder),
                fix=f"Use its owner's, or wait until the process {os.getpid()} ends if you have new keys",
            ) from None
        peer.nonce = None
        proof = self._identity.sign(challenge(b"writer", nonce, hello.nonce, ledger))
        self._queue(peer, encode(Welcome(proof)))

    def _send(self, peer: _Peer, reply: Reply) -> None:
        if peer.link.fileno() >= 0:
            self._queue(peer, encode(reply))

    def _queue(self, peer: _Peer, message: bytes) -> None:
        peer.outgoing += frame(message)
        self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        try:
            del peer.outgoing[: peer.link.send(peer.outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        if self._selector.get_key(peer.link).events != events:
            self._selector.modify(peer.link, events, peer)

    def _drop(self, peer: _Peer) -> None:
        for group in self._usual:
            group.discard(peer)
        if peer.link.fileno() >= 0:
            del self._peers[peer.link.fileno()]
            self._selector.unregister(peer.link)
            peer.link.close()

    def _release(self) -> None:
        """Close all sockets; also what a forked child does with its copies."""
        for peer in self._peers.values():
            peer.link.close()
        self._peers.clear()
        self._listener.close()
        self._wake.close()
        self._selector.close()

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent, whose lock would outlive it."""
        self._release()
        self._waker.close()
        os.close(self._lock)
        _LEFT_TO_PARENTS.append(self)


def _leave_to_parent(writer: Writer) -> None:
    reference = weakref.ref(writer)

    def forget() -> None:
        found = reference()
        if found is not None and not found.ended.is_set():
            found.forget()

    os.register_at_fork(after_in_child=forget)


def _try_lock(folder: Path) -> int | None:
    """Return the descriptor that holds the folder's lock, or None where somebody else has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(
            f"cannot open the ledger's folder: {error.strerror}",
            where=str(folder),
            fix="Check its permissions",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _listen(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        (folder / _SOCKET).unlink(missing_ok=True)
        with socket_path(folder) as path:
            listener.bind(path)
        listener.listen(128)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
