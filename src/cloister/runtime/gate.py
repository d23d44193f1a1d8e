"""A hub's gate: of a site whose evidence does not count, the hub's machine hears nothing but that it leaves.

One `Attestation` for each link. `Gate` says of every message whether it goes on to the machine, what is to be
sent, and whether a site is out. A site that is refused at its first evidence may come again in another
session; one that had been accepted before is out for good, as on revocation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cloister.crypto import Identity, PublicIdentity
from cloister.enclave.evidence import Evidence
from cloister.errors import PolicyRefused, ProtocolError
from cloister.runtime.appraisal import Appraised
from cloister.runtime.attestation import REFUSED, Attestation, Attesting, Question
from cloister.runtime.events import Event, EvidenceAccepted, Refused
from cloister.runtime.messages import Attested, Challenge, Leave, Message, Stop
from cloister.types import RandomBytes

__all__ = ["Gate", "Passage", "check_attesting"]


def check_attesting(attesting: Attesting | None, reattest_seconds: int | None, where: str) -> bool:
    """Tell whether evidence is shown and asked for. Raises PolicyRefused where it must be and cannot."""
    if reattest_seconds is None:
        return False
    if attesting is None:
        raise PolicyRefused(
            "the plan asks for evidence, and this party can neither show any nor judge the others'",
            where=where,
            fix="Set up an attester and write an enclave policy, or do not take part",
        )
    return True


@dataclass
class Passage:
    """What becomes of a message.

    Attributes:
        passes: whether it goes on to the machine.
        send: what the site is sent.
        events: what is reported.
        accepted: what is to be kept, where evidence was accepted with it.
        out: whether the site is shut out for good.
    """

    passes: bool = False
    send: list[Message] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    accepted: Appraised | None = None
    out: bool = False


class Gate:
    """A hub's attestations, by site.

    Args:
        attesting: what the hub shows, and how it judges.
        identity: the hub's own keys.
        sites: public identities by name.
        study: 32-byte digest of the plan.
        reattest_seconds: how old evidence may be.
        insecure_test_random: source of nonces in tests.

    Attributes:
        out: sites that are shut out for good.
    """

    def __init__(
        self,
        attesting: Attesting,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        study: bytes,
        *,
        reattest_seconds: float,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._of = {
            name: Attestation(
                attesting,
                identity,
                site,
                study,
                hub=True,
                reattest_seconds=reattest_seconds,
                insecure_test_random=insecure_test_random,
            )
            for name, site in sites.items()
        }
        self._known: set[str] = set()  # whose evidence was accepted once
        self._mute: dict[str, bytes] = {}  # sessions in which a site was refused
        self.out: set[str] = set()

    def opened(self, peer: str, session: bytes, now: float) -> list[Message]:
        """A session has opened: return what is to be asked in it."""
        self._mute.pop(peer, None)
        return [] if peer in self.out else [self._of[peer].open(session, now)]

    def closed(self, peer: str) -> None:
        """A session is over: what was accepted in it counts no more."""
        self._of[peer].close()

    def take(self, peer: str, message: Message, session: bytes, now: float) -> Passage:
        """Take what a site signed."""
        attestation = self._of[peer]
        if peer in self.out or self._mute.get(peer) == session:
            return Passage(passes=isinstance(message, Leave) and peer not in self.out)
        try:
            match message:
                case Challenge():
                    attestation.challenged(message, now)
                    return Passage()
                case Attested():
                    return self._accepted(peer, attestation, message, now)
                case Leave():
                    return Passage(passes=True)
                case _ if attestation.accepted is None:
                    kind = type(message).__name__
                    return Passage(events=[Refused(peer, f"sent {kind} before its evidence was accepted")])
                case _:
                    return Passage(passes=True)
        except ProtocolError as error:
            return Passage(events=[Refused(peer, str(error))])
        except PolicyRefused as error:
            return self._refuse(peer, error)

    def _accepted(self, peer: str, attestation: Attestation, message: Attested, now: float) -> Passage:
        appraisal = attestation.attested(message, now)
        self._known.add(peer)
        event = EvidenceAccepted(peer, appraisal.kind, appraisal.protection)
        return Passage(events=[event], accepted=attestation.appraised)

    def _refuse(self, peer: str, error: PolicyRefused) -> Passage:
        attestation = self._of[peer]
        self._mute[peer] = attestation.session
        attestation.close()
        out = peer in self._known
        if out:
            self.out.add(peer)
        return Passage(send=[Stop(REFUSED)], events=[Refused(peer, str(error))], out=out)

    def tick(self, peer: str, now: float) -> Passage:
        """Let time pass."""
        try:
            challenge = self._of[peer].tick(now)
        except PolicyRefused as error:
            return self._refuse(peer, error)
        return Passage(send=[] if challenge is None else [challenge])

    def questions(self) -> Iterator[Question]:
        """Yield, once, what evidence is due to."""
        for attestation in self._of.values():
            if (question := attestation.question()) is not None:
                yield question

    def show(self, question: Question, evidence: Evidence) -> Attested | None:
        """Return the answer to a question, None where its session is over."""
        return self._of[question.peer].show(question, evidence)
