"""The hub of a query over several sites, as a state machine: messages and times in, messages out.

    1. hello to every site of the plan; collect Join until all are there or the deadline passes
    2. offer a roster, collect countersignatures, publish them
    3. relay the set-up of the secure sum; who is missing or caught lying is left out of a new epoch
    4. start an attempt, collect masked vectors, close, collect answers; the sum
    5. send everybody the sum, collect their ledgers' signed debits

Up to n - m sites may fall silent after the set-up. With fewer than m vectors the hub waits on, `PATIENCE`
deadlines at most; an attempt that was closed and gets too few answers is burnt, and a fresh one begins while
the plan has attempts left, with fresh noise and at everybody's renewed expense.

It holds masked vectors, their sum, and what the sum says. The sum has its noise before it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cloister.crypto import Identity, PublicIdentity, keyring, sha256
from cloister.errors import CloisterError, PlanError, ProtocolError, RoundBurnt
from cloister.privacy.ledger import open_debit
from cloister.privacy.statistics import Answer
from cloister.runtime.channel import Channel, peek
from cloister.runtime.events import Burnt, Event, Refused, RosterAgreed, SetupDone, Stalled, Stopped
from cloister.runtime.hub import Outgoing, Step
from cloister.runtime.messages import (
    MAX_REASON,
    Announce,
    Announcements,
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
    Upload,
    decode_message,
    encode_message,
)
from cloister.runtime.messages import (
    Answer as Reply,
)
from cloister.runtime.queryplan import QueryPlan
from cloister.runtime.querysite import QueryEpoch
from cloister.runtime.roster import manifest_digest, read_countersignature
from cloister.secagg import RoundSum, SecureSumHub, model_digest
from cloister.vault import Schema, open_manifest

__all__ = ["PATIENCE", "QueryHub"]

PATIENCE = 10


class QueryHub:
    """The hub of one query.

    Args:
        plan: what is asked.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema that the plan names.
        insecure_test_random: source of session keys in tests.

    Attributes:
        answers: once there is a sum.
        survivors: whose rows are in it.
        debits: signed statement of each site's ledger, as they come in.
        finished: whether everybody has the sum, or was waited for.
        stopped: why there is none, or None.

    Raises:
        PlanError: another hub is named, or a site's identity is not the plan's.
    """

    def __init__(
        self,
        plan: QueryPlan,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        schema: Schema,
        *,
        insecure_test_random: Callable[[int], bytes] | None = None,
    ) -> None:
        if plan.hub.identity != identity.public.fingerprint:
            raise PlanError("the query names another hub", fix="Use the identity it names")
        for entry in plan.sites:
            if entry.name not in sites or sites[entry.name].fingerprint != entry.identity:
                raise PlanError(
                    "no trusted identity with the fingerprint in the query",
                    where=entry.name,
                    fix="`cloister keys trust` the identity the site exported",
                )
        self._plan = plan
        self._schema = schema
        self._sites = {entry.name: sites[entry.name] for entry in plan.sites}
        self._channels = {
            name: Channel(
                identity, site, plan.digest, initiator=True, insecure_test_random=insecure_test_random
            )
            for name, site in self._sites.items()
        }
        self.answers: tuple[Answer, ...] | None = None
        self.survivors: tuple[str, ...] = ()
        self.debits: dict[str, bytes] = {}
        self.finished = False
        self.stopped: str | None = None
        self._joined: dict[str, Join] = {}
        self._excluded: set[str] = set()
        self._epochs: list[QueryEpoch] = []
        self._sum: SecureSumHub | None = None
        self._signed: dict[str, bytes] = {}
        self._answered: set[str] = set()
        self._phase = "join"
        self._attempt = -1
        self._deadline = 0.0
        self._waits = 0
        self._tag = b""
        self._step = Step()

    def __repr__(self) -> str:
        return f"QueryHub({self._phase}, attempt {self._attempt})"

    @property
    def epoch(self) -> QueryEpoch:
        """The terms of the newest roster. Raises ProtocolError before there is one."""
        if not self._epochs:
            raise ProtocolError("there is no roster yet", fix="Wait until the sites have joined")
        return self._epochs[-1]

    @property
    def attempts(self) -> int:
        """How many sums were tried."""
        return self._attempt + 1

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
                raise ProtocolError("is not in this query", peer=peer)
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
                self._offer(list(self._joined), now)
            case "roster" | "announce" | "deal" | "ready":
                self._offer([name for name in self._members() if name in self._answered], now)
            case "upload":
                self._upload_deadline(now)
            case "answer":
                self._burn("too few sites answered", now)
            case "done":
                self.finished = True
        return self._step

    # --- dispatch ---------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message, now: float) -> None:
        if self._epochs and peer not in self._members():
            self._note(Refused(peer, "is not on the roster"))
            return
        match message:
            case Join() if self._phase == "join":
                self._on_join(peer, message, now)
            case Countersign() if self._phase == "roster":
                self._on_countersign(peer, message, now)
            case Announce() if self._phase == "announce":
                bodies = self._secure_sum().on_announcement(peer, message.body)
                self._answered.add(peer)
                if bodies is not None:
                    self._enter("deal", now)
                    self._broadcast(Announcements(bodies))
            case Deal() if self._phase == "deal":
                bundles = self._secure_sum().on_deal(peer, message.body)
                self._answered.add(peer)
                if bundles is not None:
                    self._enter("ready", now)
                    for name, body in bundles.items():
                        self._send(name, Bundle(body))
            case Ready() if self._phase == "ready":
                self._on_ready(peer, message, now)
            case Upload() if message.attempt == self._attempt and self._phase == "upload":
                self._secure_sum().on_upload(peer, message.body)
                if len(self._secure_sum().uploaded) == len(self._members()):
                    self._close(now)
            case Reply() if message.attempt == self._attempt and self._phase == "answer":
                self._on_answer(peer, message, now)
            case Done() if self._phase == "done":
                self._on_done(peer, message)
            case Reply():
                pass  # t others were faster
            case _:  # too late, most often: it was under way when the phase changed
                self._note(Refused(peer, f"{type(message).__name__} came out of turn"))

    def _refuse(self, peer: str, error: CloisterError, now: float) -> None:
        """Report what a peer signed and sent; during set-up, begin again without whom the error names."""
        self._note(Refused(peer, str(error)))
        liar = error.peer if isinstance(error, ProtocolError) else None
        if self._phase in ("roster", "announce", "deal", "ready") and liar in self._members():
            self._excluded.add(str(liar))
            self._offer([name for name in self._members() if name != liar], now)

    # --- roster and set-up ------------------------------------------------------------------------

    def _on_join(self, peer: str, join: Join, now: float) -> None:
        if PublicIdentity.from_json(join.identity).fingerprint != self._sites[peer].fingerprint:
            raise ProtocolError("joined with another identity than the query names", peer=peer)
        manifest = open_manifest(join.manifest, self._sites[peer])
        if manifest.schema.digest().hex() != self._plan.schema:
            raise ProtocolError("brings a dataset with another schema than the query's", peer=peer)
        rows = next(site.rows for site in self._plan.sites if site.name == peer)
        if not join.rows == manifest.rows == rows:
            raise ProtocolError("states another row count than its manifest or the query", peer=peer)
        self._joined[peer] = join
        if len(self._joined) == len(self._sites):
            self._offer(list(self._sites), now)

    def _offer(self, names: list[str], now: float) -> None:
        names = [
            name
            for name in self._sites
            if name in names and name in self._joined and name not in self._excluded
        ]
        members = tuple(self._sites[name] for name in names)
        manifests = {name: manifest_digest(self._joined[name].manifest) for name in names}
        try:
            epoch = QueryEpoch.of(self._plan, self._schema, len(self._epochs), members, manifests)
        except PlanError as error:
            self._stop(f"{len(names)} sites take part: {error}")
            return
        self._epochs.append(epoch)
        self._sum, self._signed = SecureSumHub(epoch.context), {}
        self._enter("roster", now)
        identities = [member.to_json() for member in members]
        self._broadcast(
            RosterOffer(epoch.context.epoch, identities, list(manifests.values()), list(epoch.rows.values()))
        )

    def _on_countersign(self, peer: str, message: Countersign, now: float) -> None:
        statement = read_countersignature(message.envelope, self._sites[peer])
        due = self.epoch.countersignature(peer)
        if (statement.roster, statement.epoch) != (due.roster, due.epoch):
            return  # a late answer to an abandoned roster
        if statement != due:
            raise ProtocolError("countersigned another query, manifest or row count", peer=peer)
        self._signed[peer] = message.envelope
        self._answered.add(peer)
        if len(self._signed) == len(self._members()):
            self._note(RosterAgreed(due.epoch, tuple(self._members())))
            self._enter("announce", now)
            self._broadcast(RosterClosed([self._signed[name] for name in self._members()]))

    def _on_ready(self, peer: str, message: Ready, now: float) -> None:
        if message.setup_digest != self._secure_sum().setup_digest:
            raise ProtocolError("ended the set-up with another digest", peer=peer)
        self._answered.add(peer)
        if len(self._answered) == len(self._members()):
            self._note(SetupDone(self.epoch.context.epoch, message.setup_digest))
            self._begin(now)

    # --- the sum ----------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        if self._attempt + 1 >= self._plan.attempts:
            self._stop(f"all {self._plan.attempts} attempts of the query are used")
            return
        self._attempt += 1
        self._secure_sum().begin(
            self._attempt, model_tag=model_digest(self._plan.digest), size=self.epoch.release.size
        )
        self._enter("upload", now)
        self._broadcast(RoundStart(0, self._attempt))

    def _upload_deadline(self, now: float) -> None:
        uploaded = self._secure_sum().uploaded
        if len(uploaded) >= self.epoch.context.params.minimum:
            self._close(now)
            return
        missing = tuple(name for name in self._members() if name not in uploaded)
        self._waits += 1
        if self._waits >= PATIENCE:
            self._stop(f"the query waited {PATIENCE} deadlines for {', '.join(missing)}")
            return
        self._note(Stalled(0, missing))
        self._wait(now)

    def _close(self, now: float) -> None:
        requests = self._secure_sum().close()
        self._enter("answer", now)
        for name, body in requests.items():
            self._send(name, Request(self._attempt, body))

    def _on_answer(self, peer: str, message: Reply, now: float) -> None:
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
        self._note(Burnt(0, self._attempt, reason))
        self._begin(now)

    def _on_sum(self, result: RoundSum, now: float) -> None:
        total = result.total.astype("<u4").tobytes()
        self.answers = self.epoch.answers(result.survivors, total)
        self.survivors, self._tag = result.survivors, sha256(total)
        self._enter("done", now)
        self._broadcast(Finish(Outcome(0, self._attempt, list(result.survivors), total)))

    def _on_done(self, peer: str, message: Done) -> None:
        if message.tag != self._tag:
            raise ProtocolError("ended with another sum", peer=peer)
        if message.debit is not None:
            debit = open_debit(message.debit, keyring([self._sites[peer]]))
            if debit.study != self._plan.digest.hex():
                raise ProtocolError("sent the debit of another query", peer=peer)
            self.debits[peer] = message.debit
        self._answered.add(peer)
        self.finished = len(self._answered) == len(self._members())

    # --- helpers ----------------------------------------------------------------------------------

    def _secure_sum(self) -> SecureSumHub:
        if self._sum is None:
            raise ProtocolError("there is no roster yet")
        return self._sum

    def _members(self) -> tuple[str, ...]:
        return self.epoch.context.roster.names

    def _enter(self, phase: str, now: float) -> None:
        self._phase = phase
        self._answered = set()
        self._waits = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._deadline = now + self._plan.deadline_seconds

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
