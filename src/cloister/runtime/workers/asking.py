"""What everybody does who starts a walled worker: meet it, lend it keys, word what it ran into.

A worker may run code that wants to get at keys, so who starts it believes no more than it must:

- a worker is met over a session between two identities, one of them made for this process, bound to what both
  are there for; before there is one nothing is said but who is who;
- keys are lent one by one, by somebody who counts them; where a broker keeps them, its messages are carried;
- an error is a class of ours, by name, and printable words; whoever knows that a user's code chose the words
  does not pass them on.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

from cloister.crypto import HoldsSecret, Identity, PublicIdentity
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PlanError,
    PolicyRefused,
    ProtocolError,
    SchemaError,
    StorageError,
    VerificationError,
)
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    BrokerAsk,
    BrokerSays,
    EvidenceGiven,
    EvidenceWanted,
    Key,
    KeyWanted,
    Meet,
    Question,
    encode,
)
from cloister.text import printable

__all__ = ["KeyLender", "Lends", "ended", "error_of", "given", "meet"]

_START_SECONDS: Final = 120.0
_MAX_IDENTITY: Final = 16 << 10
_ERRORS: Final = {
    cls.__name__: cls
    for cls in (InputError, IntegrityError, PlanError, PolicyRefused, StorageError, VerificationError)
}


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


def meet(sock: socket.socket, identity: Identity, bound: bytes) -> tuple[PublicIdentity, Channel]:
    """Return who the worker is, and an open channel to it.

    Args:
        sock: this end of the pair.
        identity: who asks.
        bound: what the session is for, 32 bytes.

    Raises:
        Gone: it has ended.
        InputError, IntegrityError, ProtocolError: it does not speak this protocol.
    """
    send_clear(sock, encode(Meet(identity.public.to_json(), bound)))
    worker = PublicIdentity.from_json(recv_clear(sock, _MAX_IDENTITY, _START_SECONDS))
    channel = Channel(Link(identity, worker, bound, initiator=True, auto_grant=False), sock)
    channel.open(_START_SECONDS)
    return worker, channel


def given(lender: Lends, wanted: KeyWanted | BrokerAsk | EvidenceWanted) -> Question:
    """Return what a worker needs to go on with opening what it was given. Raises as the lender does."""
    match wanted:
        case KeyWanted():
            return Key(lender.lend(wanted.wrapped))
        case BrokerAsk():
            return lender.carry(wanted)
        case EvidenceWanted():
            return lender.attest(wanted)


def ended(when: str, why: str) -> ProtocolError:
    """Return the error of a worker that ended before it should; `why` in a few words, or nothing."""
    return ProtocolError(
        f"the worker ended before {when}{f' ({why})' if why else ''}",
        fix="See whether the machine ran out of memory; start again",
    )


def error_of(kind: str, what: str, where: str, fix: str) -> CloisterError:
    """Return the error that a worker ran into, in its own words as far as they print."""
    what, where, fix = (printable(text) for text in (what, where, fix))
    if kind == SchemaError.__name__:  # its place is in `where` already
        return InputError(what, where=where, fix=fix)
    if kind not in _ERRORS:
        return ProtocolError(f"{what} ({printable(kind)})", fix=fix)
    return _ERRORS[kind](what, where=where, fix=fix)
