"""What every hub of a secure sum does: joining, roster, set-up, and one sum after another.

Messages and times in, messages and events out:

    1. hello to every site of the plan; collect Join until all are there or the deadline passes
    2. offer a roster, collect countersignatures, publish them
    3. relay the secure-sum set-up; it is all or nothing: who is missing or caught lying is left out, and a
       new epoch begins
    4. an attempt: start, collect masked uploads, close, collect answers

What is summed, and what becomes of a sum, is for the hubs of studies and queries, which fill in the methods
that are named abstract here.

Deadlines. Too few uploads: nothing is chosen yet, so the hub waits on (`Stalled`), up to `PATIENCE`
deadlines. Too few answers after a choice: the attempt is burnt and a fresh one begins, while the plan has
attempts left.

A message that does not verify, or comes from somebody who is not on the roster, is refused, reported and
without effect. One that a member signed and that is wrong leaves the member out, if attempts have not begun;
later its part is refused and the others go on while m of them are left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, PlanError, ProtocolError, RoundBurnt
from cloister.runtime.agreed import Agreed
from cloister.runtime.channel import Channel, peek
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.events import Burnt, Event, Refused, RosterAgreed, SetupDone, Stalled, Stopped
from cloister.runtime.messages import (
    MAX_REASON,
    Announce,
    Announcements,
    Answer,
    Bundle,
    Countersign,
    Deal,
    Done,
    Join,
    Message,
    Outcome,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
    Upload,
    decode_message,
    encode_message,
)
from cloister.runtime.roster import manifest_digest, read_countersignature
from cloister.secagg import RoundSum, SecureSumHub
from cloister.types import RandomBytes
from cloister.vault import Manifest, open_manifest

__all__ = ["PATIENCE", "Outgoing", "Step", "SumHub"]

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


Terms = TypeVar("Terms", bound=RosterTerms)


@dataclass
class _Epoch(Generic[Terms]):
    """What belongs to one epoch."""

    terms: Terms
    secure_sum: SecureSumHub
    countersignatures: dict[str, bytes] = field(default_factory=dict)


class SumHub(ABC, Generic[Terms]):
    """The part of a hub that studies and queries share.

    Args:
        agreed: what the plan names.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: digest of the schema that every dataset must have, hex.
        deadline_seconds: how long the hub waits before a site counts as dropped out.
        insecure_test_random: source of session keys in tests.

    Attributes:
        joined: what each site brought.
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
        insecure_test_random: RandomBytes | None = None,
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
        self._channels = {
            name: Channel(
                identity, site, agreed.digest, initiator=True, insecure_test_random=insecure_test_random
            )
            for name, site in self._sites.items()
        }
        self.joined: dict[str, Join] = {}
        self.epochs: list[_Epoch[Terms]] = []
        self.debits: dict[str, bytes] = {}
        self.stopped: str | None = None
        self.finished = False
        self._excluded: set[str] = set()
        self._phase = "join"
        self._deadline = 0.0
        self._waits = 0
        self._round = 0
        self._attempt = -1
        self._answered: set[str] = set()
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

    # --- inputs -----------------------------------------------------------------------------------

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
                raise ProtocolError(f"is not in this {self.ACTIVITY}", peer=peer)
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

    # --- dispatch ---------------------------------------------------------------------------------

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

    # --- joining and the roster -------------------------------------------------------------------

    def _on_join(self, peer: str, join: Join, now: float) -> None:
        noun = self._agreed.noun
        if PublicIdentity.from_json(join.identity).fingerprint != self._sites[peer].fingerprint:
            raise ProtocolError(f"joined with another identity than the {noun} names", peer=peer)
        manifest = open_manifest(join.manifest, self._sites[peer])
        if manifest.schema.digest().hex() != self._schema_digest:
            raise ProtocolError(f"brings a dataset with another schema than the {noun}'s", peer=peer)
        self._check_join(peer, join, manifest)
        self.joined[peer] = join
        if len(self.joined) == len(self._sites):
            self._offer(list(self._sites), now)

    def _offer(self, names: list[str], now: float) -> None:
        names = [
            name
            for name in self._sites
            if name in names and name in self.joined and name not in self._excluded
        ]
        try:
            terms = self._terms(len(self.epochs), names)
        except PlanError as error:
            self._stop(f"{len(names)} sites take part: {error}")
            return
        self.epochs.append(_Epoch(terms, SecureSumHub(terms.context)))
        self._enter("roster", now)
        identities = [member.to_json() for member in terms.roster.members]
        self._broadcast(
            RosterOffer(terms.number, identities, list(terms.manifests.values()), list(terms.rows.values()))
        )

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
            self._note(SetupDone(self._current().terms.number, message.setup_digest))
            self._announce_start()
            self._begin(None, now)

    # --- an attempt -------------------------------------------------------------------------------

    def _begin(self, outcome: Outcome | None, now: float) -> None:
        if self._attempt + 1 >= self._agreed.attempts:
            self._stop(self._exhausted())
            return
        self._attempt += 1
        tag, size = self._prepare(now)
        self._secure_sum().begin(self._attempt, model_tag=tag, size=size)
        self._enter("upload", now)
        self._broadcast(RoundStart(self._round, self._attempt, outcome))

    def _exhausted(self) -> str:
        return f"all {self._agreed.attempts} attempts of the {self._agreed.noun} are used"

    def _on_upload(self, peer: str, message: Upload, now: float) -> None:
        """Take a masked vector; everybody's end the collecting."""
        self._secure_sum().on_upload(peer, message.body)
        if len(self._secure_sum().uploaded) == len(self._members()):
            self._close(now)

    def _upload_deadline(self, now: float) -> None:
        uploaded = self._secure_sum().uploaded
        if len(uploaded) >= self._current().terms.context.params.minimum:
            self._close(now)
            return
        missing = tuple(name for name in self._members() if name not in uploaded)
        self._waits += 1
        if self._waits >= PATIENCE:
            self._stop(f"{self._waiting()} waited {PATIENCE} deadlines for {', '.join(missing)}")
            return
        self._note(Stalled(self._round, missing))
        self._wait(now)

    def _waiting(self) -> str:
        return f"the {self.ACTIVITY}"

    def _close(self, now: float) -> None:
        requests = self._secure_sum().close()
        self._enter("answer", now)
        for name, body in requests.items():
            self._send(name, Request(self._attempt, body))

    def _on_answer(self, peer: str, message: Answer, now: float) -> None:
        try:
            more = self._secure_sum().on_answer(peer, message.body)
        except RoundBurnt as burnt:
            self._burn(str(burnt), now)
            return
        for name, body in (more or {}).items():
            self._send(name, Request(self._attempt, body))
        result = self._secure_sum().result()
        if result is not None:
            self._on_sum(result, now)

    def _burn(self, reason: str, now: float) -> None:
        self._secure_sum().burn()
        self._note(Burnt(self._round, self._attempt, reason))
        self._begin(None, now)

    # --- helpers ----------------------------------------------------------------------------------

    def _current(self) -> _Epoch[Terms]:
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
        self._waits = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._deadline = now + self._deadline_seconds

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
