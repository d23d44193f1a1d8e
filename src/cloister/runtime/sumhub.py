"""What every hub of a secure sum does: joining, roster, set-up, and one sum after another.

Messages and times in, messages and events out:

    1. hello to every site of the plan; collect Join until all are there or the deadline passes
    2. offer a roster, collect countersignatures, publish them
    3. relay the secure-sum set-up; it is all or nothing: who is missing or caught lying is left out, and a
       new epoch begins
    4. an attempt: start, collect masked uploads, close, collect answers

What is summed, and what becomes of a sum, is for the hubs of studies and queries, which fill in the methods
that are named abstract here.

Membership. Who does not answer by a deadline is absent: nobody waits for it until it sends something. A
site that comes back says in its `Join` where it was. With the epoch's secrets it goes on where the others
are; without them, and as any other newcomer, it waits for the next epoch, which begins after the round, or
at once where the round cannot end without it. A revoked member ends the epoch at once. Where there can be no
epoch over those who are there, the hub waits for the others.

Journal. What was offered, agreed, begun, chosen and summed is appended before a byte of it leaves, so a hub
that died goes on with `resume`: whoever was in the middle of something sends it again, byte for byte.

Deadlines. Too few uploads: nothing is chosen yet, so the hub waits on (`Stalled`), up to `PATIENCE`
deadlines. Too few answers after a choice: the attempt is burnt and a fresh one begins, while the plan has
attempts left.

A message that does not verify, or comes from somebody who is not on the roster, is refused, reported and
without effect. One that a member signed and that is wrong leaves the member out, if attempts have not begun;
later its part is refused and the others go on while m of them are left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, PlanError, ProtocolError, RoundBurnt, StorageError
from cloister.runtime.agreed import Agreed
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.events import (
    Burnt,
    EpochEnded,
    Event,
    Lost,
    Refused,
    Resumed,
    RosterAgreed,
    SetupDone,
    Stalled,
    Stopped,
)
from cloister.runtime.hubjournal import (
    AttemptBegun,
    EpochOffered,
    EpochOpened,
    KeepsHub,
    Kept,
    MemoryJournal,
    RoundEnded,
    SurvivorsFixed,
)
from cloister.runtime.messages import (
    MAX_REASON,
    Announce,
    Announcements,
    Answer,
    Bundle,
    CatchUp,
    Countersign,
    Deal,
    Done,
    Join,
    Leave,
    Message,
    Outcome,
    Position,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
    Upload,
)
from cloister.runtime.roster import manifest_digest, read_countersignature
from cloister.secagg import RoundSum, SecureSumHub
from cloister.vault import Manifest, open_manifest

__all__ = ["PATIENCE", "Epoch", "Outgoing", "Step", "SumHub"]

PATIENCE = 10


class Outgoing(NamedTuple):
    """A message for one site. One that goes to several is the same object in each."""

    receiver: str
    message: Message


@dataclass
class Step:
    """What one input led to."""

    outgoing: list[Outgoing] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


Terms = TypeVar("Terms", bound=RosterTerms)


@dataclass
class Epoch(Generic[Terms]):
    """What belongs to one epoch, as the hub knows it."""

    terms: Terms
    secure_sum: SecureSumHub
    joins: dict[str, Join]
    countersignatures: dict[str, bytes] = field(default_factory=dict)
    study_keys: bytes = b""
    opened: bool = False


class SumHub(ABC, Generic[Terms]):
    """The part of a hub that studies and queries share.

    Args:
        agreed: what the plan names.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: digest of the schema that every dataset must have, hex.
        deadline_seconds: how long the hub waits before a site counts as absent.
        patience: how many deadlines it waits where it cannot go on without somebody.
        journal: keeps what must survive the process; by default it does not.

    Attributes:
        joined: what each site brought that counts on the next roster.
        epochs: every roster that was offered, the newest last.
        debits: signed statement of each site's ledger, as they come in.
        stopped: why it ended before its end, or None.
        finished: whether it came to its end.

    Raises:
        PlanError: another hub is named, or a site's identity is not the plan's.
    """

    ACTIVITY: ClassVar[str]
    """What sites take part in, for messages: "study" or "query"."""

    def __init__(
        self,
        agreed: Agreed,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        *,
        schema: str,
        deadline_seconds: float,
        patience: int = PATIENCE,
        journal: KeepsHub | None = None,
    ) -> None:
        noun = agreed.noun
        if agreed.hub != identity.public.fingerprint:
            raise PlanError(
                f"the {noun} names another hub",
                where=agreed.hub_field,
                fix=f"Use the identity the {noun} names",
            )
        for name, fingerprint in agreed.sites.items():
            if name not in sites or sites[name].fingerprint != fingerprint:
                raise PlanError(
                    f"no trusted identity with the fingerprint in the {noun}",
                    where=f"{agreed.site_field}{name}",
                    fix="`cloister keys trust` the identity the site exported",
                )
        self._agreed = agreed
        self._identity = identity
        self._sites = {name: sites[name] for name in agreed.sites}
        self._schema_digest = schema
        self._deadline_seconds = deadline_seconds
        self._patience = patience
        self._journal = journal or MemoryJournal()
        self.joined: dict[str, Join] = {}
        self.epochs: list[Epoch[Terms]] = []
        self.debits: dict[str, bytes] = {}
        self.stopped: str | None = None
        self.finished = False
        self._excluded: set[str] = set()
        self._present: set[str] = set()
        self._newcomers: set[str] = set()
        self._known: dict[str, Join] = {}  # what each site brought last
        self._left: dict[str, str] = {}
        self._phase = "join"
        self._deadline = 0.0
        self._waits = 0
        self._round = 0
        self._attempt = -1
        self._answered: set[str] = set()
        self._fixed: frozenset[str] = frozenset()  # survivors of an attempt that were chosen before
        self._running = False
        self._next_epoch = 0
        self._anew: Counter[str] = Counter()  # who began the set-up anew, and how often
        self._step = Step()

    # --- what a hub derives from this must say ----------------------------------------------------

    @abstractmethod
    def _terms(self, number: int, names: Sequence[str]) -> Terms:
        """Return the terms of an epoch over these sites. Raises PlanError where it protects nobody."""

    @abstractmethod
    def _prepare(self, now: float) -> tuple[bytes | None, int]:
        """Return the model tag that uploads of the coming attempt must have, and their number of elements."""

    @abstractmethod
    def _on_sum(self, result: RoundSum, now: float) -> None:
        """Take a sum."""

    @abstractmethod
    def _on_done(self, peer: str, message: Done) -> None:
        """A site has ended."""

    @abstractmethod
    def _conclude(self) -> None:
        """End; everybody has, or was waited for."""

    def _check_join(self, peer: str, join: Join, manifest: Manifest) -> None:
        """Raise ProtocolError where a site states another row count than its manifest."""
        if join.rows != manifest.rows:
            raise ProtocolError("states another row count than its manifest", peer=peer)

    def _check_ready(self, peer: str, message: Ready) -> None:
        """Look at what else a member sends with its set-up digest."""

    def _announce_start(self) -> None:
        """Send what members need before the first attempt."""

    def _begin_epoch(self, now: float) -> None:
        """Begin the attempts of an epoch, all of whose members are ready."""
        self._begin(None, now)

    def _may_renew(self, names: Sequence[str]) -> bool:
        """Tell whether a new epoch over these sites may follow the one that runs."""
        return not self._agreed.final_roster

    def _handle_more(self, peer: str, message: Message, now: float) -> bool:
        """Take a message that only some hubs know; False where it is out of turn."""
        return False

    # --- inputs -----------------------------------------------------------------------------------

    def resume(self, now: float) -> Step:
        """Go on from the journal; without records in it, begin.

        Every site is waited for anew: it says where it was, and gets what it misses.
        """
        self._step = Step()
        self._wait(now)
        for record in self._journal.records():
            self._restore(record)
        if (
            not self.epochs
            or not self.epochs[-1].opened
            or self._next_epoch > self._current().terms.number + 1
        ):
            self.joined = {}  # a set-up was interrupted: everybody begins the next one
            return self._step
        self._present = set(self._members())
        self._go_on(now)
        return self._step

    def _restore(self, record: Kept) -> None:
        """Repeat what a record says was done."""
        match record:
            case EpochOffered():
                self._next_epoch = record.number + 1
            case EpochOpened():
                self._reopen(record)
            case AttemptBegun():
                self._round, self._attempt = record.round, record.attempt
                self._running, self._fixed = True, frozenset()
            case SurvivorsFixed():
                self._fixed = frozenset(record.survivors)
            case RoundEnded():
                self._running, self._fixed = False, frozenset()
            case _:
                pass

    def _reopen(self, record: EpochOpened) -> None:
        self._next_epoch = max(self._next_epoch, record.number + 1)  # a checkpoint keeps no offers
        self.joined = dict(zip(record.names, record.joins, strict=True))
        terms = self._terms(record.number, record.names)
        secure_sum = SecureSumHub.restore(terms.context, record.secure_sum)
        signed = dict(zip(record.names, record.countersignatures, strict=True))
        self.epochs.append(
            Epoch(terms, secure_sum, dict(self.joined), signed, record.study_keys, opened=True)
        )
        self._running, self._fixed = False, frozenset()

    def _go_on(self, now: float) -> None:
        """Take up the attempt that was under way, or begin the one that is due."""
        if not self._running:
            self._begin(None, now)
            return
        tag, size = self._prepare(now)
        fixed = self._fixed
        self._secure_sum().resume_attempt(
            self._attempt, model_tag=tag, size=size, survivors=sorted(fixed) if fixed else None
        )
        self._enter("upload", now)
        self._fixed = fixed

    def _epoch_record(self) -> EpochOpened:
        epoch = self._current()
        names = self._members()
        return EpochOpened(
            epoch.terms.number,
            list(names),
            [epoch.joins[name] for name in names],
            [epoch.countersignatures[name] for name in names],
            epoch.secure_sum.snapshot(),
            epoch.study_keys,
        )

    def handle(self, peer: str, message: Message, now: float) -> Step:
        """Take a message that a site signed."""
        self._step = Step()
        try:
            self._handle(peer, message, now)
        except StorageError:  # what should have been written first was not: nothing of it may go out
            raise
        except CloisterError as error:
            self._refuse(peer, error, now)
        return self._step

    def revoke(self, peer: str, now: float) -> Step:
        """Shut out a site whose identity is trusted no more; what it sent before in this round is dropped."""
        self._step = Step()
        if peer in self._sites and peer not in self._excluded:
            self._excluded.add(peer)
            self._present.discard(peer)
            self._newcomers.discard(peer)
            self._note(Lost(peer))
            if self.epochs and peer in self._members() and self._phase not in ("join", "done", "stopped"):
                self._renew(None, now, f"{peer} is trusted no more")
        return self._step

    def tick(self, now: float) -> Step:
        """Let time pass; deadlines are acted upon here and nowhere else."""
        self._step = Step()
        if self.finished or self.stopped or now < self._deadline:
            return self._step
        match self._phase:
            case "join":
                self._join_deadline(now)
            case "roster" | "announce" | "deal" | "ready":
                self._offer([name for name in self._members() if name in self._answered], now)
            case "upload":
                self._upload_deadline(now)
            case "answer":
                self._present &= self._answered
                self._burn("too few sites answered", now)
            case "done":
                self._done_deadline(now)
            case _:
                self._more_deadlines(now)
        return self._step

    def _done_deadline(self, now: float) -> None:
        """End without who has not confirmed it."""
        self._conclude()

    def _more_deadlines(self, now: float) -> None:
        """Act on the deadline of a phase that only some hubs have."""

    # --- dispatch ---------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message, now: float) -> None:
        if peer in self._excluded or peer not in self._sites:
            self._note(Refused(peer, f"is not in this {self.ACTIVITY}"))
            return
        if isinstance(message, Join):
            self._on_join(peer, message, now)
            return
        if isinstance(message, Leave):
            self._on_leave(peer, message, now)
            return
        if peer in self._left:  # it was under way
            self._note(Refused(peer, "takes no part"))
            return
        if self.epochs and (peer not in self._members() or peer in self._newcomers):
            self._note(Refused(peer, "is not on the roster"))
            self._is_here(peer, now)
            return
        if self._phase == "join":
            self._is_here(peer, now)
        self._present.add(peer)
        match message:
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
            case _ if self._handle_more(peer, message, now):
                pass
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

    # --- joining and the roster -------------------------------------------------------------------

    def _on_join(self, peer: str, join: Join, now: float) -> None:
        noun = self._agreed.noun
        if PublicIdentity.from_json(join.identity).fingerprint != self._sites[peer].fingerprint:
            raise ProtocolError(f"joined with another identity than the {noun} names", peer=peer)
        manifest = open_manifest(join.manifest, self._sites[peer])
        if manifest.schema.digest().hex() != self._schema_digest:
            raise ProtocolError(f"brings a dataset with another schema than the {noun}'s", peer=peer)
        self._check_join(peer, join, manifest)
        self._known[peer] = join
        self._left.pop(peer, None)
        if self._phase in ("join", "roster", "announce", "deal", "ready"):
            for missed in self._missed(peer, join.position) or []:  # it can be read in its own epoch alone
                self._send(peer, missed)
            if self._phase != "join" and peer in self._members():
                self.joined[peer] = join  # it began anew, and what it held of this set-up is gone
                self._anew[peer] += 1
                if self._anew[peer] > self._patience:  # one site must not keep the others from beginning
                    self._note(Refused(peer, "began every set-up anew, and is left out"))
                    self._excluded.add(peer)
                    self._offer([name for name in self._members() if name != peer], now)
                    return
                self._offer(self._members(), now)
            else:
                self._is_here(peer, now)
        elif self._phase == "stopped":
            self._send(peer, Stop(str(self.stopped)[:MAX_REASON]))
        else:
            self.joined[peer] = join
            self._on_return(peer, join.position, now)

    def _is_here(self, peer: str, now: float) -> None:
        """Count on a site that is not on the running roster, if it has joined: it comes with the next."""
        if peer not in self._known or self._phase in ("stopped", "finished"):
            return
        self.joined[peer] = self._known[peer]
        if self._phase != "join":
            self._newcomers.add(peer)
            return
        awaited = self._sites.keys() - self._excluded - self._left.keys()
        if awaited <= self.joined.keys() and self._unfit(self._fitting(self.joined)) is None:
            self._offer(self.joined, now)

    # --- who comes back, and who comes later --------------------------------------------------------

    def _on_return(self, peer: str, position: Position | None, now: float) -> None:
        """Let a site go on where the others are, or wait for the next epoch."""
        missed = self._missed(peer, position)
        if peer not in self._members() or missed is None:
            if self._phase == "finished":
                self._send(peer, Stop(f"the {self.ACTIVITY} had ended"))
                return
            self._present.discard(peer)
            self._newcomers.add(peer)
            if self._phase != "done" and self._should_renew():
                self._renew(None, now, f"{peer} begins anew, and too few others are there")
            return
        for message in missed:
            self._send(peer, message)
        self._present.add(peer)
        self._newcomers.discard(peer)
        self._secure_sum().returned(peer)
        self._note(Resumed(self._current().terms.number, self._round, self._attempt))
        self._repeat(peer)

    def _on_leave(self, peer: str, message: Leave, now: float) -> None:
        """Go on without a site that says it takes no part, or no further part."""
        self._note(Refused(peer, f"takes no part: {message.reason}"))
        self._present.discard(peer)
        self._newcomers.discard(peer)
        self.joined.pop(peer, None)
        self._left[peer] = message.reason
        if self._phase in ("roster", "announce", "deal", "ready") and peer in self._members():
            self._offer([name for name in self._members() if name != peer], now)

    def _missed(self, peer: str, position: Position | None) -> list[Message] | None:
        """Return what brings a site from where it was to where the others are; None where it does not hold
        the last epoch that was set up, or that is not kept."""
        epoch = next((epoch for epoch in reversed(self.epochs) if epoch.opened), None)
        if position is None or epoch is None or peer not in epoch.joins:
            return None
        if (position.epoch, position.setup_digest) != (epoch.terms.number, epoch.secure_sum.setup_digest):
            return None
        return self._missed_rounds(peer, position.rounds, epoch)

    def _missed_rounds(self, peer: str, rounds: int, epoch: Epoch[Terms]) -> list[Message] | None:
        """Return the outcomes of the rounds from `rounds` on; None where they are not kept."""
        outcomes = [self._journal.outcome(number) for number in range(rounds, self._round)]
        if rounds > self._round or None in outcomes:
            return None
        return [CatchUp(each) for each in outcomes if each]

    def _repeat(self, peer: str) -> None:
        """Send what the site may not have got."""
        if self._phase == "upload":
            # where survivors are fixed another's vector would count for nothing, and yet be paid for
            if peer not in self._secure_sum().uploaded and peer in (self._fixed or self._members()):
                self._send(peer, RoundStart(self._round, self._attempt, None))
        elif self._phase == "answer" and (request := self._secure_sum().request_for(peer)) is not None:
            self._send(peer, Request(self._attempt, request))

    def _minimum(self) -> int:
        return self._current().terms.context.params.minimum

    def _join_deadline(self, now: float) -> None:
        """Offer a roster over those who joined; while they are too few, wait on."""
        unfit = self._unfit(self._fitting(self.joined))
        if unfit is None:
            self._offer(self.joined, now)
            return
        self._waits += 1
        if self._waits >= self._patience:
            self._stop(unfit)
            return
        self._note(Stalled(self._round, tuple(name for name in self._sites if name not in self.joined)))
        self._wait(now)

    def _unfit(self, names: Sequence[str]) -> str | None:
        """Say why there can be no roster over these sites now, or None."""
        if (few := self._too_few(names)) is not None:
            return few
        try:
            same = self._attempt < 0 or self._may_renew(names)
        except PlanError as error:
            return f"{len(names)} sites take part: {error}"
        if not same:
            return f"what the {self._agreed.noun} claims would change with a roster of {', '.join(names)}"
        return None

    def _too_few(self, names: Sequence[str]) -> str | None:
        """Say why there can be no roster over these sites, or None."""
        try:
            self._terms(0, names)
        except PlanError as error:
            return f"{len(names)} sites take part: {error}"
        return None

    def _next_roster(self) -> list[str] | None:
        """Return whom an epoch that began now would be over, if it let somebody in."""
        names = self._fitting(self._present | self._newcomers)
        return names if self._newcomers.intersection(names) and self._unfit(names) is None else None

    def _should_renew(self) -> bool:
        """Tell whether another epoch helps where this one has too few who are there."""
        few = len(self._present.intersection(self._members())) < self._minimum()
        return few and self._next_roster() is not None

    def _renew(self, outcome: Outcome | None, now: float, reason: str) -> None:
        """End the epoch and begin another over everybody who is there."""
        names = self._present | self._newcomers
        if self._phase in ("upload", "answer") and outcome is None and self._secure_sum().result() is None:
            self._secure_sum().burn()  # what came in is of no more use
            self._note(Burnt(self._round, self._attempt, reason))
        self._note(EpochEnded(self._current().terms.number, reason))
        if outcome is not None:
            for name in self._members():
                if name in self._present:
                    self._send(name, CatchUp(outcome))
        self._offer(names, now)

    def _renewal_due(self) -> str | None:
        """Say why the epoch should end after this round, or None."""
        names = self._next_roster() if self._newcomers else None
        if names is None:
            return None
        return f"{', '.join(sorted(self._newcomers.intersection(names)))} takes part from now on"

    # --- the roster -------------------------------------------------------------------------------

    def _offer(self, names: Collection[str], now: float) -> None:
        """Offer a roster over these and the newcomers, as far as they fit together."""
        names = self._fitting({*names, *self._newcomers})
        number = self._next_epoch
        try:
            if (unfit := self._unfit(names)) is not None:
                self._wait_for_more(names, unfit, now)
                return
            terms = self._terms(number, names)
        except PlanError as error:
            self._stop(f"{len(names)} sites take part: {error}")
            return
        self._next_epoch += 1
        self._journal.append(EpochOffered(number), durable=True)
        joins = {name: self.joined[name] for name in names}
        self.epochs.append(Epoch(terms, SecureSumHub(terms.context), joins))
        self._present = set(names)
        self._newcomers -= set(names)
        self._enter("roster", now)
        identities = [member.to_json() for member in terms.roster.members]
        self._broadcast(
            RosterOffer(terms.number, identities, list(terms.manifests.values()), list(terms.rows.values()))
        )

    def _wait_for_more(self, names: Sequence[str], unfit: str, now: float) -> None:
        """Wait for the sites that are missing; end where that is in vain."""
        left = self._excluded | self._left.keys()
        everybody = [name for name in self._sites if name not in left]
        if self._agreed.final_roster or self._too_few(everybody) is not None:
            self._stop(unfit)
            return
        self.joined = {name: self.joined[name] for name in self._here({*names, *self._newcomers})}
        self._enter("join", now)

    def _fitting(self, names: Collection[str]) -> list[str]:
        """Return whom a roster may be over: all of these; else as many as the last one had, its members
        first."""
        everybody = self._here(names)
        if not self.epochs or self._unfit(everybody) is None:
            return everybody
        first = sorted(everybody, key=lambda name: name not in self._members())
        return self._here(first[: len(self._members())])

    def _here(self, names: Collection[str]) -> list[str]:
        """Return those of these sites that joined and are not shut out, in the plan's order."""
        return [
            name
            for name in self._sites
            if name in names and name in self.joined and name not in self._excluded
        ]

    def _manifests(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the digest of each site's signed manifest."""
        return {name: manifest_digest(self.joined[name].manifest) for name in names}

    def _on_countersign(self, peer: str, message: Countersign, now: float) -> None:
        epoch = self._current()
        statement = read_countersignature(message.envelope, self._sites[peer])
        due = epoch.terms.countersignature(peer)
        if (statement.roster, statement.epoch) != (due.roster, due.epoch):
            return  # a late answer to an abandoned roster
        if statement != due:
            raise ProtocolError(
                f"countersigned another {self._agreed.noun}, manifest or row count", peer=peer
            )
        epoch.countersignatures[peer] = message.envelope
        self._answered.add(peer)
        if len(epoch.countersignatures) == len(epoch.terms.roster.members):
            self._note(RosterAgreed(epoch.terms.number, tuple(self._members())))
            self._enter("announce", now)
            self._broadcast(RosterClosed([epoch.countersignatures[name] for name in self._members()]))

    # --- set-up -----------------------------------------------------------------------------------

    def _on_announce(self, peer: str, message: Announce, now: float) -> None:
        bodies = self._secure_sum().on_announcement(peer, message.body)
        self._answered.add(peer)
        if bodies is not None:
            self._enter("deal", now)
            self._broadcast(Announcements(bodies))

    def _on_deal(self, peer: str, message: Deal, now: float) -> None:
        bundles = self._secure_sum().on_deal(peer, message.body)
        self._answered.add(peer)
        if bundles is not None:
            self._enter("ready", now)
            for name, body in bundles.items():
                self._send(name, Bundle(body))

    def _on_ready(self, peer: str, message: Ready, now: float) -> None:
        if message.setup_digest != self._secure_sum().setup_digest:
            raise ProtocolError("ended the set-up with another digest", peer=peer)
        self._check_ready(peer, message)
        self._answered.add(peer)
        if len(self._answered) == len(self._members()):
            epoch = self._current()
            epoch.opened = True
            self._anew.clear()
            self._journal.append(self._epoch_record(), durable=True)
            self._note(SetupDone(epoch.terms.number, message.setup_digest))
            self._announce_start()
            self._begin_epoch(now)

    # --- an attempt -------------------------------------------------------------------------------

    def _begin(self, outcome: Outcome | None, now: float) -> None:
        """Begin an attempt, or the epoch that is due before it."""
        if (reason := self._renewal_due()) is not None:
            self._renew(outcome, now, reason)
            return
        if self._attempt + 1 >= self._agreed.attempts:
            self._stop(self._exhausted())
            return
        self._attempt += 1
        self._journal.append(AttemptBegun(self._round, self._attempt))
        tag, size = self._prepare(now)
        self._secure_sum().begin(self._attempt, model_tag=tag, size=size)
        self._enter("upload", now)
        self._broadcast(RoundStart(self._round, self._attempt, outcome))

    def _exhausted(self) -> str:
        return f"all {self._agreed.attempts} attempts of the {self._agreed.noun} are used"

    def _on_upload(self, peer: str, message: Upload, now: float) -> None:
        """Take a masked vector; that of the last one who is there ends the collecting."""
        self._secure_sum().on_upload(peer, message.body)
        uploaded = self._secure_sum().uploaded
        expected = self._fixed or self._present.intersection(self._members())
        if uploaded >= expected and len(uploaded) >= self._minimum():
            self._close(now)

    def _upload_deadline(self, now: float) -> None:
        uploaded = self._secure_sum().uploaded
        self._present &= uploaded
        if self._fixed:
            self._burn("a survivor did not send its vector again", now)
            return
        if len(uploaded) >= self._minimum():
            self._close(now)
            return
        missing = tuple(name for name in self._members() if name not in uploaded)
        self._waits += 1
        if self._waits >= self._patience:
            self._stop(f"{self._waiting()} waited {self._patience} deadlines for {', '.join(missing)}")
            return
        if self._should_renew():
            self._renew(None, now, f"{', '.join(missing)} did not come back")
            return
        self._note(Stalled(self._round, missing))
        self._wait(now)

    def _waiting(self) -> str:
        return f"the {self.ACTIVITY}"

    def _close(self, now: float) -> None:
        requests = self._secure_sum().close()
        self._fixed = frozenset(self._secure_sum().uploaded)
        self._journal.append(SurvivorsFixed(self._attempt, sorted(self._fixed)))
        self._enter("answer", now)
        self._ask(requests)

    def _ask(self, requests: Mapping[str, bytes]) -> None:
        for name, body in requests.items():
            if name not in self._newcomers:
                self._send(name, Request(self._attempt, body))

    def _on_answer(self, peer: str, message: Answer, now: float) -> None:
        try:
            more = self._secure_sum().on_answer(peer, message.body)
        except RoundBurnt as burnt:
            self._burn(str(burnt), now)
            return
        self._ask(more or {})
        self._answered.add(peer)
        result = self._secure_sum().result()
        if result is not None:
            self._on_sum(result, now)

    def _burn(self, reason: str, now: float) -> None:
        self._secure_sum().burn()
        self._note(Burnt(self._round, self._attempt, reason))
        self._begin(None, now)

    # --- helpers ----------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the newest roster; empty before there is one."""
        return self._members() if self.epochs else ()

    def _current(self) -> Epoch[Terms]:
        if not self.epochs:
            raise ProtocolError("there is no roster yet", fix="Wait until the sites have joined")
        return self.epochs[-1]

    def _secure_sum(self) -> SecureSumHub:
        return self._current().secure_sum

    def _members(self) -> tuple[str, ...]:
        return self._current().terms.roster.names

    def _enter(self, phase: str, now: float) -> None:
        self._phase = phase
        self._answered = set()
        if phase != "answer":
            self._fixed = frozenset()
        self._waits = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._deadline = now + self._deadline_seconds

    def _note(self, event: Event) -> None:
        self._step.events.append(event)

    def _send(self, name: str, message: Message) -> None:
        self._step.outgoing.append(Outgoing(name, message))

    def _broadcast(self, message: Message) -> None:
        for name in self._members():
            if name not in self._newcomers:  # who has lost the epoch could not read it
                self._send(name, message)  # the absent too: whoever is back reads on

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._phase = "stopped"
        self._note(Stopped(reason))
        for name in self.joined:
            self._send(name, Stop(reason[:MAX_REASON]))
