"""Datasets whose keys a broker keeps: the worker asks the broker through its site, which only carries.

What the broker releases is sealed to a key that the worker made and that the evidence vouches for, so the
site that carries it cannot read it. The site gives the evidence, for it has the TPM; that evidence commits to
the worker's key and to what it wants.

    worker   PipeBroker     an `Exchange` and an `Attests` over the worker's channel
    site     KeyCarrier     in the place of a `KeyLender`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cloister.crypto import HoldsSecret, PublicIdentity
from cloister.enclave.broker import Attests, Connect, Exchange
from cloister.enclave.evidence import Evidence
from cloister.errors import ProtocolError
from cloister.runtime.workers.channel import Channel
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    Answer,
    BrokerAsk,
    BrokerSays,
    EvidenceGiven,
    EvidenceWanted,
    decode_question,
    encode,
)

A = TypeVar("A", BrokerSays, EvidenceGiven)

__all__ = ["BrokerAccess", "KeyCarrier", "PipeBroker"]


@dataclass(frozen=True)
class BrokerAccess:
    """How a site's workers reach the broker that keeps keys of its datasets.

    Attributes:
        connect: opens a connection to it.
        identity: whose it must be.
        attester: makes evidence of this machine.
        holds: tells whether a KEK of this id is with the broker.
    """

    connect: Connect
    identity: PublicIdentity
    attester: Attests
    holds: Callable[[str], bool]


class KeyCarrier(HoldsSecret):
    """The site's side, for one dataset: carries messages, gives evidence, and has no key to lend.

    Args:
        access: to the broker.
        columns: that the dataset has; they bound how often a worker may ask.
    """

    def __init__(self, access: BrokerAccess, columns: int) -> None:
        self._access = access
        self._exchange: Exchange | None = None
        self._left = 8 * (columns + 4)

    def lend(self, wrapped: bytes) -> bytes:
        """Raise ProtocolError: there is nothing here to lend."""
        raise ProtocolError("the worker asked its site for a key that a broker keeps")

    def carry(self, asked: BrokerAsk) -> BrokerSays:
        """Return what the broker answers. Raises StorageError where it cannot be reached."""
        self._count()
        if asked.fresh or self._exchange is None:
            self.close()
            self._exchange = self._access.connect()
        return BrokerSays(self._exchange.exchange(asked.message))

    def attest(self, wanted: EvidenceWanted) -> EvidenceGiven:
        """Return evidence of this machine. Raises as the attester does."""
        self._count()
        return EvidenceGiven(self._access.attester.attest(wanted.report_data).to_json())

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _count(self) -> None:
        if self._left <= 0:
            raise ProtocolError("the worker asked for more keys than its rows have")
        self._left -= 1


class PipeBroker:
    """The worker's side: a connection to the broker, and evidence, both through the site.

    Args:
        channel: to the site.
        dataset: 0 for the training rows, 1 for the held-out ones.
    """

    def __init__(self, channel: Channel, dataset: int) -> None:
        self._channel, self._dataset, self._fresh = channel, dataset, True

    def connect(self) -> PipeBroker:
        """Return the beginning of a fresh connection."""
        return PipeBroker(self._channel, self._dataset)

    def exchange(self, message: bytes) -> bytes:
        """Return the broker's answer."""
        answer = self._asked(BrokerAsk(self._dataset, message, self._fresh), BrokerSays)
        self._fresh = False
        return answer.message

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence that carries `report_data`, 64 bytes."""
        return Evidence.from_json(
            self._asked(EvidenceWanted(self._dataset, report_data), EvidenceGiven).document
        )

    def alive(self) -> bool:
        """Return True: the site says so where the broker is gone."""
        return True

    def close(self) -> None:
        """Do nothing: the site closes the connection with the worker, or when another is wanted."""

    def _asked(self, question: Answer, kind: type[A]) -> A:
        self._channel.send(encode(question))
        answer = decode_question(self._channel.receive(MAX_BROKERED + 1024))
        if not isinstance(answer, kind):
            raise ProtocolError("gave the worker something else than what it asked its broker")
        return answer
