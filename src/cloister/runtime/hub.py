"""The hub, as a state machine: messages and times in, messages and events out.

It relays, counts and adds; it holds ciphertext, round metadata, and the sum of updates where the plan says
hub_view = "sum". Order:

    1. hello to every site of the plan; collect Join until all are there or the deadline passes
    2. offer a roster, collect countersignatures, publish them
    3. relay the secure-sum set-up; it is all or nothing: who is missing or caught lying is left out, and a
       new epoch begins
    4. rounds: start, collect masked uploads, close, collect answers, publish the outcome
    5. finish: publish the last outcome, compare the tags of the models the sites ended with

Deadlines. Too few uploads: nothing is chosen yet, so the hub waits on (`Stalled`), up to `PATIENCE`
deadlines. Too few answers after a choice: the attempt is burnt and a fresh one begins, while the plan has
attempts left.

A message that does not verify, or comes from somebody who is not on the roster, is refused, reported and
without effect. One that a member signed and that is wrong leaves the member out, if rounds have not begun;
later its part is refused and the others go on while m of them are left. Integrity of the sum against the hub
itself is out of scope; sites protect their updates from it, not the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, InputError, PlanError, ProtocolError, RoundBurnt
from cloister.learning import Plan, metrics_from_sums, plan_model, read_sums, start_of
from cloister.learning.privacy import private_model
from cloister.runtime.budget import check_debit
from cloister.runtime.channel import Channel, peek
from cloister.runtime.epoch import EpochTerms, terms_of
from cloister.runtime.events import (
    Burnt,
    Event,
    Refused,
    RosterAgreed,
    RoundDone,
    SetupDone,
    Stalled,
    Stopped,
)
from cloister.runtime.globalmodel import GlobalModel
from cloister.runtime.messages import (
    MAX_REASON,
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
from cloister.runtime.roster import manifest_digest, read_countersignature
from cloister.runtime.studykey import open_study_key, read_study_keys
from cloister.secagg import RoundSum, SecureSumHub, model_digest
from cloister.vault import Schema, open_manifest

__all__ = ["Hub", "Outgoing", "Step"]

PATIENCE = 10


class Outgoing(NamedTuple):
    """A message for one site."""

    receiver: str
    message: bytes


@dataclass
class Step:
    """What one input led to."""

    outgoing: list[Outgoing] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass
class _Epoch:
    """What belongs to one epoch."""

    terms: EpochTerms
    secure_sum: SecureSumHub
    countersignatures: dict[str, bytes] = field(default_factory=dict)
    study_keys: bytes | None = None


class Hub:
    """The hub of one study.

    Args:
        plan: the study's plan.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema the plan names; it says what the model's parameters and metrics mean.
        user_code: the Python file of a module of the user's own, which the hub has read and allows.
        insecure_test_random: source of session keys in tests.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        schema: Schema,
        *,
        user_code: Path | None = None,
        insecure_test_random: Callable[[int], bytes] | None = None,
    ) -> None:
        if plan.hub.identity != identity.public.fingerprint:
            raise PlanError(
                "the plan names another hub", where="[hub] identity", fix="Use the identity the plan names"
            )
        for entry in plan.sites:
            if entry.name not in sites or sites[entry.name].fingerprint != entry.identity:
                raise PlanError(
                    "no trusted identity with the fingerprint in the plan",
                    where=f"[[sites]] {entry.name}",
                    fix="`cloister keys trust` the identity the site exported",
                )
        self._plan = plan
        self._identity = identity
        self._sites = {entry.name: sites[entry.name] for entry in plan.sites}
        _, self._learned = plan_model(plan, schema, user_code=user_code)
        self._channels = {
            name: Channel(
                identity, site, plan.digest, initiator=True, insecure_test_random=insecure_test_random
            )
            for name, site in self._sites.items()
        }
        self.model = (
            GlobalModel(plan, start_of(plan, self._learned), self._learned.penalised)
            if plan.aggregation.hub_view == "sum"
            else None
        )
        self.study_key: bytes | None = None  # only where the plan lets the hub see the model
        self.joined: dict[str, Join] = {}
        self.epochs: list[_Epoch] = []
        self.rounds: list[RoundDone] = []
        self.final_metrics: tuple[dict[str, float], dict[str, dict[str, float]]] | None = None
        self.debits: dict[str, bytes] = {}
        self.stopped: str | None = None
        self.finished = False
        self._excluded: set[str] = set()
        self._phase = "join"
        self._deadline = 0.0
        self._waits = 0
        self._round = 0
        self._attempt = -1
        self._attempts_used = 0
        self._started = 0.0
        self._evaluations: dict[str, NDArray[np.float64]] = {}
        self._done: dict[str, Done] = {}
        self._answered: set[str] = set()
        self._step = Step()

    def __repr__(self) -> str:
        return f"Hub({self._identity.name}, {self._phase}, round {self._round})"

    # --- inputs ---------------------------------------------------------------------------------

    def start(self, now: float) -> Step:
        """Greet every site of the plan."""
        self._wait(now)
        return Step([Outgoing(name, channel.hello) for name, channel in self._channels.items()])

    def receive(self, message: bytes, now: float) -> Step:
        """Take one message from the network."""
        self._step = Step()
        peer = "unknown"
        try:
            peer = peek(message)
            channel = self._channels.get(peer)
            if channel is None:
                raise ProtocolError("is not in this study", peer=peer)
            payloads = channel.receive(message)
        except CloisterError as error:  # anybody may have sent it: nobody is blamed
            self._note(Refused(peer, str(error)))
            return self._step
        for payload in payloads:
            try:
                self._handle(peer, decode_message(payload, peer=peer), now)
            except CloisterError as error:
                self._refuse(peer, error, now)
        return self._step

    def tick(self, now: float) -> Step:
        """Let time pass; deadlines are acted upon here and nowhere else."""
        self._step = Step()
        if self.finished or self.stopped or now < self._deadline:
            return self._step
        match self._phase:
            case "join":
                self._offer(list(self.joined), now)
            case "roster" | "announce" | "deal" | "ready":
                self._offer([name for name in self._members() if name in self._answered], now)
            case "upload":
                self._upload_deadline(now)
            case "answer":
                self._burn("too few sites answered", now)
            case "done":
                self._conclude()
        return self._step

    # --- dispatch -------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message, now: float) -> None:
        if self.epochs and peer not in self._members():
            self._note(Refused(peer, "is not on the roster"))
            return
        match message:
            case Join() if self._phase == "join":
                self._on_join(peer, message, now)
            case Countersign() if self._phase == "roster":
                self._on_countersign(peer, message, now)
            case Announce() if self._phase == "announce":
                self._on_announce(peer, message, now)
            case Deal() if self._phase == "deal":
                self._on_deal(peer, message, now)
            case Ready() if self._phase == "ready":
                self._on_ready(peer, message, now)
            case Upload() if message.attempt == self._attempt and self._phase == "upload":
                self._on_upload(peer, message, now)
            case Answer() if message.attempt == self._attempt and self._phase == "answer":
                self._on_answer(peer, message, now)
            case Done() if self._phase == "done":
                self._on_done(peer, message)
            case Answer():
                pass  # t others were faster
            case _:  # too late, most often: it was under way when the phase changed
                self._note(Refused(peer, f"{type(message).__name__} came out of turn"))

    def _refuse(self, peer: str, error: CloisterError, now: float) -> None:
        """Report what a peer signed and sent; during set-up, begin again without the member that the error
        names."""
        self._note(Refused(peer, str(error)))
        liar = error.peer if isinstance(error, ProtocolError) else None
        if self._phase in ("roster", "announce", "deal", "ready") and liar in self._members():
            self._excluded.add(str(liar))
            self._offer([name for name in self._members() if name != liar], now)

    # --- steps 1 and 2: joining and the roster --------------------------------------------------

    def _on_join(self, peer: str, join: Join, now: float) -> None:
        if PublicIdentity.from_json(join.identity).fingerprint != self._sites[peer].fingerprint:
            raise ProtocolError("joined with another identity than the plan names", peer=peer)
        manifest = open_manifest(join.manifest, self._sites[peer])
        if manifest.schema.digest().hex() != self._plan.data.schema:
            raise ProtocolError("brings a dataset with another schema than the plan's", peer=peer)
        if join.rows != manifest.rows:
            raise ProtocolError("states another row count than its manifest", peer=peer)
        self.joined[peer] = join
        if len(self.joined) == len(self._sites):
            self._offer(list(self._sites), now)

    def _offer(self, names: list[str], now: float) -> None:
        names = [
            name
            for name in self._sites
            if name in names and name in self.joined and name not in self._excluded
        ]
        if len(names) < self._plan.study.minimum_sites:
            self._stop(f"{len(names)} sites take part, the plan asks for {self._plan.study.minimum_sites}")
            return
        rows = {name: self.joined[name].rows for name in names}
        manifests = {name: manifest_digest(self.joined[name].manifest) for name in names}
        members = [self._sites[name] for name in names]
        try:
            terms = terms_of(
                self._plan, len(self.epochs), members, rows, manifests, private_model(self._learned)
            )
        except PlanError as error:
            self._stop(f"{len(names)} sites take part: {error}")
            return
        self.epochs.append(_Epoch(terms, SecureSumHub(terms.context)))
        self._enter("roster", now)
        identities = [member.to_json() for member in members]
        self._broadcast(RosterOffer(terms.number, identities, list(manifests.values()), list(rows.values())))

    def _on_countersign(self, peer: str, message: Countersign, now: float) -> None:
        epoch = self._current()
        statement = read_countersignature(message.envelope, self._sites[peer])
        due = epoch.terms.countersignature(peer)
        if (statement.roster, statement.epoch) != (due.roster, due.epoch):
            return  # a late answer to an abandoned roster
        if statement != due:
            raise ProtocolError("countersigned another plan, manifest or row count", peer=peer)
        epoch.countersignatures[peer] = message.envelope
        self._answered.add(peer)
        if len(epoch.countersignatures) == len(epoch.terms.roster.members):
            self._note(RosterAgreed(epoch.terms.number, tuple(self._members())))
            self._enter("announce", now)
            self._broadcast(RosterClosed([epoch.countersignatures[name] for name in self._members()]))

    # --- step 3: set-up -------------------------------------------------------------------------

    def _on_announce(self, peer: str, message: Announce, now: float) -> None:
        bodies = self._current().secure_sum.on_announcement(peer, message.body)
        self._answered.add(peer)
        if bodies is not None:
            self._enter("deal", now)
            self._broadcast(Announcements(bodies))

    def _on_deal(self, peer: str, message: Deal, now: float) -> None:
        bundles = self._current().secure_sum.on_deal(peer, message.body)
        self._answered.add(peer)
        if bundles is not None:
            self._enter("ready", now)
            for name, body in bundles.items():
                self._send(name, Bundle(body))

    def _on_ready(self, peer: str, message: Ready, now: float) -> None:
        epoch = self._current()
        if message.setup_digest != epoch.secure_sum.setup_digest:
            raise ProtocolError("ended the set-up with another digest", peer=peer)
        if peer == self._members()[0]:
            self._check_study_keys(epoch, message.study_keys or b"")
            epoch.study_keys = message.study_keys
        self._answered.add(peer)
        if len(self._answered) < len(epoch.terms.roster.members) or epoch.study_keys is None:
            return
        self._note(SetupDone(epoch.terms.number, message.setup_digest))
        self._broadcast(StudyKeys(epoch.study_keys))
        self._begin(None, now)

    def _check_study_keys(self, epoch: _Epoch, envelope: bytes) -> None:
        bound = (epoch.terms.first, self._plan.digest, epoch.terms.number)
        read_study_keys(
            envelope,
            *bound,
            readers=[*epoch.terms.roster.names, *([] if self.model is None else [self._identity.name])],
        )
        if self.model is not None:
            self.study_key = open_study_key(envelope, bound[0], self._identity, *bound[1:])

    # --- step 4: rounds -------------------------------------------------------------------------

    def _begin(self, outcome: Outcome | None, now: float) -> None:
        self._attempts_used += 1
        if self._attempts_used > self._plan.attempts:
            self._stop(f"all {self._plan.attempts} attempts of the plan are used; raise spare_rounds")
            return
        self._attempt += 1
        # where the hub may see the model it says which one uploads must come from; else the first upload says
        tag = None if self.model is None else model_digest(self.model.params)
        epoch = self._current()
        epoch.secure_sum.begin(self._attempt, model_tag=tag, size=epoch.terms.vector_size(self._learned.size))
        self._evaluations = {}
        self._started = now
        self._enter("upload", now)
        self._broadcast(RoundStart(self._round, self._attempt, outcome))

    def _on_upload(self, peer: str, message: Upload, now: float) -> None:
        secure_sum = self._current().secure_sum
        evaluation = self._evaluation(peer, message.evaluation)
        secure_sum.on_upload(peer, message.body)
        if evaluation is not None:
            self._evaluations[peer] = evaluation
        if len(secure_sum.uploaded) == len(self._members()):
            self._close(now)

    def _upload_deadline(self, now: float) -> None:
        epoch = self._current()
        if len(epoch.secure_sum.uploaded) >= epoch.terms.context.params.minimum:
            self._close(now)
            return
        missing = tuple(name for name in self._members() if name not in epoch.secure_sum.uploaded)
        self._waits += 1
        if self._waits >= PATIENCE:
            self._stop(f"round {self._round} waited {PATIENCE} deadlines for {', '.join(missing)}")
            return
        self._note(Stalled(self._round, missing))
        self._wait(now)

    def _close(self, now: float) -> None:
        requests = self._current().secure_sum.close()
        self._enter("answer", now)
        for name, body in requests.items():
            self._send(name, Request(self._attempt, body))

    def _on_answer(self, peer: str, message: Answer, now: float) -> None:
        secure_sum = self._current().secure_sum
        try:
            more = secure_sum.on_answer(peer, message.body)
        except RoundBurnt as burnt:
            self._burn(str(burnt), now)
            return
        for name, body in (more or {}).items():
            self._send(name, Request(self._attempt, body))
        result = secure_sum.result()
        if result is not None:
            self._on_sum(result, now)

    def _burn(self, reason: str, now: float) -> None:
        self._current().secure_sum.burn()
        self._note(Burnt(self._round, self._attempt, reason))
        self._begin(None, now)

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

    def _current(self) -> _Epoch:
        return self.epochs[-1]

    def _members(self) -> list[str]:
        return [member.name for member in self._current().terms.roster.members]

    def _enter(self, phase: str, now: float) -> None:
        self._phase = phase
        self._answered = set()
        self._waits = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._deadline = now + self._plan.study.deadline_seconds

    def _note(self, event: Event) -> None:
        self._step.events.append(event)

    def _send(self, name: str, message: Message) -> None:
        self._step.outgoing.append(Outgoing(name, self._channels[name].seal(encode_message(message))))

    def _broadcast(self, message: Message) -> None:
        for name in self._members():
            self._send(name, message)

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._phase = "stopped"
        self._note(Stopped(reason))
        for name, channel in self._channels.items():
            if channel.ready:
                self._send(name, Stop(reason[:MAX_REASON]))
