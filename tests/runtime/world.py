"""A hub and its sites without network or clock: a test carries the messages, and may lose or watch them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError
from cloister.learning import Plan
from cloister.runtime import Event, Hub, HubEnd, Party, Site, SiteEnd
from cloister.runtime.attestation import REFUSED, Attesting
from cloister.runtime.budget import Budget
from cloister.runtime.hubjournal import KeepsHub
from cloister.runtime.journal import KeepsSite
from cloister.runtime.link.session import ACK_DELAY
from cloister.runtime.messages import MAX_REASON, Leave, Message
from cloister.runtime.service.told import told_of
from cloister.runtime.worker import make_worker, model_facts


def site_of(
    plan: Plan,
    hub: Identity,
    party: Party,
    trusted: Mapping[str, PublicIdentity],
    budget: Budget | None = None,
    *,
    journal: KeepsSite | None = None,
    user_code: Path | None = None,
) -> Site:
    dataset = party.vault.open("train", purpose=PURPOSE)
    return Site(
        plan,
        party.identity,
        hub.public,
        trusted=trusted,
        manifest=dataset.envelope,
        rows=dataset.rows,
        worker=make_worker(
            plan,
            dataset.schema,
            dataset.table,
            user_code=user_code,
            base=party.base,
            site=party.identity.name,
            evaluation=party.vault.open("test", purpose=PURPOSE).table,
        ),
        budget=budget,
        journal=journal,
    )


class World:
    """Everybody of a study.

    Args:
        budgets: of sites, by name.
        journal: the hub's; asked again when the hub is started anew.
        journals: opens a site's journal; likewise.
        refusing_leave: whether a site that refuses says so to the hub, as between organisations, and the
            others go on; else the refusal is raised.
        attesting: what each party shows of itself, by name, where the plan asks for evidence.

    Attributes:
        lost: names of sites that are unreachable in both directions, until taken out.
        slow: names of sites whose datagrams wait for `hurry`.
        wire: every (sender, receiver, bytes) that was carried.
        events: what the hub reported.
        refusals: why a site left, by name.
    """

    def __init__(
        self,
        plan: Plan,
        hub: Identity,
        parties: Sequence[Party],
        *,
        hub_type: Callable[..., Hub] = Hub,
        budgets: Mapping[str, Budget] | None = None,
        journal: KeepsHub | None = None,
        journals: Callable[[str], KeepsSite] | None = None,
        user_code: Path | None = None,
        refusing_leave: bool = False,
        attesting: Mapping[str, Attesting] | None = None,
    ) -> None:
        public = {party.identity.name: party.identity.public for party in parties}
        trusted = {identity.fingerprint: identity for identity in public.values()}
        self.plan = plan
        self.now = 0.0
        self.lost: set[str] = set()
        self.slow: set[str] = set()
        self._late: list[tuple[str, str, bytes]] = []
        self.wire: list[tuple[str, str, bytes]] = []
        self.events: list[Event] = []
        self.refusals: dict[str, str] = {}
        self._refusing_leave = refusing_leave
        self.attesting = dict(attesting or {})
        self._hub_identity, self._public = hub, public
        self._parties = {party.identity.name: party for party in parties}
        schema = parties[0].vault.manifest("train").schema
        kept: dict[str, Any] = {"journal": journal} if journal else {}
        if plan.model.is_language:
            kept["facts"] = model_facts(plan, schema, base=parties[0].base)
        self._make_hub = lambda: hub_type(plan, hub, public, schema, user_code=user_code, **kept)
        self._make_site = lambda name: site_of(
            plan,
            hub,
            self._parties[name],
            trusted,
            (budgets or {}).get(name),
            journal=None if journals is None else journals(name),
            user_code=user_code,
        )
        self.hub = self._make_hub()
        self.sites = {name: self._make_site(name) for name in public}
        self.hub_end = self._hub_end()
        self.ends = {name: self._end_of(name) for name in self.sites}
        self._queue: deque[tuple[str, str, bytes]] = deque()

    def _end_of(self, name: str) -> SiteEnd:
        identity = self._parties[name].identity
        return SiteEnd(
            self.sites[name],
            identity,
            self._hub_identity.public,
            self.plan.digest,
            attesting=self.attesting.get(name),
        )

    def _hub_end(self) -> HubEnd:
        attesting = self.attesting.get("hub")
        return HubEnd(self.hub, self._hub_identity, self._public, self.plan.digest, attesting=attesting)

    def start(self) -> None:
        self.events += self.hub_end.start(self.now)
        for end in self.ends.values():
            end.open(self.now)
        self.collect()

    def run(self, *, until: Callable[[], bool] = lambda: False, limit: int = 100_000) -> None:
        """Carry messages until the study ended or `until`; when none is under way, and nothing was only
        waiting to be acknowledged, a deadline passes."""
        for _ in range(limit):
            if until() or self.hub.finished or self.hub.stopped:
                break
            if self._queue:
                self.carry()
                continue
            self.pass_time(ACK_DELAY)
            if not self._queue:
                self.pass_time(self.plan.study.deadline_seconds + 1)
        while self._queue and not until():
            self.carry()

    def pass_time(self, seconds: float) -> None:
        """Let time pass for everybody."""
        self.now += seconds
        self.events += self.hub_end.tick(self.now)
        self._look_at_sites()
        self.collect()

    def carry(self) -> None:
        """Carry one datagram; what leaves a lost site, or is for one, is gone."""
        sender, receiver, datagram = self._queue.popleft()
        if {sender, receiver} & self.lost:
            return
        if {sender, receiver} & self.slow:
            self._late.append((sender, receiver, datagram))
            return
        self.wire.append((sender, receiver, datagram))
        if receiver in self.ends:
            self._take(receiver, datagram)
        else:
            self.events += self.hub_end.receive(datagram, self.now)
        self.collect()

    def _answer_questions(self) -> None:
        """Make and send the evidence that is due."""
        for question in self.hub_end.questions():
            self.hub_end.show(question, question.evidence())

    def _look_at_sites(self) -> None:
        """Let evidence that sites have seen grow old."""
        for name, end in self.ends.items():
            if name in self.refusals:
                continue
            try:
                end.tick(self.now)
            except CloisterError as error:
                self._leaves(name, error)

    def _take(self, name: str, datagram: bytes) -> None:
        end = self.ends[name]
        if name in self.refusals:  # the session lives on until its last word has arrived
            end.receive(datagram, self.now)
            return
        try:
            end.take(datagram, self.now)
        except CloisterError as error:
            self._leaves(name, error)

    def _leaves(self, name: str, error: CloisterError) -> None:
        """Let a site go, as its service would."""
        if not self._refusing_leave:
            raise error
        end = self.ends[name]
        self.refusals[name] = str(error)
        told = told_of(error, private=self.plan.privacy is not None, parties={"hub", *self.sites})
        end.answer([Leave(REFUSED if end.distrusts else told[:MAX_REASON])])

    def hurry(self) -> None:
        """Let what waited go on its way."""
        self.slow.clear()
        self._queue.extendleft(reversed(self._late))
        self._late.clear()

    def collect(self) -> None:
        """Queue what everybody has to send."""
        self._answer_questions()
        for name, end in self.ends.items():
            self._queue.extend((name, "hub", datagram) for datagram in end.poll(self.now))
        self._queue.extend(("hub", receiver, datagram) for receiver, datagram in self.hub_end.poll(self.now))

    def heard(self, name: str, message: Message) -> None:
        """Let the hub hear what a site signed, at once, whatever else is under way."""
        self.events += self.hub_end._take(self.hub.handle(name, message, self.now))
        self.collect()

    def attack_hub(self, datagram: bytes) -> list[Event]:
        """Put a datagram before the hub's end that must tell its machine nothing; return what is reported."""
        with nothing_reaches(self.hub):
            return self.hub_end.receive(datagram, self.now)

    def attack_site(self, name: str, datagram: bytes) -> None:
        """Put a datagram before a site's end that must tell its machine nothing."""
        with nothing_reaches(self.sites[name]):
            self.ends[name].take(datagram, self.now)

    def replace_site(self, name: str, site: Site) -> None:
        """Let another machine, behind a link of its own, be the site of this name."""
        self.sites[name] = site
        self.ends[name] = self._end_of(name)

    def arrive(self, name: str) -> None:
        """Let a site that was away open a session."""
        self.lost.discard(name)
        self.ends[name].open(self.now)
        self.collect()

    def restart_site(self, name: str) -> None:
        """Kill a site's process, with what it had still to send, and start it anew."""
        self._forget(name)
        self.replace_site(name, self._make_site(name))
        self.arrive(name)

    def restart_hub(self) -> None:
        """Kill the hub's process, with what it had still to send, and start it anew."""
        self._forget("hub")
        self.hub = self._make_hub()
        self.hub_end = self._hub_end()
        self.events += self.hub_end.start(self.now)
        for name in self.ends:
            if name not in self.lost:
                self.ends[name].open(self.now)  # the new process invites them
        self.collect()

    def _forget(self, sender: str) -> None:
        self._queue = deque(each for each in self._queue if each[0] != sender)
        self._late = [each for each in self._late if each[0] != sender]

    def say(self, name: str, *messages: Message) -> None:
        """Let a site send these, whatever its machine would do."""
        self.ends[name].answer(messages)
        self.collect()


@contextmanager
def nothing_reaches(machine: Hub | Site) -> Iterator[None]:
    """Fail where a message gets to this machine."""

    def reached(*arguments: object) -> Any:
        raise AssertionError("the machine took it")

    handle = machine.handle
    machine.handle = reached  # type: ignore[method-assign]
    try:
        yield
    finally:
        machine.handle = handle  # type: ignore[method-assign]
