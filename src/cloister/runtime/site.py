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

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import PolicyRefused, ProtocolError
from cloister.learning import Model, Plan, client_update
from cloister.learning.privacy import private_model
from cloister.runtime.agreed import agreed_of
from cloister.runtime.budget import Budget, NoBudget
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.messages import (
    Done,
    Finish,
    Message,
    Outcome,
    Request,
    RosterOffer,
    RoundStart,
    StudyKeys,
    Upload,
)
from cloister.runtime.studykey import deal_study_key, open_study_key
from cloister.runtime.sumsite import SumSite
from cloister.runtime.worker import LocalWorker
from cloister.secagg import RingVector
from cloister.types import RandomBytes

if TYPE_CHECKING:
    from cloister.learning.torch import TorchPrivate

__all__ = ["Site"]


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
            insecure_test_random=insecure_test_random,
        )
        self._attempts_used = 0
        self._model = GlobalModel(plan, worker.initial, worker.model.penalised)
        self.study_key: bytes | None = None
        self.clamped = 0

    def __repr__(self) -> str:
        return f"Site({self._identity.name}, {self._plan.study.name})"

    @property
    def learner(self) -> Model | TorchPrivate:
        """What is trained."""
        return self._worker.model

    @property
    def model(self) -> GlobalModel:
        """The global model as this site holds it."""
        return self._model

    # --- what the shared part asks --------------------------------------------------------------

    def _check_offer(self, offer: RosterOffer) -> None:
        if self._plan.privacy is not None and self._attempts_used:
            # what is claimed rests on one number of noise shares
            raise ProtocolError("offered a new roster within a private study", peer=self._hub.name)

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
        return terms_of(self._plan, number, members, rows, manifests, private_model(self._worker.model))

    def _admit(self, terms: EpochTerms) -> None:
        if terms.privacy is not None:
            self._budget.admit(self._plan, terms.privacy)

    def _on_roster_offer(self, offer: RosterOffer) -> list[Message]:
        replies = super()._on_roster_offer(offer)
        self._attempt = -1
        return replies

    def _after_setup(self) -> tuple[tuple[type[Message], ...], bytes | None]:
        terms, envelope = self._current().terms, None
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
        return (StudyKeys, RosterOffer), envelope

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

    def _on_finish(self, message: Finish) -> list[Message]:
        if message.outcome.round + 1 != self._plan.training.rounds:
            raise ProtocolError("ended the study before its last round", peer=self._hub.name)
        self._apply(message.outcome)
        sums = self._worker.evaluate(self._model.released()) if self._plan.data.public_rows else None
        tag = self._secure_sum().model_tag(message.outcome.attempt, self._model.released())
        self._expected = ()
        self.finished = True
        return [Done(tag, None if sums is None else sums.tolist(), self.leave())]

    def _apply(self, outcome: Outcome) -> None:
        terms = self._current().terms
        if outcome.round != self._model.rounds:
            raise ProtocolError("sent the outcome of another round", peer=self._hub.name)
        params = self._model.params
        total = terms.encoding.from_bytes(outcome.total, terms.vector_size(params.size))
        # the secure sum refuses lists that are too short, repeat a site or name a stranger
        opened = self._secure_sum().open_sum(outcome.attempt, outcome.survivors, total, params)
        self._model.apply(opened, outcome.survivors, terms)
