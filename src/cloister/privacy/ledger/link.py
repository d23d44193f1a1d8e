"""A process's link to whoever writes the ledger, found anew whenever it is lost.

`call` sends one request and returns its answer. Where the link breaks, before or after the request was
carried out, it is made again to the next writer, which may be this process; the request carries an id, so it
takes effect once. Answers are believed only from a writer that has proved that it holds the owner's keys.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.crypto import Identity
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.privacy.ledger.counting import Counters
from cloister.privacy.ledger.wire import (
    Done,
    Greeting,
    Hello,
    Refused,
    Request,
    Welcome,
    challenge,
    decode_reply,
    encode,
    frame,
    receive,
    refusal,
)
from cloister.privacy.ledger.writer import Writer, socket_path

__all__ = ["PATIENCE", "Link"]

PATIENCE: Final = 60.0
"""Seconds that a request waits for a writer before it gives up."""
_STEP: Final = 0.005


class Link:
    """Calls the writer of `folder`, or becomes it; may be used by several threads.

    Args:
        folder: the ledger's; it exists.
        identity: the owner.
        successions: how the identity followed earlier ones.
        counters: where the ledger's counter is, for when this process is the writer.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        successions: Sequence[bytes],
        counters: Counters | None = None,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._successions = tuple(successions)
        self._counters = counters
        self._turn = threading.Lock()
        self._socket: socket.socket | None = None
        self._writer: Writer | None = None
        self._process = os.getpid()
        self._closed = False
        self.writer_pid = 0

    def call(self, request: Request, kind: Any = None) -> Any:
        """Return the answer to a request.

        Args:
            request: complete.
            kind: the type of the answer; None where there is none.

        Raises:
            CloisterError: it was refused; or no writer could be had, and then it is unknown whether it took
                effect: nothing may be released on it.
        """
        try:
            message = frame(encode(request))
        except UnicodeEncodeError:
            raise InputError("a name is not text", fix="Use Unicode text") from None
        reply = self._exchange(message)
        if isinstance(reply, Refused):
            raise refusal(reply)
        return msgspec.msgpack.decode(reply.value, type=kind)

    def connect(self) -> None:
        """See that there is a writer. Raises as `call`."""
        with self._turn:
            self._linked(time.monotonic() + PATIENCE)

    def close(self) -> None:
        """Leave; if this process is the writer, another may take over."""
        with self._turn:
            self._closed = True
            self._unlink()
            if self._writer is not None and self._process == os.getpid():
                self._writer.close()
            self._writer = None

    def _exchange(self, message: bytes) -> Done | Refused:
        deadline = time.monotonic() + PATIENCE
        with self._turn:
            while True:
                link = self._linked(deadline)
                try:
                    link.settimeout(max(_STEP, deadline - time.monotonic()))
                    link.sendall(message)
                    return decode_reply(receive(link))
                except (OSError, EOFError):
                    self._unlink()
                except BaseException:  # an interrupt: the reply would be taken for the next request's
                    self._unlink()
                    raise

    def _linked(self, deadline: float) -> socket.socket:
        """Return a socket to a writer that has proved itself; at the deadline raise StorageError."""
        if self._closed:
            raise InputError("the ledger was closed", fix="Open it again")
        if self._process != os.getpid():  # a forked child: link and writer are its parent's
            self._unlink()
            self._process, self._writer = os.getpid(), None
        while self._socket is None:
            try:
                self._socket = self._greet(max(_STEP, deadline - time.monotonic()))
            except (OSError, EOFError):
                self._take_over()
                if time.monotonic() > deadline:
                    raise StorageError(
                        "the process that writes the ledger does not answer",
                        where=str(self._folder),
                        fix="End it; another takes over by itself",
                    ) from None
        return self._socket

    def _take_over(self) -> None:
        """Become the writer if nobody is; otherwise wait a moment for whoever is."""
        if self._writer is not None:
            self._writer.close()
        self._writer = Writer.elect(self._folder, self._identity, self._successions, self._counters)
        if self._writer is None:
            time.sleep(_STEP)

    def _greet(self, timeout: float) -> socket.socket:
        """Return a new socket after both sides have proved themselves."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(timeout)
            with socket_path(self._folder) as path:
                link.connect(path)
            greeting = _decoded(receive(link), Greeting)
            nonce = os.urandom(32)
            proof = self._identity.sign(challenge(b"client", greeting.nonce, nonce, greeting.ledger))
            link.sendall(frame(encode(Hello(nonce, self._identity.fingerprint, proof))))
            answer = _decoded(receive(link), Welcome | Refused)
            if isinstance(answer, Refused):
                raise refusal(answer)
            self._identity.public.verify(
                answer.signature, challenge(b"writer", greeting.nonce, nonce, greeting.ledger)
            )
        except BaseException:
            link.close()
            raise
        self.writer_pid = greeting.pid
        return link

    def _unlink(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntegrityError(
            "what answers at the ledger's socket is not its writer", fix="Remove it, and see who made it"
        ) from None
