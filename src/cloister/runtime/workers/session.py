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
from typing import Final, Protocol

from cloister.crypto import HoldsSecret, Identity, PublicIdentity, sha256
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import SMALL, Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    Answer,
    BrokerAsk,
    BrokerSays,
    Confined,
    EvidenceGiven,
    EvidenceWanted,
    Failed,
    Key,
    KeyWanted,
    Meet,
    Prepare,
    Question,
    decode_answer,
    encode,
)

__all__ = ["KeyLender", "Lends", "Running", "Session", "StartWorker"]

_START_SECONDS: Final = 120.0
_MAX_IDENTITY: Final = 16 << 10
_ERRORS: Final = {
    cls.__name__: cls
    for cls in (InputError, IntegrityError, PlanError, PolicyRefused, StorageError, VerificationError)
}


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


class KeyLender(HoldsSecret):
    """Gives a worker the data keys of one dataset, as often as its columns can need.

    Args:
        data_key: opens one of the dataset's data keys.
        columns: that the dataset has.
    """

    def __init__(self, data_key: Callable[[bytes], bytes], columns: int) -> None:
        self._data_key, self._left = data_key, 4 * (columns + 2)

    def lend(self, wrapped: bytes) -> bytes:
        """Return a data key. Raises ProtocolError where there were too many, IntegrityError as the vault."""
        if self._left <= 0:
            raise ProtocolError("the worker asked for more keys than its rows have")
        self._left -= 1
        return self._data_key(wrapped)

    def carry(self, asked: BrokerAsk) -> BrokerSays:
        """Raise ProtocolError: no broker keeps this key."""
        raise ProtocolError("the worker asked for a broker that its rows do not have")

    def attest(self, wanted: EvidenceWanted) -> EvidenceGiven:
        """Raise ProtocolError: nobody asks a worker of this site for evidence."""
        raise ProtocolError("the worker asked for evidence that nobody wants of it")


class Lends(Protocol):
    """Answers what a worker needs to open one dataset: a `KeyLender`, or a `KeyCarrier` to a broker."""

    def lend(self, wrapped: bytes) -> bytes:
        """Return a data key."""

    def carry(self, asked: BrokerAsk) -> BrokerSays:
        """Return what the broker of the dataset answers."""

    def attest(self, wanted: EvidenceWanted) -> EvidenceGiven:
        """Return evidence of this machine."""


class Session:
    """A worker that was started, met and confined.

    Args:
        start: starts the process.
        identity: the site's own keys; what it asks is signed with them.
        study: digest of the plan, to which the session is bound, 32 bytes.
        read: folders that the worker may read.
        torch: whether it is to import torch before the walls go up.
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
        torch: bool = False,
        code: bool = False,
    ) -> None:
        self._code, self._used_rows = code, False
        self._lock = threading.Lock()
        self._why: str | None = None
        running = self._running = start()
        self._finalizer = weakref.finalize(self, running.close)
        try:
            meet = Meet(identity.public.to_json(), study)
            send_clear(running.socket, encode(meet))
            self.identity = PublicIdentity.from_json(
                recv_clear(running.socket, _MAX_IDENTITY, _START_SECONDS)
            )
            link = Link(identity, self.identity, study, initiator=True, auto_grant=False)
            self._channel = Channel(link, running.socket)
            self._channel.open(_START_SECONDS)
        except Gone as error:
            refusal = running.refusal()
            self._ended(error)
            raise refusal from None
        except BaseException as error:  # raised again: the worker ends with it
            raise self._ended(error) from error
        folders = [str(folder.resolve()) for folder in read]
        answer = self.ask(Prepare(folders, torch, _threads()))
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
        self._channel.send(encode(question))
        room = max(most, MAX_BROKERED + SMALL if lenders else SMALL)
        while True:
            answer = decode_answer(self._channel.receive(room))
            if not isinstance(answer, KeyWanted | BrokerAsk | EvidenceWanted):
                return answer
            if answer.dataset >= len(lenders):
                raise ProtocolError("the worker asked for a key that nothing it was asked needs")
            self._channel.send(encode(_given(lenders[answer.dataset], answer)))

    def _ended(self, error: BaseException) -> BaseException:
        """Kill what is left of the worker; return what says why, once and for all."""
        closed = self._why
        if isinstance(error, Gone):
            self._why = closed or f"the worker ended before its work was done{self._words()}"
            error = ProtocolError(self._why, fix="See whether the machine ran out of memory; start again")
        elif self._why is None:
            what = error.what if isinstance(error, CloisterError) else "its site was interrupted"
            self._why = f"the worker was ended: {what}"
        self._finalizer()
        return error

    def _words(self) -> str:
        why = self._running.why()
        return f" ({why})" if why else ""

    def _broken(self) -> BaseException:
        return self._ended(ProtocolError("the worker answered something else than it was asked"))

    def _error(self, failed: Failed) -> CloisterError:
        if self._code and self._used_rows:
            return PlanError(
                "the model's code failed on this site's rows; its words could hold values and are not shown",
                where="worker",
                fix="Try the file on rows of your own making",
            )
        what, where, fix = (_line(text) for text in (failed.what, failed.where, failed.fix))
        if failed.kind not in _ERRORS:
            return ProtocolError(f"{what} ({_line(failed.kind)})", fix=fix)
        return _ERRORS[failed.kind](what, where=where, fix=fix)


def _given(lender: Lends, wanted: KeyWanted | BrokerAsk | EvidenceWanted) -> Question:
    """Return what a worker needs to go on with opening its rows."""
    match wanted:
        case KeyWanted():
            return Key(lender.lend(wanted.wrapped))
        case BrokerAsk():
            return lender.carry(wanted)
        case EvidenceWanted():
            return lender.attest(wanted)


def _threads() -> int:
    """Return how many threads a library in this process would compute with."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), 4096) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
