"""Datasets whose keys a broker keeps: the worker asks the broker through its site, which only carries.

What the broker releases is sealed to a key that the worker made and that the evidence vouches for, so the
site that carries it cannot read it. The site gives the evidence, for it has the TPM; that evidence commits to
the worker's key and to what it wants.

What the evidence commits to the site writes itself: this broker, the nonce it saw the broker give, this
dataset, plan and purpose; the worker's key alone is the worker's to say. Code in a worker that chose report
data freely could have the machine vouch for other rows, for another study, or for a hub or worker of its own
making. How often evidence is made is bounded, and with it how many uses of a grant one worker can spend.

    worker   PipeBroker     an `Exchange` and an `Attests` over the worker's channel
    site     KeyCarrier     in the place of a `KeyLender`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from cloister.crypto import HoldsSecret, PublicIdentity
from cloister.enclave.broker import Attests, Connect, Exchange, Wanted
from cloister.enclave.broker.grant import wanted_report_data
from cloister.enclave.broker.messages import Challenge, decode_reply
from cloister.enclave.evidence import Evidence
from cloister.errors import InputError, ProtocolError
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

_ATTESTATIONS: Final = 4
"""How often one worker is vouched for: once, and again where the broker was started anew."""


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
        wanted: the one thing its worker may be vouched for.
        columns: that the dataset has; they bound how often a worker may ask.
    """

    def __init__(self, access: BrokerAccess, wanted: Wanted, columns: int) -> None:
        self._access, self._wanted = access, wanted
        self._exchange: Exchange | None = None
        self._nonce: bytes | None = None
        self._left, self._vouched = 8 * (columns + 4), 0

    def lend(self, wrapped: bytes) -> bytes:
        """Raise ProtocolError: there is nothing here to lend."""
        raise ProtocolError("the worker asked its site for a key that a broker keeps")

    def carry(self, asked: BrokerAsk) -> BrokerSays:
        """Return what the broker answers. Raises StorageError where it cannot be reached."""
        self._count()
        if asked.fresh or self._exchange is None:
            self.close()
            self._exchange = self._access.connect()
        answer = self._exchange.exchange(asked.message)
        self._nonce = _challenged(answer)
        return BrokerSays(answer)

    def attest(self, wanted: EvidenceWanted) -> EvidenceGiven:
        """Return evidence for what this dataset's worker may want, by the broker's last challenge.

        Raises:
            ProtocolError: the broker has not just challenged, or the worker was vouched for too often.
            CloisterError: as the attester does.
        """
        self._count()
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise ProtocolError("the worker asked for evidence that its broker did not ask for")
        if self._vouched == _ATTESTATIONS:
            raise ProtocolError("the worker asked for evidence more often than it can need")
        self._vouched += 1
        data = wanted_report_data(self._access.identity.fingerprint, nonce, wanted.key, self._wanted)
        return EvidenceGiven(self._access.attester.attest(data).to_json())

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def _count(self) -> None:
        if self._left <= 0:
            raise ProtocolError("the worker asked for more keys than its rows have")
        self._left -= 1


def _challenged(answer: bytes) -> bytes | None:
    """Return the nonce of a broker's challenge; None for any other answer."""
    try:
        reply = decode_reply(answer)
    except InputError:
        return None  # what it is, the worker says
    return reply.nonce if isinstance(reply, Challenge) else None


class PipeBroker:
    """The worker's side: a connection to the broker, and evidence, both through the site.

    Args:
        channel: to the site.
        dataset: 0 for the training rows, 1 for the held-out ones.

    Attributes:
        key: the public HPKE key that evidence is for; set once it is made.
    """

    def __init__(self, channel: Channel, dataset: int) -> None:
        self._channel, self._dataset, self._fresh = channel, dataset, True
        self.key = b""

    def connect(self) -> PipeBroker:
        """Return the beginning of a fresh connection."""
        return PipeBroker(self._channel, self._dataset)

    def exchange(self, message: bytes) -> bytes:
        """Return the broker's answer."""
        answer = self._asked(BrokerAsk(self._dataset, message, self._fresh), BrokerSays)
        self._fresh = False
        return answer.message

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence for `key`; the site writes the report data, which is `report_data` between the two
        that are honest. Where it is not, the broker refuses the evidence."""
        return Evidence.from_json(
            self._asked(EvidenceWanted(self._dataset, self.key), EvidenceGiven).document
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
