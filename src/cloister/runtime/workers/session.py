"""The site's side of a worker: it starts the process, asks, and believes no more than it must.

The worker may run code that wants to get at keys, at the network, or at the site. So:

- every answer has a bound that the site sets before it comes, and is parsed strictly;
- data keys are given out while a question that needs rows is open, those of the plan's datasets alone, and
  not more often than their columns can need;
- where a user's code has seen rows, the text of an error is not passed on: it could carry values to logs and
  to the hub. Elsewhere it is shortened to one printable line;
- a worker that breaks a rule is killed, and stays dead: nothing is tried again behind the owner's back.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cloister.crypto import Identity, sha256
from cloister.errors import CloisterError, PlanError, ProtocolError
from cloister.runtime.workers.asking import Lends, ended, error_of, given, meet
from cloister.runtime.workers.channel import SMALL, Gone
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    Answer,
    BrokerAsk,
    Confined,
    EvidenceWanted,
    Failed,
    Imports,
    KeyWanted,
    Prepare,
    Question,
    decode_answer,
    encode,
    encode_large,
)

__all__ = ["Running", "Session", "StartWorker", "threads"]


class Running(Protocol):
    """A worker's process.

    Attributes:
        socket: this end of the pair; closed by `close`.
    """

    socket: socket.socket

    def why(self) -> str:
        """Return in a few words how it ended, such as "signal 9"; empty where that is not known."""

    def refusal(self) -> CloisterError:
        """Return why it did not come up."""

    def close(self) -> None:
        """Kill it, if it lives, and remove what belonged to it. May be called again, from any thread."""


StartWorker = Callable[[], Running]
"""Starts a process that runs `serve`. Raises PolicyRefused where the machine lacks a wall."""


class Session:
    """A worker that was started, met and confined.

    Args:
        start: starts the process.
        identity: the site's own keys; what it asks is signed with them.
        study: digest of the plan, to which the session is bound, 32 bytes.
        read: folders that the worker may read.
        imports: what it is to import before the walls go up.
        code: whether a user's code will run in it.

    Attributes:
        identity: the worker's, made for this process; evidence can vouch for it.
        walls: those that stand around it, by name.

    Raises:
        PolicyRefused: the machine lacks a wall.
        ProtocolError: it did not come up.
    """

    def __init__(
        self,
        start: StartWorker,
        identity: Identity,
        study: bytes,
        *,
        read: Sequence[Path] = (),
        imports: Imports = "nothing",
        code: bool = False,
    ) -> None:
        self._code, self._used_rows = code, False
        self._lock = threading.Lock()
        self._why: str | None = None
        running = self._running = start()
        self._finalizer = weakref.finalize(self, running.close)
        try:
            self.identity, self._channel = meet(running.socket, identity, study)
        except Gone as error:
            refusal = running.refusal()
            self._ended(error)
            raise refusal from None
        except BaseException as error:  # raised again: the worker ends with it
            raise self._ended(error) from error
        folders = [str(folder.resolve()) for folder in read]
        answer = self.ask(Prepare(folders, imports, threads()))
        if not isinstance(answer, Confined):
            raise self._broken()
        self.walls = answer.walls

    @property
    def key_digest(self) -> bytes:
        """SHA-256 of the worker's public identity, which evidence for it binds; 32 bytes."""
        return sha256(self.identity.to_json())

    def ask(self, question: Question, *, most: int = SMALL, lenders: Sequence[Lends] = ()) -> Answer:
        """Return the worker's answer.

        Args:
            question: what is asked.
            most: bytes the answer may have.
            lenders: who gives out keys meanwhile, for the training rows and the held-out ones; empty where
                the question needs no rows.

        Raises:
            ProtocolError: the worker ended, or broke the protocol; it is dead now.
            CloisterError: what the worker ran into.
        """
        with self._lock:
            if self._why is not None:
                raise ProtocolError(self._why)
            self._used_rows |= bool(lenders)
            try:
                answer = self._carried(question, most, lenders)
            except BaseException as error:  # noqa: BLE001  # raised again: the worker ends with it
                raise self._ended(error) from None
        if isinstance(answer, Failed):
            raise self._error(answer)
        return answer

    def close(self) -> None:
        """Kill the worker. A question that is open elsewhere ends with an error."""
        self._why = self._why or "the worker was closed"
        self._finalizer()

    def _carried(self, question: Question, most: int, lenders: Sequence[Lends]) -> Answer:
        self._channel.send(encode_large(question))
        room = max(most, MAX_BROKERED + SMALL if lenders else SMALL)
        while True:
            answer = decode_answer(self._channel.receive(room))
            if not isinstance(answer, KeyWanted | BrokerAsk | EvidenceWanted):
                return answer
            if answer.dataset >= len(lenders):
                raise ProtocolError("the worker asked for a key that nothing it was asked needs")
            self._channel.send(encode(given(lenders[answer.dataset], answer)))

    def _ended(self, error: BaseException) -> BaseException:
        """Kill what is left of the worker; return what says why, once and for all."""
        if isinstance(error, Gone):
            gone = ended("its work was done", self._running.why())
            error = gone if self._why is None else ProtocolError(self._why, fix=gone.fix)
            self._why = self._why or gone.what
        elif self._why is None:
            what = error.what if isinstance(error, CloisterError) else "its site was interrupted"
            self._why = f"the worker was ended: {what}"
        self._finalizer()
        return error

    def _broken(self) -> BaseException:
        return self._ended(ProtocolError("the worker answered something else than it was asked"))

    def _error(self, failed: Failed) -> CloisterError:
        if self._code and self._used_rows:
            return PlanError(
                "the model's code failed on this site's rows; its words could hold values and are not shown",
                where="worker",
                fix="Try the file on rows of your own making",
            )
        return error_of(failed.kind, failed.what, failed.where, failed.fix)


def threads() -> int:
    """Return how many threads a library in this process would compute with."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), 4096) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))
