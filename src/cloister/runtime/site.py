"""A site, as a state machine: messages in, messages out.

It takes part in one study. Its order, each step refused out of turn:

    1. hello and Join: my identity, my signed manifest, my row count
    2. RosterOffer: every member is named by the plan and trusted by my owner, the minimum is met, my own
       entry is right; only then Countersign. One roster an epoch; a later epoch has a higher number. A
       private study has one roster from its first attempt on: its events count the noise of that roster
    3. RosterClosed: everybody countersigned the same plan and roster
    4. secure-sum set-up: Announce, Deal, Ready; the first member deals the study key
    5. RoundStart: apply the round before, debit the attempt, train, encode, add noise, mask, Upload
    6. Request: answered by the rules of `secagg`; the machine there decides, not the hub
    7. Finish: apply the last round, Done with the ledger's signed debit

Where the plan claims privacy the ledger is asked before step 2 is answered, and again, durably, before a row
is read for a block of attempts. Sampling and noise come from the operating system. Whatever a sum turns out
to be is applied: nothing here reacts to a noisy value.

It holds the only plain copy of its update, for the length of one call. What it logs are names, numbers and
reasons. An epoch's secrets are erased when another begins and when the study ends.

What it does not do: it cannot know whether the hub has a sum that it calls burnt, or states another than it
has. Where the roster has more than m sites, a hub that sees sums can so get two of them from one model, over
lists that differ by one site, whose update is the difference. hub_view = "none" or n = m prevents that; a
sum without differential privacy does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import PolicyRefused, ProtocolError
from cloister.learning import Model, Plan, client_update
from cloister.learning.privacy import private_model
from cloister.runtime.budget import Budget, NoBudget
from cloister.runtime.channel import Channel
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.messages import (
    Announce,
    Announcements,
    Answer,
    Bundle,
    Countersign,
    Deal,
    Done,
    Finish,
    Join,
    Message,
    Outcome,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
    StudyKeys,
    Upload,
    decode_message,
    encode_message,
)
from cloister.runtime.roster import check_countersignatures, countersign, manifest_digest
from cloister.runtime.studykey import deal_study_key, open_study_key
from cloister.runtime.worker import LocalWorker
from cloister.secagg import RingVector, SecureSumSite
from cloister.types import RandomBytes

if TYPE_CHECKING:
    from cloister.learning.torch import TorchPrivate

__all__ = ["Site"]


@dataclass
class _Epoch:
    """What belongs to one epoch and dies with it."""

    terms: EpochTerms
    secure_sum: SecureSumSite | None = None


class Site:
    """One site in one study.

    Args:
        plan: the plan its owner agreed to; the hub's messages are bound to its digest.
        identity: the site's own keys.
        hub: the hub the plan names.
        trusted: public identities the owner trusts, by fingerprint; a roster with anybody else is refused.
        manifest: the signed manifest of the dataset it brings.
        rows: how many rows it trains on.
        worker: the part that sees the rows.
        budget: debited where the plan claims privacy; without one such a plan is refused.
        insecure_test_random: source of keys, seeds and shares in tests.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        hub: PublicIdentity,
        *,
        trusted: Mapping[str, PublicIdentity],
        manifest: bytes,
        rows: int,
        worker: LocalWorker,
        budget: Budget | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._plan = plan
        self._identity = identity
        self._hub = hub
        self._trusted = trusted
        self._manifest = manifest
        self._rows = rows
        self._worker = worker
        self._budget = budget or NoBudget()
        self._random = insecure_test_random
        self._check_plan()
        self._channel = Channel(
            identity, hub, plan.digest, initiator=False, insecure_test_random=insecure_test_random
        )
        self._epoch: _Epoch | None = None
        self._highest_epoch = -1
        self._attempt = -1
        self._attempts_used = 0
        self._expected: tuple[type[Message], ...] = (RosterOffer,)
        self._model = GlobalModel(plan, worker.initial, worker.model.penalised)
        self.study_key: bytes | None = None
        self.finished = False
        self.stopped: str | None = None
        self.clamped = 0

    def __repr__(self) -> str:
        return f"Site({self._identity.name}, {self._plan.study.name})"

    @property
    def name(self) -> str:
        """The site's name in the study."""
        return self._identity.name

    @property
    def rows(self) -> int:
        """Rows it trains on, as its manifest states."""
        return self._rows

    @property
    def learner(self) -> Model | TorchPrivate:
        """What is trained."""
        return self._worker.model

    @property
    def model(self) -> GlobalModel:
        """The global model as this site holds it."""
        return self._model

    def receive(self, message: bytes) -> list[bytes]:
        """Take one message from the hub; return the messages to send back, in order.

        Raises:
            ProtocolError, IntegrityError: the message does not verify, which says nothing about the hub and
                changes nothing; or the hub broke the protocol, and whoever runs the site ends it.
            PolicyRefused: the roster is not one its owner agreed to.
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

    def _handle(self, message: Message) -> list[Message]:
        match message:
            case RosterOffer():
                return self._on_roster_offer(message)
            case RosterClosed():
                return self._on_roster_closed(message)
            case Announcements():
                return self._on_announcements(message)
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

    # --- before the study: is this plan one we can honour? --------------------------------------

    def _check_plan(self) -> None:
        entry = next((site for site in self._plan.sites if site.name == self._identity.name), None)
        if entry is None or entry.identity != self._identity.public.fingerprint:
            raise PolicyRefused(
                "the plan does not name this site with this identity",
                where=self._identity.name,
                fix="Ask the plan's author to enter the fingerprint that `cloister keys show` prints",
            )
        if self._plan.hub.identity != self._hub.fingerprint:
            raise PolicyRefused(
                "the hub is not the one the plan names", where=self._hub.name, fix="Use the plan's hub"
            )

    # --- step 2 and 3: the roster ---------------------------------------------------------------

    def _on_roster_offer(self, offer: RosterOffer) -> list[Message]:
        if offer.epoch <= self._highest_epoch:
            raise ProtocolError("offered a second roster for one epoch", peer=self._hub.name)
        if self._plan.privacy is not None and self._attempts_used:
            # what is claimed rests on one number of noise shares
            raise ProtocolError("offered a new roster within a private study", peer=self._hub.name)
        if not len(offer.members) == len(offer.manifests) == len(offer.rows):
            raise ProtocolError("offered a roster with missing entries", peer=self._hub.name)
        members = [self._accept_member(PublicIdentity.from_json(member)) for member in offer.members]
        names = [member.name for member in members]
        if len(set(names)) != len(names) or len({member.fingerprint for member in members}) != len(members):
            raise ProtocolError("offered a roster that names a member twice", peer=self._hub.name)
        if len(members) < self._plan.study.minimum_sites:
            raise PolicyRefused(
                f"the roster has {len(members)} sites, the plan asks for {self._plan.study.minimum_sites}",
                where=self._plan.study.name,
                fix="Wait until more sites take part",
            )
        rows = dict(zip(names, offer.rows, strict=True))
        manifests = dict(zip(names, offer.manifests, strict=True))
        if rows.get(self.name) != self._rows or manifests.get(self.name) != manifest_digest(self._manifest):
            raise ProtocolError("offered a roster that misstates what this site brings", peer=self._hub.name)
        terms = terms_of(self._plan, offer.epoch, members, rows, manifests, private_model(self._worker.model))
        if terms.privacy is not None:
            self._budget.admit(self._plan, terms.privacy)
        self._end_epoch()
        self._highest_epoch, self._epoch, self._attempt = offer.epoch, _Epoch(terms), -1
        self._expected = (RosterClosed, RosterOffer)
        return [Countersign(countersign(self._identity, terms.countersignature(self.name)))]

    def _accept_member(self, member: PublicIdentity) -> PublicIdentity:
        named = {site.name: site.identity for site in self._plan.sites}
        if named.get(member.name) != member.fingerprint:
            raise PolicyRefused(
                f"{self.name} refuses a roster with a member the plan does not name",
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

    # --- step 4: set-up of the secure sum -------------------------------------------------------

    def _on_announcements(self, message: Announcements) -> list[Message]:
        self._expected = (Bundle, RosterOffer)
        return [Deal(self._secure_sum().deal(message.bodies))]

    def _on_bundle(self, message: Bundle) -> list[Message]:
        epoch, secure_sum = self._current(), self._secure_sum()
        secure_sum.finish_setup(message.body)
        envelope = None
        if epoch.terms.first.name == self.name:
            readers = list(epoch.terms.roster.members)
            if self._plan.aggregation.hub_view == "sum":
                readers.append(self._hub)
            self.study_key, envelope = deal_study_key(
                self._identity,
                self._plan.digest,
                epoch.terms.number,
                readers,
                insecure_test_random=self._random,
            )
        self._expected = (StudyKeys, RosterOffer)
        return [Ready(secure_sum.setup_digest, envelope)]

    def _on_study_keys(self, message: StudyKeys) -> list[Message]:
        epoch = self._current()
        self.study_key = open_study_key(
            message.envelope, epoch.terms.first, self._identity, self._plan.digest, epoch.terms.number
        )
        self._expected = (RoundStart, RosterOffer)
        return []

    # --- steps 5 to 7: rounds -------------------------------------------------------------------

    def _on_round_start(self, start: RoundStart) -> list[Message]:
        due = self._model.rounds + (start.outcome is not None)
        if start.round != due:
            raise ProtocolError(f"started round {start.round} where round {due} is due", peer=self._hub.name)
        if start.attempt <= self._attempt or self._attempts_used >= self._plan.attempts:
            raise ProtocolError("started an attempt that was used or is beyond the plan", peer=self._hub.name)
        if start.outcome is not None:
            self._apply(start.outcome)
        terms, secure_sum = self._current().terms, self._secure_sum()
        self._attempt = start.attempt
        if terms.privacy is not None:
            self._budget.enter(self._attempts_used)
        self._attempts_used += 1
        params = self._model.params
        sums = self._worker.evaluate(params) if self._plan.data.public_rows else None
        body = secure_sum.upload(start.attempt, self._vector(terms, params), params)
        self._expected = (Request, RoundStart, Finish, RosterOffer)
        return [Upload(start.attempt, body, None if sums is None else sums.tolist())]

    def _vector(self, terms: EpochTerms, params: NDArray[np.float64]) -> RingVector:
        """Return this site's part of the sum, ready to be masked."""
        shared = terms.distributed_noise
        if shared is not None:
            vector = self._worker.private_sum(params, self._model.clip, shared)
            shared.noise().add_into(vector, insecure_test_random=self._random)
            return shared.grid.to_ring(vector)
        trained = (
            self._worker.train(params)
            if terms.privacy is None
            else self._worker.train_privately(params, terms.privacy)
        )
        update = client_update(trained, params, terms.weights[self.name])
        self.clamped += terms.encoding.clamped(update)
        return terms.encoding.encode(update)

    def _on_request(self, request: Request) -> list[Message]:
        if request.attempt != self._attempt:
            raise ProtocolError("asked about an attempt that is not running", peer=self._hub.name)
        return [Answer(request.attempt, self._secure_sum().answer(request.body))]

    def _on_finish(self, message: Finish) -> list[Message]:
        if message.outcome.round + 1 != self._plan.training.rounds:
            raise ProtocolError("ended the study before its last round", peer=self._hub.name)
        self._apply(message.outcome)
        sums = self._worker.evaluate(self._model.released()) if self._plan.data.public_rows else None
        tag = self._secure_sum().model_tag(message.outcome.attempt, self._model.released())
        self._expected = ()
        self._end_epoch()
        self.finished = True
        return [Done(tag, None if sums is None else sums.tolist(), self._budget.close())]

    def leave(self) -> None:
        """End taking part: the epoch's secrets are erased and what was not begun is given back."""
        self._end_epoch()
        self._budget.close()

    def _apply(self, outcome: Outcome) -> None:
        terms = self._current().terms
        if outcome.round != self._model.rounds:
            raise ProtocolError("sent the outcome of another round", peer=self._hub.name)
        params = self._model.params
        total = terms.encoding.from_bytes(outcome.total, terms.vector_size(params.size))
        # the secure sum refuses lists that are too short, repeat a site or name a stranger
        opened = self._secure_sum().open_sum(outcome.attempt, outcome.survivors, total, params)
        self._model.apply(opened, outcome.survivors, terms)

    def _end_epoch(self) -> None:
        if self._epoch is not None and self._epoch.secure_sum is not None:
            self._epoch.secure_sum.end()

    def _current(self) -> _Epoch:
        if self._epoch is None:
            raise ProtocolError("skipped the roster", peer=self._hub.name)
        return self._epoch

    def _secure_sum(self) -> SecureSumSite:
        secure_sum = self._current().secure_sum
        if secure_sum is None:
            raise ProtocolError("skipped the set-up", peer=self._hub.name)
        return secure_sum
