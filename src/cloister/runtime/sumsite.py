"""What every site of a secure sum does: its plan, its roster, its set-up. Messages in, messages out.

Each step is refused out of turn:

    1. hello and Join: identity, signed manifest, row count; nothing of the rows
    2. RosterOffer: every member is named by the plan and trusted by the owner, the own entry is right; the
       ledger is asked; only then Countersign. One roster an epoch; a later epoch has a higher number
    3. RosterClosed: everybody countersigned the same
    4. set-up of the secure sum: Announce, Deal, Ready

What is added up, and what is done with a sum, is for the sites of studies and queries, which fill in the
methods that are named abstract here. An epoch's secrets are erased when another begins and at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import PolicyRefused, ProtocolError
from cloister.runtime.agreed import Agreed
from cloister.runtime.channel import Channel
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.messages import (
    Announce,
    Announcements,
    Answer,
    Bundle,
    Countersign,
    Deal,
    Finish,
    Join,
    Message,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
    StudyKeys,
    decode_message,
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
    secure_sum: SecureSumSite | None = None


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
        self._channel = Channel(
            identity, hub, agreed.digest, initiator=False, insecure_test_random=insecure_test_random
        )
        self._epoch: _Epoch[Terms] | None = None
        self._highest_epoch = -1
        self._attempt = -1
        self._expected: tuple[type[Message], ...] = (RosterOffer,)
        self.finished = False
        self.stopped: str | None = None

    @property
    def name(self) -> str:
        """The site's name in the plan."""
        return self._identity.name

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
    def _after_setup(self) -> tuple[tuple[type[Message], ...], bytes | None]:
        """Return what may follow the set-up, and what is sent with its digest."""

    @abstractmethod
    def _on_round_start(self, start: RoundStart) -> list[Message]:
        """Take part in an attempt."""

    @abstractmethod
    def _on_finish(self, message: Finish) -> list[Message]:
        """Take the last outcome."""

    def _check_offer(self, offer: RosterOffer) -> None:
        """Raise ProtocolError where no roster is due."""

    def _on_study_keys(self, message: StudyKeys) -> list[Message]:
        """Take the study key."""
        raise ProtocolError("sent StudyKeys, which only studies have", peer=self._hub.name)

    # --- input ------------------------------------------------------------------------------------

    def receive(self, message: bytes) -> list[bytes]:
        """Take one message from the hub; return the messages to send back, in order.

        Raises:
            ProtocolError, IntegrityError: the message does not verify, which says nothing about the hub and
                changes nothing; or the hub broke the protocol, and whoever runs the site ends it.
            PolicyRefused: the roster is not one its owner agreed to, or the budget does not cover it.
        """
        opened = not self._channel.ready
        payloads = self._channel.receive(message)
        out: list[bytes] = []
        if opened and self._channel.ready:
            join = Join(self._identity.public.to_json(), self._manifest, self._rows)
            out += [self._channel.hello, self._channel.seal(encode_message(join))]
        for payload in payloads:
            parsed = decode_message(payload, peer=self._hub.name)
            if isinstance(parsed, Stop):
                self.stopped = parsed.reason
                self._expected = ()
                self._end_epoch()
                continue
            if not isinstance(parsed, self._expected):
                raise ProtocolError(f"sent {type(parsed).__name__} out of turn", peer=self._hub.name)
            out += [self._channel.seal(encode_message(reply)) for reply in self._handle(parsed)]
        return out

    def leave(self) -> bytes | None:
        """End taking part: secrets are erased, what was not begun is given back; return the signed debit."""
        self._end_epoch()
        return self._closing.close()

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
            case StudyKeys():
                return self._on_study_keys(message)
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
        self._check_offer(offer)
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
        terms = self._terms(offer.epoch, members, rows, manifests)
        self._admit(terms)
        self._end_epoch()
        self._highest_epoch, self._epoch = offer.epoch, _Epoch(terms)
        self._expected = (RosterClosed, RosterOffer)
        return [Countersign(countersign(self._identity, terms.countersignature(self.name)))]

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
        epoch.secure_sum = SecureSumSite(terms.context, self._identity, insecure_test_random=self._random)
        self._expected = (Announcements, RosterOffer)
        return [Announce(epoch.secure_sum.announce())]

    # --- set-up and answers -----------------------------------------------------------------------

    def _on_bundle(self, message: Bundle) -> list[Message]:
        secure_sum = self._secure_sum()
        secure_sum.finish_setup(message.body)
        self._expected, enclosed = self._after_setup()
        return [Ready(secure_sum.setup_digest, enclosed)]

    def _on_request(self, request: Request) -> list[Message]:
        if request.attempt != self._attempt:
            raise ProtocolError("asked about an attempt that is not running", peer=self._hub.name)
        return [Answer(request.attempt, self._secure_sum().answer(request.body))]

    # --- helpers ----------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        if self._epoch is not None and self._epoch.secure_sum is not None:
            self._epoch.secure_sum.end()

    def _current(self) -> _Epoch[Terms]:
        if self._epoch is None:
            raise ProtocolError("skipped the roster", peer=self._hub.name)
        return self._epoch

    def _secure_sum(self) -> SecureSumSite:
        secure_sum = self._current().secure_sum
        if secure_sum is None:
            raise ProtocolError("skipped the set-up", peer=self._hub.name)
        return secure_sum
