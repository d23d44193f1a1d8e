"""The hub of a study: it adds up rounds of updates, or of noisy sums.

What it shares with every hub of a secure sum, its order and its deadlines, is in `sumhub`. It holds
ciphertext, round metadata, and the sum of updates where the plan says hub_view = "sum". At the end it
publishes the last outcome and compares the tags of the models the sites ended with.

A site that comes later needs the model. Where the hub may see it, it sends it; else a member seals it to the
newcomer, and the hub carries what it cannot read. Members vouch for its digest (`voucher`).

Integrity of the sum against the hub itself is out of scope; sites protect their updates from it, not the
result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Buffer, Identity, PublicIdentity, canonical_bytes
from cloister.errors import CloisterError, InputError, PlanError, ProtocolError
from cloister.learning import Plan, metrics_from_sums, plan_model, read_sums, start_of
from cloister.learning.facts import ModelFacts
from cloister.learning.learner import Shape
from cloister.learning.privacy import private_model
from cloister.learning.private import Bounded
from cloister.runtime.agreed import agreed_of
from cloister.runtime.bodies import Body, as_field
from cloister.runtime.budget import check_debit
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.events import Ended as Finished
from cloister.runtime.events import Refused, RoundDone, Stalled
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.hubjournal import (
    Checkpoint,
    Ended,
    EpochOpened,
    KeepsHub,
    Kept,
    RoundBrief,
    RoundEnded,
    SiteAppraised,
    TermTaken,
)
from cloister.runtime.messages import (
    Concluded,
    Done,
    Finish,
    Join,
    Message,
    Outcome,
    Ready,
    SealedState,
    State,
    StateRequest,
    Stop,
    StudyKeys,
    Upload,
)
from cloister.runtime.result import EpochFacts, StudyResult, TransportName
from cloister.runtime.store import record_of
from cloister.runtime.studykey import open_study_key, read_study_keys
from cloister.runtime.sumhub import PATIENCE, Epoch, Outgoing, Step, SumHub
from cloister.secagg import RoundSum, model_digest
from cloister.vault import Manifest, Schema

__all__ = ["PATIENCE", "Hub", "Outgoing", "Step"]

_SMALL_BYTES = 64 << 20
"""What is not a model or its shares, such as manifests, is smaller."""


class Hub(SumHub[EpochTerms]):
    """The hub of one study.

    Args:
        plan: the study's plan.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema the plan names; it says what the model's parameters and metrics mean.
        user_code: the Python file of a module of the user's own, which the hub has read and allows.
        facts: what is stated of the plan's model; then no code of a user's runs in this process. A language
            model needs them (`workers.models.known_model`).
        journal: keeps what must survive the process; by default it does not.
        transport: how messages travel, for the record.
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
        facts: ModelFacts | None = None,
        journal: KeepsHub | None = None,
        transport: TransportName = "memory",
    ) -> None:
        super().__init__(
            agreed_of(plan),
            identity,
            sites,
            schema=plan.data.schema,
            deadline_seconds=plan.study.deadline_seconds,
            patience=plan.study.patience if isinstance(plan.study.patience, int) else PATIENCE,
            journal=journal,
        )
        self._plan = plan
        self._transport: TransportName = transport
        self._shape, self._bounded, start = _known(plan, schema, user_code, facts)
        self.model: GlobalModel | None = None
        if plan.aggregation.hub_view == "sum":
            self.model = GlobalModel.of(plan, start, self._shape, spend=True)
        self.study_key: bytes | None = None  # only where the plan lets the hub see the model
        self.rounds: list[RoundDone] = []
        self.final_metrics: tuple[dict[str, float], dict[str, dict[str, float]]] | None = None
        self._started = 0.0
        self._last: Outcome | None = None
        self._evaluations: dict[str, NDArray[np.float64]] = {}
        self._done: dict[str, Done] = {}
        self._ready: dict[str, Ready] = {}
        self._unsent: set[str] = set()  # newcomers whose sealed model is not here yet
        self._asked = ""  # the member that seals it
        self._forgetful: frozenset[str] = frozenset()  # a roster of whom too few held the model
        self._states: dict[str, State] = {}  # what newcomers of this epoch got
        self._concluded: Concluded | None = None

    def __repr__(self) -> str:
        return f"Hub({self._identity.name}, {self._phase}, round {self._round})"

    @property
    def largest(self) -> int:
        """Bytes of the largest message a site has reason to send: a sealed model, or shares for everybody."""
        return _SMALL_BYTES + 64 * self._shape.size + 512 * len(self._plan.sites) * self._plan.attempts

    # --- what the shared part asks ----------------------------------------------------------------

    def _terms(self, number: int, names: Sequence[str]) -> EpochTerms:
        rows = {name: self.joined[name].rows for name in names}
        members = [self._sites[name] for name in names]
        manifests = self._manifests(names)
        return terms_of(self._plan, number, members, rows, manifests, self._bounded, self._shape)

    def _check_join(self, peer: str, join: Join, manifest: Manifest) -> None:
        super()._check_join(peer, join, manifest)
        for epoch in self.epochs:
            if epoch.opened and peer in epoch.joins and epoch.joins[peer].manifest != join.manifest:
                raise ProtocolError("brings another dataset than it began the study with", peer=peer)

    def _too_few(self, names: Sequence[str]) -> str | None:
        if len(names) < self._plan.study.minimum_sites:
            return f"{len(names)} sites take part, the plan asks for {self._plan.study.minimum_sites}"
        try:
            self._plan.params(len(names))
        except PlanError as error:
            return f"{len(names)} sites take part: {error}"
        if self._forgetful.issuperset(names):
            return f"too few sites hold the model of round {self._round} to vouch for it"
        return None

    def _may_renew(self, names: Sequence[str]) -> bool:
        """Under privacy a new roster must leave every figure of the claim as it is."""
        if self._plan.privacy is None or self._attempt < 0 or self._too_few(names) is not None:
            return True
        return self._terms(0, names).privacy == self._current().terms.privacy

    def _check_ready(self, peer: str, message: Ready) -> None:
        self._ready[peer] = message
        if peer == self._members()[0]:
            self._check_study_keys(message.study_keys or b"")
            self._current().study_keys = message.study_keys or b""

    def _announce_start(self) -> None:
        self._broadcast(StudyKeys(self._current().study_keys))

    # --- the model, for who comes later -----------------------------------------------------------

    def _begin_epoch(self, now: float) -> None:
        self._states = {}
        behind = [name for name in self._members() if self._ready[name].rounds != self._round]
        vouchers = self._vouchers()
        if behind and len(vouchers) <= self._current().terms.context.params.colluders:
            self._forgetful = frozenset(self._members())  # one who holds it may still come back
            self._offer(self._members(), now)
            return
        self._forgetful = frozenset()
        if behind and self.model is None:
            self._enter("state", now)
            self._unsent, self._asked = set(behind), next(iter(vouchers))
            self._send(self._asked, StateRequest(behind))
        else:
            if behind and self.model is not None:
                state = self._journal.set_aside(self.model.snapshot())  # it does not stay as it is
                for name in behind:
                    self._hand_on(name, state, sealed=False)
            self._begin(None, now)

    def _hand_on(self, name: str, state: Buffer | Body, *, sealed: bool) -> None:
        vouchers = list(self._vouchers().values())
        self._states[name] = State(self._round, as_field(state), sealed, vouchers)
        self._send(name, self._states[name])

    def _vouchers(self) -> dict[str, bytes]:
        """Return the vouchers of the members that are where the hub is."""
        return {
            name: ready.voucher
            for name, ready in self._ready.items()
            if name in self._members() and ready.rounds == self._round and ready.voucher is not None
        }

    def _handle_more(self, peer: str, message: Message, now: float) -> bool:
        if self._phase != "state" or not isinstance(message, SealedState) or peer != self._asked:
            return False
        if message.receiver in self._unsent:
            self._unsent.remove(message.receiver)
            self._hand_on(message.receiver, self._journal.set_aside(message.sealed), sealed=True)
        if not self._unsent:
            self._begin(None, now)
        return True

    def _more_deadlines(self, now: float) -> None:
        """Nobody handed the model on: begin the epoch again without who was asked."""
        if self._phase == "state":
            self._present.discard(self._asked)
            self._offer([name for name in self._members() if name != self._asked], now)

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
        return tag, self._current().terms.vector_size(self._shape.size)

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
        number = epoch.terms.number
        done = RoundDone(
            self._round, self._attempt, result.survivors, now - self._started, metrics, by_site, number
        )
        total = self._journal.set_aside(epoch.terms.encoding.to_bytes(result.total))
        outcome = Outcome(self._round, self._attempt, list(result.survivors), as_field(total))
        self._journal.append(RoundEnded(number, outcome, done.seconds, metrics, by_site))
        self.rounds.append(done)
        self._note(done)
        self._round += 1
        if self._journal.full:
            self._journal.compact(self._compacted(outcome))
        if self._round < self._plan.training.rounds:
            # sites check that an outcome follows the round it belongs to, so a lost attempt never carries one
            # twice
            self._begin(outcome, now)
        else:
            self._last = outcome
            self._enter("done", now)
            self._broadcast(Finish(outcome))

    # --- going on after a break -------------------------------------------------------------------

    def _restore(self, record: Kept) -> None:
        super()._restore(record)
        match record:
            case EpochOpened():
                if self.model is not None:
                    terms = self._current().terms
                    self.study_key = open_study_key(
                        record.study_keys, terms.first, self._identity, self._plan.digest, terms.number
                    )
            case RoundEnded():
                self._restore_round(record)
            case Checkpoint():
                self.rounds = [
                    RoundDone(each.round, each.attempt, tuple(each.survivors), each.seconds, epoch=each.epoch)
                    for each in record.rounds
                ]
                self._round, self._attempt = len(record.rounds), record.attempt
                self._last = self._kept_last(record.last)
                if self.model is not None:
                    self.model.restore(record.state)
            case Ended():
                self.finished = True
                self.debits = dict(record.debits)
                if record.metrics is not None and record.site_metrics is not None:
                    self.final_metrics = record.metrics, record.site_metrics
            case _:
                pass

    def _restore_round(self, record: RoundEnded) -> None:
        outcome, terms = record.outcome, self._current().terms
        if self.model is not None:
            total = terms.encoding.from_bytes(outcome.total, terms.vector_size(self._shape.size))
            self.model.apply(total, outcome.survivors, terms)
        survivors = tuple(outcome.survivors)
        self.rounds.append(
            RoundDone(
                outcome.round,
                outcome.attempt,
                survivors,
                record.seconds,
                record.metrics,
                record.site_metrics,
                record.epoch,
            )
        )
        self._round, self._attempt = outcome.round + 1, outcome.attempt
        self._last = self._kept_last(outcome)

    def _kept_last(self, outcome: Outcome) -> Outcome | None:
        """Return the outcome of the last round, set aside; None for any other, which nobody asks for here."""
        if outcome.round + 1 < self._plan.training.rounds:
            return None
        return msgspec.structs.replace(outcome, total=as_field(self._journal.set_aside(outcome.total)))

    def _go_on(self, now: float) -> None:
        if self.finished:  # the sites come, and hear it
            self._phase, self._concluded = "finished", self._conclusion()
        elif self._round < self._plan.training.rounds:
            super()._go_on(now)
        else:  # the sites come and are told again
            self._enter("done", now)

    def _repeat(self, peer: str) -> None:
        super()._repeat(peer)
        match self._phase:
            case "state" if peer == self._asked:
                self._send(peer, StateRequest(sorted(self._unsent)))
            case "done" if self._last is not None:
                self._send(peer, Finish(self._last))
            case "finished" if self._concluded is not None:
                self._send(peer, self._concluded)
            case _:
                pass

    def _missed_rounds(self, peer: str, rounds: int, epoch: Epoch[EpochTerms]) -> list[Message] | None:
        first: list[Message] = [StudyKeys(epoch.study_keys)]
        number = epoch.terms.number
        begun = next((done.round for done in self.rounds if done.epoch == number), self._round)
        if rounds < begun:  # outcomes of other epochs are none that it can open
            if self._phase == "state":
                return first  # the model is on its way to it, and so are the others
            if peer not in self._states:
                return None
            first.append(self._states[peer])
        missed = super()._missed_rounds(peer, max(rounds, begun), epoch)
        if missed is None:
            return None
        # the last outcome comes with the order to finish
        return [*first, *(missed[:-1] if self._phase == "done" else missed)]

    def _compacted(self, last: Outcome) -> list[Kept]:
        """Return what is still needed once the model itself is kept."""
        kept = EpochOpened | TermTaken
        opened = [record for record in self._journal.records(sums=False) if isinstance(record, kept)]
        briefs = [
            RoundBrief(done.epoch, done.round, done.attempt, list(done.survivors), done.seconds)
            for done in self.rounds
        ]
        state = as_field(b"" if self.model is None else self.model.snapshot())
        shown = [SiteAppraised(name, appraised) for name, appraised in self.appraisals.items()]
        return [*opened, *shown, Checkpoint(briefs, self._attempt, state, last)]

    # --- step 5: the end ------------------------------------------------------------------------

    def _done_deadline(self, now: float) -> None:
        """End with those who confirmed it; while they are too few, wait on."""
        self._waits += 1
        if len(self._done) >= self._minimum() or self._waits >= self._patience:
            self._conclude()
            return
        missing = tuple(name for name in self._members() if name not in self._done)
        self._note(Stalled(self._round, missing))
        self._wait(now)

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
        self._journal.append(Ended(self.debits, *(self.final_metrics or ())), durable=True)
        self._phase = "finished"
        self.finished = True
        self._note(Finished(len(self.rounds)))
        self._concluded = self._conclusion()
        self._broadcast(self._concluded)
        for name in self._newcomers:
            self._send(name, Stop("the study ended before it could take part"))

    def _conclusion(self) -> Concluded:
        return Concluded(canonical_bytes(record_of(self.result())), self._current().study_keys)

    def result(
        self,
        *,
        model: NDArray[np.float64] | None = None,
        study_key: bytes | None = None,
        clamped: Mapping[str, int] | None = None,
        traffic: Mapping[tuple[str, str], int] | None = None,
    ) -> StudyResult:
        """Return what the study leaves behind.

        Args:
            model: the released model, where the hub may not see it.
            study_key: likewise.
            clamped, traffic: see `StudyResult`.
        """
        used = {done.epoch for done in self.rounds} | {self._current().terms.number}
        return StudyResult(
            plan=self._plan,
            hub=self._identity.public,
            epochs=tuple(self._facts(epoch) for epoch in self.epochs if epoch.terms.number in used),
            rounds=tuple(self.rounds),
            final_metrics=self.final_metrics,
            model=self.model.released()
            if self.model is not None
            else np.empty(0)
            if model is None
            else model,
            study_key=study_key or self.study_key or b"",
            privacy=self._current().terms.privacy,
            debits=dict(self.debits),
            clamped=clamped or {},
            traffic=traffic or {},
            transport=self._transport,
            appraisals=dict(self.appraisals),
        )

    @staticmethod
    def _facts(epoch: Epoch[EpochTerms]) -> EpochFacts:
        return EpochFacts(
            number=epoch.terms.number,
            members=epoch.terms.roster.members,
            rows={name: join.rows for name, join in epoch.joins.items()},
            manifests={name: join.manifest for name, join in epoch.joins.items()},
            countersignatures=dict(epoch.countersignatures),
            setup_digest=epoch.secure_sum.setup_digest,
            study_keys=epoch.study_keys,
        )

    # --- helpers --------------------------------------------------------------------------------

    def _evaluation(self, peer: str, values: list[float] | None) -> NDArray[np.float64] | None:
        """Return a site's evaluation sums, None where there are none or the plan does not ask for them."""
        if values is None or not self._plan.data.public_rows:
            return None
        try:
            return read_sums(self._shape, values)
        except InputError as error:
            raise ProtocolError(error.what, peer=peer) from error

    def _metrics(
        self, evaluations: Mapping[str, NDArray[np.float64]]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]] | tuple[None, None]:
        if not evaluations:
            return None, None
        by_site = {name: metrics_from_sums(sums) for name, sums in evaluations.items()}
        return metrics_from_sums(np.sum(list(evaluations.values()), axis=0)), by_site


def _known(
    plan: Plan, schema: Schema, user_code: Path | None, facts: ModelFacts | None
) -> tuple[Shape, Bounded, NDArray[np.float64]]:
    """Return what a hub knows of the model, and its pinned start: as stated by a worker, or of its own."""
    if facts is not None:
        facts.require_pinned(plan)
        slim = msgspec.structs.replace(facts, start=b"")  # the model has it, and is large
        return slim, slim, facts.initial
    _, model = plan_model(plan, schema, user_code=user_code)
    return model, private_model(model), start_of(plan, model)
