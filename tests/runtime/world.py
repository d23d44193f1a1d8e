"""A hub and its sites without network or clock: a test carries the messages, and may lose or watch them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity, PublicIdentity
from cloister.learning import Plan
from cloister.runtime import Event, Hub, HubEnd, LocalWorker, Party, Site, SiteEnd
from cloister.runtime.budget import Budget
from cloister.runtime.hubjournal import KeepsHub
from cloister.runtime.messages import Message


def site_of(
    plan: Plan,
    hub: Identity,
    party: Party,
    trusted: Mapping[str, PublicIdentity],
    budget: Budget | None = None,
) -> Site:
    dataset = party.vault.open("train", purpose=PURPOSE)
    return Site(
        plan,
        party.identity,
        hub.public,
        trusted=trusted,
        manifest=dataset.envelope,
        rows=dataset.rows,
        worker=LocalWorker(
            plan,
            dataset.schema,
            dataset.table,
            evaluation=party.vault.open("test", purpose=PURPOSE).table,
        ),
        budget=budget,
    )


class World:
    """Everybody of a study.

    Attributes:
        lost: names of sites that are unreachable in both directions, until taken out.
        slow: names of sites whose datagrams wait for `hurry`.
        wire: every (sender, receiver, bytes) that was carried.
        events: what the hub reported.
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
        self._hub_identity, self._public = hub, public
        self._identities = {party.identity.name: party.identity for party in parties}
        schema = parties[0].vault.manifest("train").schema
        self.hub = hub_type(plan, hub, public, schema, **({"journal": journal} if journal else {}))
        self.sites = {
            name: site_of(plan, hub, party, trusted, (budgets or {}).get(name))
            for party in parties
            if (name := party.identity.name)
        }
        self.hub_end = HubEnd(self.hub, hub, public, plan.digest)
        self.ends = {name: self._end_of(name) for name in self.sites}
        self._queue: deque[tuple[str, str, bytes]] = deque()

    def _end_of(self, name: str) -> SiteEnd:
        return SiteEnd(self.sites[name], self._identities[name], self._hub_identity.public, self.plan.digest)

    def start(self) -> None:
        self.events += self.hub_end.start(self.now)
        for end in self.ends.values():
            end.open(self.now)
        self.collect()

    def run(self, *, until: Callable[[], bool] = lambda: False, limit: int = 100_000) -> None:
        """Carry messages until the study ended or `until`; when none is under way a deadline passes."""
        for _ in range(limit):
            if until() or self.hub.finished or self.hub.stopped:
                break
            if self._queue:
                self.carry()
            else:
                self.now += self.plan.study.deadline_seconds + 1
                self.events += self.hub_end.tick(self.now)
                self.collect()
        while self._queue and not until():
            self.carry()

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
            self.ends[receiver].take(datagram, self.now)
        else:
            self.events += self.hub_end.receive(datagram, self.now)
        self.collect()

    def hurry(self) -> None:
        """Let what waited go on its way."""
        self.slow.clear()
        self._queue.extendleft(reversed(self._late))
        self._late.clear()

    def collect(self) -> None:
        """Queue what everybody has to send."""
        for name, end in self.ends.items():
            self._queue.extend((name, "hub", datagram) for datagram in end.poll(self.now))
        self._queue.extend(("hub", receiver, datagram) for receiver, datagram in self.hub_end.poll(self.now))

    def say(self, name: str, *messages: Message) -> None:
        """Let a site send these, whatever its machine would do."""
        self.ends[name].answer(messages)
        self.collect()
