"""What every site of a secure sum does: its plan, its roster, its set-up. Messages in, messages out.

Each step is refused out of turn:

    1. hello and Join: identity, signed manifest, row count; nothing of the rows
    2. RosterOffer: every member is named by the plan and trusted by the owner, the own entry is right; the
       ledger is asked; only then Countersign. One roster an epoch; a later epoch has a higher number
    3. RosterClosed: everybody countersigned the same
    4. set-up of the secure sum: Announce, Deal, Ready

What is added up, and what is done with a sum, is for the sites of studies and queries, which fill in the
methods that are named abstract here. An epoch's secrets are erased when another begins and at the end.

After a break, `join` says where the site was; the hub sends what it missed. A site that still holds the
secrets of its epoch goes on in it; one that does not waits for the next. What it answers twice it answers
with the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import PolicyRefused, ProtocolError
from cloister.runtime.agreed import Agreed
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.events import Event, RosterAgreed, SetupDone
from cloister.runtime.journal import EpochKept, KeepsSite, NoJournal
from cloister.runtime.messages import (
    Announce,
    Announcements,
    Answer,
    Bundle,
    CatchUp,
    Concluded,
    Countersign,
    Deal,
    Finish,
    Join,
    Message,
    Position,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    State,
    StateRequest,
    Stop,
    StudyKeys,
    encode_message,
)
from cloister.runtime.roster import check_countersignatures, countersign, manifest_digest
from cloister.secagg import SecureSumSite
from cloister.types import RandomBytes

__all__ = ["SumSite"]

Terms = TypeVar("Terms", bound=RosterTerms)


class _Closing(Protocol):
    def close(self) -> bytes | None:
        """Give back what did not begin; return the signed debit, None where nothing was admitted."""


@dataclass
class _Epoch(Generic[Terms]):
    """What belongs to one epoch and dies with it."""

    terms: Terms
    offer: RosterOffer
    closed: RosterClosed | None = None
    secure_sum: SecureSumSite | None = None
    ready: bool = False


class SumSite(ABC, Generic[Terms]):
    """The part of a site that studies and queries share.

    Args:
        agreed: what the plan names.
        identity: the site's own keys.
        hub: the hub the plan names.
        trusted: public identities the owner trusts, by fingerprint; a roster with anybody else is refused.
        manifest: the signed manifest of the dataset it brings.
        rows: how many rows it brings.
        budget: whom it closes when it leaves.
        journal: keeps what must survive the process; by default it does not.
        insecure_test_random: source of keys, seeds and shares in tests.

    Attributes:
        finished: whether it came to its end.
        stopped: why the hub ended it before, or None.

    Raises:
        PolicyRefused: the plan does not name this site, or this hub.
    """

    def __init__(
        self,
        agreed: Agreed,
        identity: Identity,
        hub: PublicIdentity,
        *,
        trusted: Mapping[str, PublicIdentity],
        manifest: bytes,
        rows: int,
        budget: _Closing,
        journal: KeepsSite | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._agreed = agreed
        self._identity = identity
        self._hub = hub
        self._trusted = trusted
        self._manifest = manifest
        self._rows = rows
        self._closing = budget
        self._random = insecure_test_random
        self._check_named()
        self._journal: KeepsSite = journal or NoJournal()
        self._epoch: _Epoch[Terms] | None = None
        self._highest_epoch = -1
        self._attempt = -1
        self._expected: tuple[type[Message], ...] = (RosterOffer,)
        self._events: list[Event] = []
        self.finished = False
        self.stopped: str | None = None

    @property
    def name(self) -> str:
        """The site's name in the plan."""
        return self._identity.name

    @property
    def attempt(self) -> int:
        """The last attempt of this epoch it knows of, -1 before the first."""
        return self._attempt

    @property
    def epoch_number(self) -> int:
        """The newest epoch it agreed to, -1 before the first."""
        return self._highest_epoch

    @property
    def reattest_seconds(self) -> int | None:
        """How old the hub's evidence may be; None where the plan asks for none."""
        return self._agreed.reattest_seconds

    def events(self) -> list[Event]:
        """Return what happened since this was last asked."""
        events, self._events = self._events, []
        return events

    @property
    def rows(self) -> int:
        """Rows it brings, as its manifest states."""
        return self._rows

    # --- what a site derives from this must say ---------------------------------------------------

    @abstractmethod
    def _terms(
        self,
        number: int,
        members: Sequence[PublicIdentity],
        rows: Mapping[str, int],
        manifests: Mapping[str, bytes],
    ) -> Terms:
        """Return the terms of a roster.

        Raises:
            ProtocolError, PolicyRefused, PlanError: it is refused.
        """

    @abstractmethod
    def _admit(self, terms: Terms) -> None:
        """Reserve what the roster costs. Raises PolicyRefused."""

    @abstractmethod
    def _after_setup(self) -> tuple[tuple[type[Message], ...], Ready]:
        """Return what may follow the set-up, and what ends it."""

    @abstractmethod
    def _on_round_start(self, start: RoundStart) -> list[Message]:
        """Take part in an attempt."""

    @abstractmethod
    def _on_finish(self, message: Finish) -> list[Message]:
        """Take the last outcome."""

    def _on_more(self, message: StudyKeys | StateRequest | State | CatchUp | Concluded) -> list[Message]:
        """Take a message that only studies have."""
        raise ProtocolError(f"sent {type(message).__name__}, which only studies have", peer=self._hub.name)

    @property
    def rounds(self) -> int:
        """Rounds whose outcome this site has applied."""
        return 0

    # --- input ------------------------------------------------------------------------------------

    def join(self) -> Join:
        """Return what opens every session: who this is, what it brings, and where it was."""
        epoch, position = self._epoch, None
        if epoch is not None and epoch.ready and epoch.secure_sum is not None:
            digest = epoch.secure_sum.setup_digest
            position = Position(epoch.terms.number, digest, self.rounds, self._attempt)
        else:
            self._expected = (RosterOffer,)
        return Join(self._identity.public.to_json(), self._manifest, self._rows, position)

    def handle(self, message: Message) -> list[Message]:
        """Take a message that the hub signed; return what to answer, in order.

        Raises:
            ProtocolError, IntegrityError: the hub broke the protocol; whoever runs the site ends it.
            PolicyRefused: the roster is not one its owner agreed to, or the budget does not cover it.
        """
        if isinstance(message, Stop):
            self.stopped = message.reason
            self._expected = ()
            self._end_epoch()
            return []
        if not isinstance(message, self._expected):
            raise ProtocolError(f"sent {type(message).__name__} out of turn", peer=self._hub.name)
        return self._handle(message)

    def trust(self, trusted: Mapping[str, PublicIdentity]) -> str | None:
        """Take the identities that the owner trusts now; return a member of the running roster who is not
        among them, None where there is none."""
        own = self._identity.public
        self._trusted = {**trusted, own.fingerprint: own}
        members = () if self._epoch is None else self._epoch.terms.roster.members
        return next((each.name for each in members if each.fingerprint not in self._trusted), None)

    def leave(self) -> bytes | None:
        """End taking part: secrets are erased, what was not begun is given back; return the signed debit."""
        try:
            self._end_epoch()
        finally:
            debit = self._closing.close()
        return debit

    def _handle(self, message: Message) -> list[Message]:
        match message:
            case RosterOffer():
                return self._on_roster_offer(message)
            case RosterClosed():
                return self._on_roster_closed(message)
            case Announcements():
                self._expected = (Bundle, RosterOffer)
                return [Deal(self._secure_sum().deal(message.bodies))]
            case Bundle():
                return self._on_bundle(message)
            case StudyKeys() | StateRequest() | State() | CatchUp() | Concluded():
                return self._on_more(message)
            case RoundStart():
                return self._on_round_start(message)
            case Request():
                return self._on_request(message)
            case Finish():
                return self._on_finish(message)
            case _:
                raise ProtocolError(
                    f"sent {type(message).__name__}, which only sites send", peer=self._hub.name
                )

    # --- the plan and the roster ------------------------------------------------------------------

    def _check_named(self) -> None:
        noun = self._agreed.noun
        if self._agreed.sites.get(self._identity.name) != self._identity.public.fingerprint:
            raise PolicyRefused(
                f"the {noun} does not name this site with this identity",
                where=self._identity.name,
                fix=f"Ask the {noun}'s author to enter the fingerprint that `cloister keys show` prints",
            )
        if self._agreed.hub != self._hub.fingerprint:
            raise PolicyRefused(
                f"the hub is not the one the {noun} names", where=self._hub.name, fix=f"Use the {noun}'s hub"
            )

    def _on_roster_offer(self, offer: RosterOffer) -> list[Message]:
        if offer.epoch <= self._highest_epoch:
            raise ProtocolError("offered a second roster for one epoch", peer=self._hub.name)
        terms = self._read_offer(offer)
        self._admit(terms)
        self._end_epoch()
        self._journal.promised(offer.epoch)
        self._highest_epoch, self._epoch = offer.epoch, _Epoch(terms, offer)
        self._expected = (RosterClosed, RosterOffer)
        return [Countersign(countersign(self._identity, terms.countersignature(self.name)))]

    def _read_offer(self, offer: RosterOffer) -> Terms:
        """Return the terms of a roster whose every entry this site accepts."""
        if not len(offer.members) == len(offer.manifests) == len(offer.rows):
            raise ProtocolError("offered a roster with missing entries", peer=self._hub.name)
        members = [self._accept_member(PublicIdentity.from_json(member)) for member in offer.members]
        names = [member.name for member in members]
        if len(set(names)) != len(names) or len({member.fingerprint for member in members}) != len(members):
            raise ProtocolError("offered a roster that names a member twice", peer=self._hub.name)
        rows = dict(zip(names, offer.rows, strict=True))
        manifests = dict(zip(names, offer.manifests, strict=True))
        if rows.get(self.name) != self._rows or manifests.get(self.name) != manifest_digest(self._manifest):
            raise ProtocolError("offered a roster that misstates what this site brings", peer=self._hub.name)
        return self._terms(offer.epoch, members, rows, manifests)

    def _accept_member(self, member: PublicIdentity) -> PublicIdentity:
        if self._agreed.sites.get(member.name) != member.fingerprint:
            raise PolicyRefused(
                f"{self.name} refuses a roster with a member the {self._agreed.noun} does not name",
                where=member.name,
                fix="Do not take part",
            )
        if member.fingerprint not in self._trusted:
            raise PolicyRefused(
                f"{self.name} refuses a roster with a member it does not trust",
                where=member.name,
                fix="Check its fingerprint with its owner, then `cloister keys trust` it",
            )
        return member

    def _on_roster_closed(self, closed: RosterClosed) -> list[Message]:
        epoch = self._current()
        terms = epoch.terms
        check_countersignatures(closed.countersignatures, terms.roster.members, terms.countersignature)
        epoch.closed = closed
        self._events.append(RosterAgreed(terms.number, terms.roster.names))
        epoch.secure_sum = SecureSumSite(terms.context, self._identity, insecure_test_random=self._random)
        self._expected = (Announcements, RosterOffer)
        return [Announce(epoch.secure_sum.announce())]

    # --- set-up and answers -----------------------------------------------------------------------

    def _take_up(
        self, terms: Terms, offer: RosterOffer, closed: RosterClosed, secure_sum: SecureSumSite
    ) -> None:
        """Go on in an epoch whose secrets were kept."""
        self._epoch = _Epoch(terms, offer, closed, secure_sum, ready=True)

    def _on_bundle(self, message: Bundle) -> list[Message]:
        secure_sum = self._secure_sum()
        secure_sum.finish_setup(message.body)
        epoch = self._current()
        assert epoch.closed is not None  # noqa: S101  # there is no secure sum before
        offer, closed = encode_message(epoch.offer), encode_message(epoch.closed)
        self._journal.begin_epoch(EpochKept(offer, closed, secure_sum.snapshot()))
        epoch.ready = True
        self._events.append(SetupDone(epoch.terms.number, secure_sum.setup_digest))
        self._expected, ready = self._after_setup()
        return [ready]

    def _on_request(self, request: Request) -> list[Message]:
        if request.attempt < self._attempt:
            raise ProtocolError("asked about an attempt that is not running", peer=self._hub.name)
        secure_sum = self._secure_sum()
        answer = Answer(request.attempt, secure_sum.answer(request.body))
        self._attempt = request.attempt  # a later one: this site was away, and counts as dropped in it
        self._journal.chosen(request.attempt, secure_sum.choice)
        return [answer]

    # --- helpers ----------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        if self._epoch is not None and self._epoch.secure_sum is not None:
            try:
                self._before_epoch_ends()
            finally:  # secrets go, whatever a full disk says
                self._epoch.secure_sum.end()
                self._epoch.ready = False
            self._journal.end_epoch()

    def _before_epoch_ends(self) -> None:
        """Keep what can be read only within the epoch."""

    def _current(self) -> _Epoch[Terms]:
        if self._epoch is None:
            raise ProtocolError("skipped the roster", peer=self._hub.name)
        return self._epoch

    def _secure_sum(self) -> SecureSumSite:
        secure_sum = self._current().secure_sum
        if secure_sum is None:
            raise ProtocolError("skipped the set-up", peer=self._hub.name)
        return secure_sum
