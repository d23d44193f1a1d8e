"""A site, as a state machine: messages in, messages out.

It takes part in one study. Its order, each step refused out of turn:

    1. hello and Join: my identity, my signed manifest, my row count
    2. RosterOffer: every member is named by the plan and trusted by my owner, the minimum is met, my own
       entry is right; only then Countersign. One roster an epoch; a later epoch has a higher number. Once a
       private study has begun, a new roster must leave every figure of its claim as it is
    3. RosterClosed: everybody countersigned the same plan and roster
    4. secure-sum set-up: Announce, Deal, Ready; the first member deals the study key
    5. RoundStart: apply the round before, debit the attempt, train, encode, add noise, mask, Upload
    6. Request: answered by the rules of `secagg`; the machine there decides, not the hub
    7. Finish: apply the last round, Done with the ledger's signed debit
    8. Concluded: what everybody did, for the own record. Once that is kept, `leave` erases the epoch's
       secrets; a site that is killed before asks again

Who was away catches up: with CatchUp, round by round, or with State, the model itself, which c + 1 members
must vouch for. An attempt that is started again gets the same bytes, or, where none had left, a fresh vector.

Where the plan claims privacy the ledger is asked before step 2 is answered, and again, durably, before a row
is read for a block of attempts. Sampling and noise come from the operating system. Whatever a sum turns out
to be is applied: nothing here reacts to a noisy value.

It holds the only plain copy of its update, for the length of one call. What it logs are names, numbers and
reasons. An epoch's secrets are erased when another begins and when the site leaves.

What it does not do: it cannot know whether the hub has a sum that it calls burnt, or states another than it
has. Where the roster has more than m sites, a hub that sees sums can so get two of them from one model, over
lists that differ by one site, whose update is the difference. hub_view = "none" or n = m prevents that; a
sum without differential privacy does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloister.crypto import (
    Identity,
    PublicIdentity,
    canonical_bytes,
    hpke_open,
    hpke_seal,
)
from cloister.errors import IntegrityError, PolicyRefused, ProtocolError
from cloister.learning import Plan
from cloister.learning.learner import Shape, Vector
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import Bounded
from cloister.runtime.agreed import agreed_of
from cloister.runtime.bodies import as_field, body_of, parts_of
from cloister.runtime.budget import Budget, NoBudget
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.events import RoundDone
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.journal import KeepsSite, SiteKept
from cloister.runtime.messages import (
    CatchUp,
    Concluded,
    Done,
    Finish,
    Message,
    Outcome,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    SealedState,
    State,
    StateRequest,
    StudyKeys,
    Upload,
    decode_message,
    encode_large,
)
from cloister.runtime.studykey import deal_study_key, open_study_key
from cloister.runtime.sumsite import SumSite
from cloister.runtime.voucher import check_vouchers, vouch
from cloister.runtime.worker import Worker
from cloister.secagg import RingVector, SecureSumSite
from cloister.types import RandomBytes

__all__ = ["Site"]

_STATE_INFO = b"cloister/model-state/v1"
_RUNNING = (RoundStart, Request, CatchUp, Finish, RosterOffer, StudyKeys, StateRequest, State, Concluded)
"""What may come once the epoch is set up, in whatever order a hub that was away takes it up."""


class Site(SumSite[EpochTerms]):
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
        journal: keeps what must survive the process; what is in it is taken up again.
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
        worker: Worker,
        budget: Budget | None = None,
        journal: KeepsSite | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._plan = plan
        self._worker = worker
        self._budget = budget or NoBudget()
        super().__init__(
            agreed_of(plan),
            identity,
            hub,
            trusted=trusted,
            manifest=manifest,
            rows=rows,
            budget=self._budget,
            journal=journal,
            insecure_test_random=insecure_test_random,
        )
        self._attempts_used = 0
        self._privacy: PrivacyTerms | None = None
        self._model = GlobalModel.of(plan, worker.initial, worker.shape)
        self._upload: tuple[int, Upload] | None = None
        self._unsent = False  # an attempt was entered before a break, and nothing of it had left
        self._debit: bytes | None = None
        self._unkept = 0  # outcomes since the last checkpoint
        self.study_key: bytes | None = None
        self.clamped = 0
        self.concluded: Concluded | None = None
        self.resumed = False
        self._highest_term = 0
        kept = self._journal.load()
        if kept is not None:
            self._restore(kept)

    def __repr__(self) -> str:
        return f"Site({self._identity.name}, {self._plan.study.name})"

    def obey(self, term: int) -> bool:
        """Take the term of a hub's lease; False where a hub with a newer one was obeyed before."""
        if term < self._highest_term:
            return False
        self._highest_term = term
        self._journal.obeyed(term)
        return True

    @property
    def study(self) -> str:
        """The study's name."""
        return self._plan.study.name

    @property
    def worker(self) -> Worker:
        """The part that sees the rows: what evidence of this site vouches for."""
        return self._worker

    @property
    def shape(self) -> Shape:
        """What is trained, as far as one sees it from outside the worker."""
        return self._worker.shape

    @property
    def bounded(self) -> Bounded:
        """Its size and float error, on which a claim of privacy rests."""
        return self._worker.bounded

    @property
    def model(self) -> GlobalModel:
        """The global model as this site holds it."""
        return self._model

    # --- what the shared part asks --------------------------------------------------------------

    @property
    def rounds(self) -> int:
        """Rounds whose outcome this site has applied."""
        return self._model.rounds

    def _terms(
        self,
        number: int,
        members: Sequence[PublicIdentity],
        rows: Mapping[str, int],
        manifests: Mapping[str, bytes],
    ) -> EpochTerms:
        if len(members) < self._plan.study.minimum_sites:
            raise PolicyRefused(
                f"the roster has {len(members)} sites, the plan asks for {self._plan.study.minimum_sites}",
                where=self._plan.study.name,
                fix="Wait until more sites take part",
            )
        bounded, shape = self._worker.bounded, self._worker.shape
        return terms_of(self._plan, number, members, rows, manifests, bounded, shape)

    def _admit(self, terms: EpochTerms) -> None:
        if terms.privacy is None or (self._privacy is not None and terms.privacy == self._privacy):
            return
        if self._attempts_used and self._privacy is None:  # its epoch did not survive a break
            # a machine that lost its power may have counted less than left it: what was begun is spent
            self._attempts_used = self._budget.resume(self._plan, terms.privacy, self._attempts_used)
            self._privacy = terms.privacy
            return
        if self._attempts_used:  # what is claimed rests on one number of noise shares
            raise ProtocolError(
                "offered a roster under which the study's claim would change", peer=self._hub.name
            )
        self._budget.admit(self._plan, terms.privacy)
        self._privacy = terms.privacy

    def _on_roster_offer(self, offer: RosterOffer) -> list[Message]:
        replies = super()._on_roster_offer(offer)
        self._attempt = -1
        self._upload = None
        return replies

    def _after_setup(self) -> tuple[tuple[type[Message], ...], Ready]:
        terms, envelope, voucher = self._current().terms, None, None
        if terms.first.name == self.name:
            readers = list(terms.roster.members)
            if self._plan.aggregation.hub_view == "sum":
                readers.append(self._hub)
            self.study_key, envelope = deal_study_key(
                self._identity,
                self._plan.digest,
                terms.number,
                readers,
                insecure_test_random=self._random,
            )
        if self.rounds:
            state = self._model.snapshot()
            voucher = vouch(self._identity, self._plan.digest, terms.number, self.rounds, state)
        digest = self._secure_sum().setup_digest
        return (StudyKeys, RosterOffer), Ready(digest, self.rounds, envelope, voucher)

    def _on_more(self, message: StudyKeys | StateRequest | State | CatchUp | Concluded) -> list[Message]:
        match message:
            case StudyKeys():
                return self._on_study_keys(message)
            case StateRequest():
                return self._on_state_request(message)
            case State():
                self._on_state(message)
            case CatchUp():
                if message.outcome.round >= self.rounds:  # else it has come already
                    self._apply(message.outcome)
            case Concluded():
                self._conclude(message)
        return []

    def _on_study_keys(self, message: StudyKeys) -> list[Message]:
        epoch = self._current()
        self.study_key = open_study_key(
            message.envelope, epoch.terms.first, self._identity, self._plan.digest, epoch.terms.number
        )
        self._expected = _RUNNING
        return []

    # --- the model, for who comes later -----------------------------------------------------------

    def _on_state_request(self, request: StateRequest) -> list[Message]:
        terms = self._current().terms
        if terms.context.hub_view != "none":
            raise ProtocolError("asked for a model that it has itself", peer=self._hub.name)
        if len(set(request.receivers)) != len(request.receivers):
            raise ProtocolError("asked for a model twice for one member", peer=self._hub.name)
        state = b"".join(parts_of(body_of(self._model.snapshot())))
        replies: list[Message] = []
        for name in request.receivers:
            member = terms.roster.members[terms.roster.index(name)]
            sealed = hpke_seal(
                member.sealing_key,
                state,
                info=_STATE_INFO,
                associated_data=self._state_bound(name, self.rounds),
            )
            replies.append(SealedState(name, as_field(sealed)))
        return replies

    def _on_state(self, message: State) -> None:
        terms = self._current().terms
        if message.rounds <= self.rounds or message.sealed != (terms.context.hub_view == "none"):
            raise ProtocolError("sent a model that is not due", peer=self._hub.name)
        state: bytes | memoryview = message.state
        if message.sealed:
            try:
                state = hpke_open(
                    self._identity.sealing,
                    bytes(message.state),
                    info=_STATE_INFO,
                    associated_data=self._state_bound(self.name, message.rounds),
                )
            except IntegrityError as error:
                raise ProtocolError("carried a model that does not open", peer=self._hub.name) from error
        check_vouchers(
            message.vouchers,
            {member.name: member for member in terms.roster.members},
            needed=terms.context.params.colluders + 1,
            plan=self._plan.digest,
            epoch=terms.number,
            rounds=message.rounds,
            state=state,
        )
        self._model.restore(state)
        self._journal.checkpoint(state)

    def _state_bound(self, receiver: str, rounds: int) -> bytes:
        terms = self._current().terms
        facts = {"plan": self._plan.digest.hex(), "epoch": terms.number, "rounds": rounds, "reader": receiver}
        return canonical_bytes(facts)

    # --- steps 5 to 7: rounds -------------------------------------------------------------------

    def _on_round_start(self, start: RoundStart) -> list[Message]:
        due = self.rounds + (start.outcome is not None)
        if start.round != due:
            raise ProtocolError(f"started round {start.round} where round {due} is due", peer=self._hub.name)
        if due >= self._plan.training.rounds:
            raise ProtocolError("started a round after the last", peer=self._hub.name)
        if start.outcome is None and self._upload is not None and self._upload[0] == start.attempt:
            return [self._upload[1]]  # again, byte for byte
        again = start.attempt == self._attempt and self._unsent
        if not again and (start.attempt <= self._attempt or self._attempts_used >= self._plan.attempts):
            raise ProtocolError("started an attempt that was used or is beyond the plan", peer=self._hub.name)
        if start.outcome is not None:
            self._apply(start.outcome)
        terms, secure_sum = self._current().terms, self._secure_sum()
        if not again:  # an attempt that was entered and died before a byte left is charged once
            self._attempt = start.attempt
            if terms.privacy is not None:
                self._budget.enter(self._attempts_used)
            self._attempts_used += 1
            self._journal.entered(start.attempt, self._attempts_used)
        self._unsent = False
        params = self._model.params
        sums = self._worker.evaluate(params) if self._plan.data.public_rows else None
        body = secure_sum.upload(start.attempt, self._vector(terms, params), params, spend=True)
        upload = Upload(start.attempt, as_field(body), None if sums is None else sums.tolist())
        self._journal.uploaded(start.attempt, encode_large(upload))
        self._upload = start.attempt, upload
        return [upload]

    def _vector(self, terms: EpochTerms, params: Vector) -> RingVector:
        """Return this site's part of the sum, ready to be masked."""
        shared, window = terms.distributed_noise, self._model.window
        if shared is not None:
            vector = self._worker.private_sum(params, self._model.clip, shared, window)
            shared.noise().add_into(vector, insecure_test_random=self._random)
            return shared.grid.to_ring(vector)
        trained = (
            self._worker.train(params, window)
            if terms.privacy is None
            else self._worker.train_privately(params, terms.privacy, window)
        )
        update, clamped = self._model.encoded(trained, params, self.name, terms)
        self.clamped += clamped
        return update

    def _on_finish(self, message: Finish) -> list[Message]:
        if message.outcome.round + 1 != self._plan.training.rounds:
            raise ProtocolError("ended the study before its last round", peer=self._hub.name)
        if self.rounds < self._plan.training.rounds:
            self._apply(message.outcome)
        sums = self._worker.evaluate(self._model.released()) if self._plan.data.public_rows else None
        tag = self._secure_sum().model_tag(message.outcome.attempt, self._model.released())
        self._debit = self._debit or self._closing.close()
        return [Done(tag, None if sums is None else sums.tolist(), self._debit)]

    def leave(self) -> bytes | None:
        """Leave as every site does, and end the worker."""
        try:
            self._worker.close()
        finally:
            debit = super().leave()
        return debit

    def _conclude(self, message: Concluded) -> None:
        if self.rounds < self._plan.training.rounds:
            raise ProtocolError("concluded before the last round", peer=self._hub.name)
        self.concluded = message
        self._expected = ()
        self.finished = True

    # --- going on after a break -------------------------------------------------------------------

    def _before_epoch_ends(self) -> None:
        if self._unkept:  # outcomes can be opened only in their own epoch
            self._journal.checkpoint(self._model.snapshot())
            self._unkept = 0

    def _restore(self, kept: SiteKept) -> None:
        """Take up what the journal kept: the epoch, if its secrets are there, and the model."""
        self._highest_epoch, self._attempts_used = kept.highest_epoch, kept.attempts_used
        self._highest_term = kept.highest_term
        if kept.state:
            self._model.restore(kept.state)
        if kept.epoch is None:
            return
        offer = decode_message(kept.epoch.offer, peer=self._hub.name)
        closed = decode_message(kept.epoch.closed, peer=self._hub.name)
        if not (isinstance(offer, RosterOffer) and isinstance(closed, RosterClosed)):
            raise IntegrityError("the journal holds another message than a roster")
        terms = self._read_offer(offer)
        uploaded = None if kept.upload is None else self._kept_upload(kept.upload)
        secure_sum = SecureSumSite.restore(
            terms.context, self._identity, kept.epoch.secure_sum, kept.attempt, uploaded, kept.choice
        )
        self._take_up(terms, offer, closed, secure_sum)
        self._attempt = kept.attempt
        self._unsent = kept.upload is None and kept.choice is None
        for data in kept.outcomes:
            outcome = decode_message(data, peer=self._hub.name)
            if not isinstance(outcome, CatchUp):
                raise IntegrityError("the journal holds another message than an outcome")
            self._model.apply(self._open(outcome.outcome), outcome.outcome.survivors, terms)
        self._unkept = len(kept.outcomes)
        if terms.privacy is not None:
            self._budget.resume(self._plan, terms.privacy, self._attempts_used)
            self._privacy = terms.privacy
        self._expected = _RUNNING
        self.resumed = True

    def _kept_upload(self, data: bytes) -> bytes:
        upload = decode_message(data, peer=self._hub.name)
        if not isinstance(upload, Upload):
            raise IntegrityError("the journal holds another message than an upload")
        self._upload = upload.attempt, upload
        return bytes(upload.body)

    def _apply(self, outcome: Outcome) -> None:
        if outcome.round != self.rounds:
            raise ProtocolError("sent the outcome of another round", peer=self._hub.name)
        total = self._open(outcome)
        self._model.apply(total, outcome.survivors, self._current().terms)
        self._journal.applied(encode_large(CatchUp(outcome)))
        self._unkept += 1
        survivors = tuple(outcome.survivors)
        number = self._current().terms.number
        self._events.append(RoundDone(outcome.round, outcome.attempt, survivors, 0.0, epoch=number))
        if self._journal.full:
            self._before_epoch_ends()

    def _open(self, outcome: Outcome) -> RingVector:
        """Return the sum in an outcome, of the model as it is."""
        terms, params = self._current().terms, self._model.params
        total = terms.encoding.from_bytes(outcome.total, terms.vector_size(params.size))
        # the secure sum refuses lists that are too short, repeat a site or name a stranger
        return self._secure_sum().open_sum(outcome.attempt, outcome.survivors, total, params)
