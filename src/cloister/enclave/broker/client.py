"""A client's side of one connection to a broker: who answers is the broker that was meant; orders are signed.

`Exchange` carries one message there and its answer back. Whoever carries it learns nothing and can change
nothing unnoticed: a site forwards its worker's messages as they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import msgspec

from cloister.crypto import Identity, PublicIdentity, keyring
from cloister.enclave.broker.messages import (
    Act,
    Ask,
    Challenge,
    Done,
    Hello,
    Refused,
    Released,
    Request,
    Welcome,
    act_bytes,
    decode_reply,
    done_bytes,
    encode,
    refusal,
    welcome_bytes,
)
from cloister.enclave.broker.ordermessages import (
    Order,
)
from cloister.errors import CloisterError, IntegrityError
from cloister.log import open_head

__all__ = ["Client", "Connect", "Exchange"]

R = TypeVar("R", Welcome, Challenge, Released, Done)


class Exchange(Protocol):
    """One connection to a broker."""

    def exchange(self, message: bytes, /) -> bytes:
        """Send a message; return its answer. Raises StorageError where there is none to be had."""

    def alive(self) -> bool:
        """Tell whether the other side is still there, as far as is known."""

    def close(self) -> None:
        """Close the connection."""


Connect = Callable[[], Exchange]
"""Opens a connection."""


class Client:
    """One connection, greeted.

    Args:
        exchange: a fresh connection.
        broker: whose it must be.

    Raises:
        IntegrityError: what answers is another broker, or none.
        StorageError: nothing answers.
    """

    def __init__(self, exchange: Exchange, broker: PublicIdentity) -> None:
        self.broker: Final = broker
        self._exchange = exchange
        self._nonce = os.urandom(32)
        self._number = 0
        welcome = self._ask(Hello(self._nonce), Welcome)
        self._theirs = welcome.nonce
        found = None
        with contextlib.suppress(CloisterError):
            found = PublicIdentity.from_json(welcome.identity)
        if found != broker:
            raise IntegrityError(
                "another key broker answers than the one that was meant",
                where=f"{found.name} {found.fingerprint[:16]}" if found else "",
                fix="Check the address, or name the broker's identity",
            )
        broker.verify(welcome.signature, welcome_bytes(self._nonce, welcome.nonce))

    def alive(self) -> bool:
        """Tell whether the broker has kept the connection, as far as is known."""
        return self._exchange.alive()

    def close(self) -> None:
        """Close the connection."""
        self._exchange.close()

    def challenge(self) -> bytes:
        """Return a fresh nonce for one release."""
        return self._ask(Ask(), Challenge).nonce

    def released(self, request: Request) -> Released:
        """Return what was released, the head of the broker's log checked.

        Raises:
            PolicyRefused: the broker refuses; the message says why.
            InputError: it does not know the KEK.
            IntegrityError: a wrapped key is not one of this KEK, or the answer is not the broker's.
        """
        answer = self._ask(request, Released)
        head = open_head(answer.head, keyring([self.broker]))
        if not answer.index < head.size:
            raise IntegrityError(
                "the key broker's log does not hold this release", fix="Do not use this broker"
            )
        return answer

    def order(self, order: Order, owner: Identity, kind: Any = None) -> Any:
        """Return the answer to an order; `kind` is its type.

        Raises:
            InputError: something in the order does not fit.
            PolicyRefused: the broker takes no such order from this owner.
            IntegrityError: the answer is not the broker's.
            StorageError: it could not be written, or no answer came: then it is unknown whether it was done.
        """
        body, number = encode(order), self._number
        self._number += 1
        signature = owner.sign(act_bytes(self._nonce, self._theirs, number, body))
        done = self._ask(Act(body, owner.fingerprint, signature), Done)
        signed = done_bytes(self._nonce, self._theirs, number, body, done.value)
        self.broker.verify(done.signature, signed)
        return msgspec.msgpack.decode(done.value, type=kind)

    def _ask(self, request: Request, kind: type[R]) -> R:
        answer = decode_reply(self._exchange.exchange(encode(request)))
        if isinstance(answer, Refused):
            raise refusal(answer)
        if not isinstance(answer, kind):
            raise IntegrityError(
                "the key broker gave another answer than was asked for", fix="Check its version"
            )
        return answer
