"""Workers for tests: a twin in a thread of this process, without walls, and one that says what it is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, ProtocolError
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    Answer,
    Confined,
    Meet,
    Prepare,
    Question,
    decode_question,
    encode,
)
from cloister.runtime.workers.serve import serve
from cloister.runtime.workers.session import Running

Says = Callable[[Question], Answer | bytes | None]


class Twin:
    """A `Running` whose other end is served by a thread."""

    def __init__(self, run: Callable[[socket.socket], None]) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.closed = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[socket.socket], None]) -> None:
        try:
            run(self.theirs)
        except Gone:
            pass
        except CloisterError as error:
            self.error = error
        finally:
            self.theirs.close()

    def why(self) -> str:
        return "a twin"

    def refusal(self) -> CloisterError:
        return ProtocolError("the twin did not come up")

    def close(self) -> None:
        self.closed += 1
        self.socket.close()
        self._thread.join(10)


def inside(scratch: Path) -> Callable[[], Running]:
    """Return what starts real workers in threads, without walls."""
    return lambda: Twin(lambda sock: serve(sock, lambda read: (scratch, {"walls": False})))


class Scripted:
    """Starts a worker that answers as a test says; it is honest until it is prepared.

    Attributes:
        asked: what the site asked.
        link: the worker's, for a test that misuses it.
    """

    def __init__(self, says: Says) -> None:
        self._says = says
        self.asked: list[Question] = []
        self.channel: Channel | None = None
        self.twin: Twin | None = None

    def __call__(self) -> Running:
        self.twin = Twin(self._run)
        return self.twin

    def _run(self, sock: socket.socket) -> None:
        meet = msgspec.msgpack.decode(recv_clear(sock, 1 << 16, None), type=Meet)
        identity, site = Identity.generate("worker"), PublicIdentity.from_json(meet.site)
        send_clear(sock, identity.public.to_json())
        channel = self.channel = Channel(Link(identity, site, meet.study, initiator=False), sock)
        while True:
            question = decode_question(channel.receive(1 << 30))
            self.asked.append(question)
            answer = Confined({}) if isinstance(question, Prepare) else self._says(question)
            if answer is None:
                return  # it dies
            channel.send(answer if isinstance(answer, bytes) else encode(answer))
            channel.flush()


def worker_of(guardian: int) -> int:
    """Return the process that a guardian guards."""
    return int(Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()[0])


def kill(guardian: int) -> None:
    """Kill the worker that a guardian guards, as a kernel short of memory would."""
    os.kill(worker_of(guardian), signal.SIGKILL)
