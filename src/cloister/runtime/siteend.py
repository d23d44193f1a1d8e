"""A site behind its link: datagrams in, datagrams out; no sockets, no clocks. `ends` has the hub's.

What does not verify is nobody's message and changes nothing. Where the plan asks for evidence, the site says
nothing but its nonce, and hears nothing else, before the hub's counts and its own was shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.enclave.evidence import Evidence
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.runtime.attestation import Attestation, Attesting, Question
from cloister.runtime.events import Event, EvidenceAccepted
from cloister.runtime.gate import check_attesting
from cloister.runtime.link import Link
from cloister.runtime.messages import (
    Attested,
    Challenge,
    Leave,
    Message,
    Stop,
    decode_message,
    encode_large,
)
from cloister.runtime.sumsite import SumSite
from cloister.types import RandomBytes

__all__ = ["SiteEnd"]


class SiteEnd:
    """A site and its link to the hub.

    Args:
        machine: the site.
        identity: the site's own keys.
        hub: the hub the plan names.
        study: 32-byte digest of the plan.
        least_term: a hub with an older lease is not listened to.
        attesting: what the site's worker shows, and how its owner judges the hub; needed where the plan asks
            for evidence.
        insecure_test_random: source of session keys in tests.

    Attributes:
        refused: datagrams that did not verify.
        distrusts: whether what was raised is about evidence: the hub learns `REFUSED` and no reason.

    Raises:
        PolicyRefused: the plan asks for evidence, and there is no `attesting`.
    """

    def __init__(
        self,
        machine: SumSite[Any],
        identity: Identity,
        hub: PublicIdentity,
        study: bytes,
        *,
        least_term: int = 0,
        attesting: Attesting | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self.machine = machine
        self._hub = hub
        self._attestation: Attestation | None = None
        seconds = machine.reattest_seconds
        if check_attesting(attesting, seconds, identity.name):
            assert attesting is not None and seconds is not None  # noqa: S101, PT018  # as just checked
            self._attestation = Attestation(
                attesting,
                identity,
                hub,
                study,
                hub=False,
                reattest_seconds=seconds,
                insecure_test_random=insecure_test_random,
            )
        self.link = Link(
            identity,
            hub,
            study,
            initiator=True,
            least_term=least_term,
            insecure_test_random=insecure_test_random,
        )
        self.refused = 0
        self.distrusts = False
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """Return what happened since this was last asked."""
        events, self._events = self._events, []
        return events

    def open(self, now: float) -> None:
        """Open a session, also in the place of one that broke."""
        self.link.open(now)

    def receive(self, datagram: Buffer, now: float) -> tuple[bool, list[Message]]:
        """Take a datagram.

        Returns:
            Whether a session opened, whose first message is the machine's `join` (with evidence, `show` says
            so instead); and what the hub said, in order.

        Raises:
            ProtocolError: the hub signed something that is no message, or that may not come.
            PolicyRefused: its evidence does not count.
        """
        try:
            received = self.link.receive(datagram, now)
        except CloisterError:  # anybody may have sent it
            self.refused += 1
            return False, []
        messages = [decode_message(payload, peer=self._hub.name) for payload in received.payloads]
        if self._attestation is None:
            if any(isinstance(message, Challenge | Attested) for message in messages):
                raise ProtocolError("asks for evidence that the plan does not ask for", peer=self._hub.name)
            return received.opened, messages
        if received.opened:
            self._send(self._attestation.open(self.link.session, now))
        return False, [message for message in messages if self._passes(message, self._attestation, now)]

    # --- evidence -------------------------------------------------------------------------------

    def _passes(self, message: Message, attestation: Attestation, now: float) -> bool:
        """Tell whether a message goes on to the machine."""
        match message:
            case Challenge():
                attestation.challenged(message, now)
            case Attested():
                try:
                    appraisal = attestation.attested(message, now)
                except PolicyRefused:
                    self.distrusts = True
                    raise
                self._events.append(EvidenceAccepted(self._hub.name, appraisal.kind, appraisal.protection))
            case Stop():  # whoever says so, this site can go
                return True
            case _ if not attestation.mutual:
                kind = type(message).__name__
                raise ProtocolError(f"sent {kind} before evidence was exchanged", peer=self._hub.name)
            case _:
                return True
        return False

    def tick(self, now: float) -> None:
        """Let time pass. Raises PolicyRefused where the hub's evidence has lapsed, or none came."""
        if self._attestation is None or self.link.session != self._attestation.session:
            return
        try:
            challenge = self._attestation.tick(now)
        except PolicyRefused:
            self.distrusts = True
            raise
        if challenge is not None:
            self._send(challenge)

    def question(self) -> Question | None:
        """Return, once, what evidence is due to; None where none is."""
        return None if self._attestation is None else self._attestation.question()

    def show(self, question: Question, evidence: Evidence) -> bool:
        """Send the evidence that was made for a question; nothing where its session is over.

        Returns:
            Whether the machine's `join` follows: it was the first in this session.
        """
        if self._attestation is None or self.link.session != question.session:
            return False
        first = not self._attestation.mutual
        attested = self._attestation.show(question, evidence)
        if attested is None:
            return False
        self._send(attested)
        return first

    def answer(self, messages: Sequence[Message]) -> None:
        """Send these to the hub; before evidence was exchanged in this session, only that it leaves."""
        mutual = self._attestation is None or self._attestation.mutual
        for message in messages:
            if mutual or isinstance(message, Leave):
                self._send(message)

    def _send(self, message: Message) -> None:
        self.link.send(encode_large(message))

    def take(self, datagram: Buffer, now: float) -> None:
        """Take a datagram and answer it. Raises as the machine does, where the hub broke the protocol."""
        opened, messages = self.receive(datagram, now)
        if (question := self.question()) is not None:
            opened |= self.show(question, question.evidence())
        if opened:
            self.answer([self.machine.join()])
        for message in messages:
            self.answer(self.machine.handle(message))

    def poll(self, now: float) -> Iterator[bytes]:
        """Yield datagrams for the hub while there is something to send."""
        while (datagram := self.link.poll(now)) is not None:
            yield datagram
