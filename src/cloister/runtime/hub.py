"""The hub of a study: it adds up rounds of updates, or of noisy sums.

What it shares with every hub of a secure sum, its order and its deadlines, is in `sumhub`. It holds
ciphertext, round metadata, and the sum of updates where the plan says hub_view = "sum". At the end it
publishes the last outcome and compares the tags of the models the sites ended with.

Integrity of the sum against the hub itself is out of scope; sites protect their updates from it, not the
result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, InputError, ProtocolError
from cloister.learning import Plan, metrics_from_sums, plan_model, read_sums, start_of
from cloister.learning.privacy import private_model
from cloister.runtime.agreed import agreed_of
from cloister.runtime.budget import check_debit
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.events import Refused, RoundDone
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.messages import Done, Finish, Outcome, Ready, StudyKeys, Upload
from cloister.runtime.studykey import open_study_key, read_study_keys
from cloister.runtime.sumhub import PATIENCE, Outgoing, Step, SumHub
from cloister.secagg import RoundSum, model_digest
from cloister.types import RandomBytes
from cloister.vault import Schema

__all__ = ["PATIENCE", "Hub", "Outgoing", "Step"]


class Hub(SumHub[EpochTerms]):
    """The hub of one study.

    Args:
        plan: the study's plan.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema the plan names; it says what the model's parameters and metrics mean.
        user_code: the Python file of a module of the user's own, which the hub has read and allows.
        insecure_test_random: source of session keys in tests.
    """

    ACTIVITY = "study"

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        schema: Schema,
        *,
        user_code: Path | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        super().__init__(
            agreed_of(plan),
            identity,
            sites,
            schema=plan.data.schema,
            deadline_seconds=plan.study.deadline_seconds,
            insecure_test_random=insecure_test_random,
        )
        self._plan = plan
        _, self._learned = plan_model(plan, schema, user_code=user_code)
        self.model = (
            GlobalModel(plan, start_of(plan, self._learned), self._learned.penalised)
            if plan.aggregation.hub_view == "sum"
            else None
        )
        self.study_key: bytes | None = None  # only where the plan lets the hub see the model
        self.study_keys: bytes | None = None  # signed envelope, sealed to every reader
        self.rounds: list[RoundDone] = []
        self.final_metrics: tuple[dict[str, float], dict[str, dict[str, float]]] | None = None
        self._started = 0.0
        self._evaluations: dict[str, NDArray[np.float64]] = {}
        self._done: dict[str, Done] = {}

    def __repr__(self) -> str:
        return f"Hub({self._identity.name}, {self._phase}, round {self._round})"

    # --- what the shared part asks ----------------------------------------------------------------

    def _terms(self, number: int, names: Sequence[str]) -> EpochTerms:
        rows = {name: self.joined[name].rows for name in names}
        members = [self._sites[name] for name in names]
        return terms_of(
            self._plan, number, members, rows, self._manifests(names), private_model(self._learned)
        )

    def _offer(self, names: list[str], now: float) -> None:
        taking_part = sum(name in self.joined and name not in self._excluded for name in names)
        if taking_part < self._plan.study.minimum_sites:
            self._stop(f"{taking_part} sites take part, the plan asks for {self._plan.study.minimum_sites}")
            return
        super()._offer(names, now)

    def _check_ready(self, peer: str, message: Ready) -> None:
        if peer == self._members()[0]:
            self._check_study_keys(message.study_keys or b"")
            self.study_keys = message.study_keys

    def _announce_start(self) -> None:
        self._broadcast(StudyKeys(self.study_keys or b""))

    def _check_study_keys(self, envelope: bytes) -> None:
        terms = self._current().terms
        bound = (terms.first, self._plan.digest, terms.number)
        read_study_keys(
            envelope,
            *bound,
            readers=[*terms.roster.names, *([] if self.model is None else [self._identity.name])],
        )
        if self.model is not None:
            self.study_key = open_study_key(envelope, bound[0], self._identity, *bound[1:])

    # --- step 4: rounds -------------------------------------------------------------------------

    def _prepare(self, now: float) -> tuple[bytes | None, int]:
        self._evaluations = {}
        self._started = now
        # where the hub may see the model it says which one uploads must come from; else the first upload says
        tag = None if self.model is None else model_digest(self.model.params)
        return tag, self._current().terms.vector_size(self._learned.size)

    def _exhausted(self) -> str:
        return f"{super()._exhausted()}; raise spare_rounds"

    def _waiting(self) -> str:
        return f"round {self._round}"

    def _on_upload(self, peer: str, message: Upload, now: float) -> None:
        evaluation = self._evaluation(peer, message.evaluation)
        super()._on_upload(peer, message, now)
        if evaluation is not None:
            self._evaluations[peer] = evaluation

    def _on_sum(self, result: RoundSum, now: float) -> None:
        epoch = self._current()
        if self.model is not None:
            try:
                self.model.apply(result.total, result.survivors, epoch.terms)
            except CloisterError as error:  # a site did not encode by the rules; who, a sum does not tell
                self._burn(str(error), now)
                return
        metrics, by_site = self._metrics(self._evaluations)
        done = RoundDone(self._round, self._attempt, result.survivors, now - self._started, metrics, by_site)
        self.rounds.append(done)
        self._note(done)
        total = epoch.terms.encoding.to_bytes(result.total)
        outcome = Outcome(self._round, self._attempt, list(result.survivors), total)
        self._round += 1
        if self._round < self._plan.training.rounds:
            # sites check that an outcome follows the round it belongs to, so a lost attempt never carries one
            # twice
            self._begin(outcome, now)
        else:
            self._enter("done", now)
            self._broadcast(Finish(outcome))

    # --- step 5: the end ------------------------------------------------------------------------

    def _on_done(self, peer: str, message: Done) -> None:
        self._evaluation(peer, message.evaluation)
        if self._plan.privacy is not None:
            if message.debit is None:
                raise ProtocolError("ended a private study without its ledger's debit", peer=peer)
            check_debit(message.debit, self._sites[peer], self._plan)
            self.debits[peer] = message.debit
        self._done[peer] = message
        if len(self._done) == len(self._members()):
            self._conclude()

    def _conclude(self) -> None:
        epoch = self._current()
        if len(self._done) < epoch.terms.context.params.minimum:
            self._stop("too few sites confirmed the final model")
            return
        tags = Counter(done.tag for done in self._done.values())
        tag = tags.most_common(1)[0][0] if self.model is None else model_digest(self.model.released())
        for name in self._done:
            if self._done[name].tag != tag:
                self._note(Refused(name, "ended with another model than the others"))
        if tags[tag] < epoch.terms.context.params.minimum:
            self._stop("the sites ended with different models")
            return
        evaluations = {
            name: evaluation
            for name, done in self._done.items()
            if done.tag == tag and (evaluation := self._evaluation(name, done.evaluation)) is not None
        }
        metrics, by_site = self._metrics(evaluations)
        if metrics is not None and by_site is not None:
            self.final_metrics = metrics, by_site
        self._phase = "finished"
        self.finished = True

    # --- helpers --------------------------------------------------------------------------------

    def _evaluation(self, peer: str, values: list[float] | None) -> NDArray[np.float64] | None:
        """Return a site's evaluation sums, None where there are none or the plan does not ask for them."""
        if values is None or not self._plan.data.public_rows:
            return None
        try:
            return read_sums(self._learned, values)
        except InputError as error:
            raise ProtocolError(error.what, peer=peer) from error

    def _metrics(
        self, evaluations: Mapping[str, NDArray[np.float64]]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]] | tuple[None, None]:
        if not evaluations:
            return None, None
        by_site = {name: metrics_from_sums(sums) for name, sums in evaluations.items()}
        return metrics_from_sums(np.sum(list(evaluations.values()), axis=0)), by_site
