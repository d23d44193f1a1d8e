"""A hub or a site behind its links: datagrams in, datagrams out; no sockets, no clocks.

    hub machine -- HubEnd -- Link ... datagrams ... Link -- SiteEnd -- site machine

What does not verify is nobody's message and changes nothing. What a peer signed goes to the machine. In a
new session a hub says nothing to a site before the site has said where it was: it could not follow. A hub
takes one large message at a time, or as many as fit its budget, so its memory does not grow with the number
of sites; a message for everybody is encoded once.

Where a plan asks for evidence (a machine's `reattest_seconds`), a machine hears nothing of a peer whose
evidence does not count, and a site's says nothing to it: see `attestation` and `gate`. What evidence is due
to is in `questions`; making it is left to whoever runs the end, and `show` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.enclave.evidence import Evidence
from cloister.errors import CloisterError, ProtocolError
from cloister.runtime.attestation import Attesting, Question
from cloister.runtime.bodies import Joined
from cloister.runtime.events import Connected, Event, Lost, Refused
from cloister.runtime.gate import Gate, Passage, check_attesting
from cloister.runtime.link import MAX_PAYLOAD, Link, peek
from cloister.runtime.messages import (
    Attested,
    Challenge,
    Join,
    Message,
    decode_message,
    encode_large,
    encode_message,
)
from cloister.runtime.siteend import SiteEnd
from cloister.runtime.sumhub import Step, SumHub
from cloister.types import RandomBytes

__all__ = ["HubEnd", "SiteEnd"]

INCOMING_BYTES = 1 << 20
"""Large messages in transfer to a hub at once; one is let through whatever its size."""
STALL_SECONDS = 15.0
"""A large message of which nothing came for so long loses its turn to those that wait."""


class HubEnd:
    """A hub and its links to every site of the plan.

    Args:
        machine: the hub.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        study: 32-byte digest of the plan.
        term: of the hub's lease; sites obey the highest they have seen.
        silence_seconds: a link on which nothing was acknowledged for so long is given up; its site opens
            another when it is back.
        largest: bytes of the largest message that a site has reason to send.
        attesting: what the hub shows, and how it judges; needed where the plan asks for evidence.
        aside: folder where a large message lies while it comes, masked or sealed as its site sent it; None
            for memory.
        insecure_test_random: source of session keys in tests.

    Raises:
        PolicyRefused: the plan asks for evidence, and there is no `attesting`.
    """

    def __init__(
        self,
        machine: SumHub[Any],
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        study: bytes,
        *,
        term: int = 0,
        silence_seconds: float = 60.0,
        largest: int = MAX_PAYLOAD,
        attesting: Attesting | None = None,
        aside: Path | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self.machine = machine
        self._gate: Gate | None = None
        seconds = machine.reattest_seconds
        if check_attesting(attesting, seconds, identity.name):
            assert attesting is not None and seconds is not None  # noqa: S101, PT018  # as just checked
            self._gate = Gate(
                attesting,
                identity,
                sites,
                study,
                reattest_seconds=seconds,
                insecure_test_random=insecure_test_random,
            )
        self._silence, self._largest = silence_seconds, largest
        self.links = {
            name: Link(
                identity,
                site,
                study,
                initiator=False,
                term=term,
                auto_grant=False,
                aside=aside,
                insecure_test_random=insecure_test_random,
            )
            for name, site in sites.items()
        }
        self._asking: dict[str, Link] = {}  # a large message of theirs is announced or on its way
        self._lacked: dict[str, tuple[int, float, float]] = {}  # pieces of a transfer, since when; its begin
        self._due: dict[str, None] = {}  # links that may have something to send, in the order of their turn
        self._unheard: dict[str, float] = {}  # since when a link has waited for a sign of its site
        self._unsaid: set[str] = set()  # sites that have not said yet, in this session, where they were

    def start(self, now: float) -> list[Event]:
        """Begin, or go on where the journal ends."""
        return self._take(self.machine.resume(now))

    def receive(self, datagram: Buffer, now: float) -> list[Event]:
        """Take a datagram from the network."""
        peer = "unknown"
        try:
            peer = peek(datagram).sender
            link = self.links.get(peer)
            if link is None:
                raise ProtocolError(f"is not in this {self.machine.ACTIVITY}", peer=peer)
            received = link.receive(datagram, now)
        except CloisterError as error:  # anybody may have sent it: nobody is blamed
            return [Refused(peer, str(error))]
        self._unheard.pop(peer, None)
        self._due[peer] = None
        events: list[Event] = [Connected(peer)] if received.opened else []
        if received.opened:
            self._unsaid.add(peer)
            if self._gate is not None:
                self._tell(peer, self._gate.opened(peer, link.session, now))
        for payload in received.payloads:
            try:
                message = decode_message(payload, peer=peer)
            except CloisterError as error:
                events.append(Refused(peer, str(error)))
                continue
            if self._gate is not None:
                passage = self._gate.take(peer, message, link.session, now)
                events += self._pass(peer, passage, now)
                if not passage.passes:
                    continue
            elif isinstance(message, Challenge | Attested):
                events.append(Refused(peer, "sent what belongs to evidence, and the plan asks for none"))
                continue
            if isinstance(message, Join):
                if peer not in self._unsaid:  # an answer to it may be long, and costs nothing to ask for
                    events.append(Refused(peer, "joined twice in one session"))
                    continue
                self._unsaid.discard(peer)
            events += self._take(self.machine.handle(peer, message, now))
        if link.incoming > self._largest:
            events += [Refused(peer, "announced more than a site may send"), self._give_up(peer)]
        self._grant(peer, link)
        return events

    def tick(self, now: float) -> list[Event]:
        """Let time pass."""
        events = self._take(self.machine.tick(now))
        for name, link in list(self.links.items()):
            if self._gate is not None and link.ready:
                events += self._pass(name, self._gate.tick(name, now), now)
            if not (link.ready and link.outgoing):
                self._unheard.pop(name, None)
            elif now - self._unheard.setdefault(name, now) > self._silence:
                events.append(self._give_up(name))
            if link.wake_at() <= now:
                self._due[name] = None
        events += [self._give_up(name) for name in self._stalled(now)]
        self._grant()
        return events

    def _give_up(self, name: str) -> Event:
        """Close a link; its site opens another when it is back."""
        self.links[name].close()
        if self._gate is not None:
            self._gate.closed(name)
        self._asking.pop(name, None)
        return Lost(name)

    def _stalled(self, now: float) -> list[str]:
        """Return whose large messages have stood still while others waited for their turn."""
        granted = {name: link for name, link in self._asking.items() if link.granted}
        if len(granted) == len(self._asking):  # nobody waits
            self._lacked.clear()
            return []
        lacked, self._lacked = self._lacked, {}
        for name, link in granted.items():
            before, since, begun = lacked.get(name, (link.lacking, now, now))
            self._lacked[name] = link.lacking, since if link.lacking == before else now, begun
        return [
            name
            for name, (_, since, begun) in self._lacked.items()
            if now - since > STALL_SECONDS or now - begun > max(self._silence, STALL_SECONDS)
        ]

    def revoke(self, peer: str, now: float) -> list[Event]:
        """Shut a site out."""
        events = self._take(self.machine.revoke(peer, now))
        link = self.links.pop(peer, None)
        self._asking.pop(peer, None)
        if link is not None:
            link.close()
        return events

    # --- evidence -------------------------------------------------------------------------------

    def _pass(self, peer: str, passage: Passage, now: float) -> list[Event]:
        """Do what the gate says."""
        self._tell(peer, passage.send)
        events = list(passage.events)
        if passage.accepted is not None:
            self.machine.appraised(peer, passage.accepted)
        if passage.out:  # the link stays until its last word has arrived
            events += self._take(self.machine.revoke(peer, now))
        return events

    def _tell(self, peer: str, messages: Sequence[Message]) -> None:
        link = self.links.get(peer)
        if link is not None and link.ready:
            for message in messages:
                link.send(encode_message(message))
                self._due[peer] = None

    def questions(self) -> Iterator[Question]:
        """Yield, once each, what evidence is due to."""
        if self._gate is not None:
            yield from self._gate.questions()

    def show(self, question: Question, evidence: Evidence) -> None:
        """Send the evidence that was made for a question; nothing where its session is over."""
        link = self.links.get(question.peer)
        if self._gate is None or link is None or link.session != question.session:
            return
        attested = self._gate.show(question, evidence)
        self._tell(question.peer, [] if attested is None else [attested])

    def barred(self, name: str) -> bool:
        """Whether a site is shut out for good because of its evidence."""
        return self._gate is not None and name in self._gate.out

    # --- output ---------------------------------------------------------------------------------

    def poll(self, now: float) -> Iterator[tuple[str, bytes]]:
        """Yield (receiver, datagram) while there is something to send, every site in its turn."""
        while self._due:
            name = next(iter(self._due))
            del self._due[name]
            link = self.links.get(name)
            datagram = None if link is None else link.poll(now)
            if datagram is not None:
                self._due[name] = None  # to the end of the queue
                yield name, datagram

    def nudge(self, now: float) -> None:
        """Send again at once what was not acknowledged: the network is back."""
        for name, link in self.links.items():
            link.nudge(now)
            self._due[name] = None

    @property
    def idle(self) -> bool:
        """Whether everything that was sent has arrived."""
        return not any(link.outgoing for link in self.links.values() if link.ready)

    @property
    def complete(self) -> bool:
        """Whether every member of the last epoch knows how it ended, or is shut out."""
        members = [name for name in self.machine.members if name in self.links and not self.barred(name)]
        return all(self._knows(name) for name in members)

    def _knows(self, name: str) -> bool:
        if self.machine.finished:  # it says so, once it has kept what it was told
            return name in self.machine.told
        return self.connected(name) and name not in self._unsaid

    def connected(self, name: str) -> bool:
        """Whether a session with this site is open."""
        link = self.links.get(name)
        return link is not None and link.ready

    def _take(self, step: Step) -> list[Event]:
        encoded: dict[int, bytes | Joined] = {}
        for receiver, message in step.outgoing:
            link = self.links.get(receiver)
            if link is None or not link.ready or receiver in self._unsaid or self.barred(receiver):
                continue  # it says where it was when it is back
            if id(message) not in encoded:
                encoded[id(message)] = encode_large(message)
            link.send(encoded[id(message)])
            self._due[receiver] = None
        return list(step.events)

    def _grant(self, peer: str | None = None, link: Link | None = None) -> None:
        """Let as many large messages come as the budget allows, and one at least."""
        if peer is not None and link is not None:
            if link.incoming:
                self._asking[peer] = link
            elif self._asking.pop(peer, None) is None:
                return
        self._asking = {name: link for name, link in self._asking.items() if link.incoming}
        granted = sum(link.incoming for link in self._asking.values() if link.granted)
        for name, each in self._asking.items():
            if not each.granted and (granted == 0 or granted + each.incoming <= INCOMING_BYTES):
                each.grant()
                self._due[name] = None
                granted += each.incoming
