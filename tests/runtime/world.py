"""A hub and its sites without network or clock: a test carries the messages, and may lose or watch them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity, PublicIdentity
from cloister.learning import Plan
from cloister.runtime import Event, Hub, LocalWorker, Party, Site, Step
from cloister.runtime.budget import Budget


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
    ) -> None:
        public = {party.identity.name: party.identity.public for party in parties}
        trusted = {identity.fingerprint: identity for identity in public.values()}
        self.plan = plan
        self.now = 0.0
        self.lost: set[str] = set()
        self.wire: list[tuple[str, str, bytes]] = []
        self.events: list[Event] = []
        self.hub = hub_type(plan, hub, public, parties[0].vault.manifest("train").schema)
        self.sites = {
            name: site_of(plan, hub, party, trusted, (budgets or {}).get(name))
            for party in parties
            if (name := party.identity.name)
        }
        self._queue: deque[tuple[str, str, bytes]] = deque()

    def start(self) -> None:
        self._take(self.hub.start(self.now))

    def run(self, *, until: Callable[[], bool] = lambda: False, limit: int = 100_000) -> None:
        """Carry messages until the study ended or `until`; when none is under way a deadline passes."""
        for _ in range(limit):
            if until() or self.hub.finished or self.hub.stopped:
                break
            if self._queue:
                self.carry()
            else:
                self.now += self.plan.study.deadline_seconds + 1
                self._take(self.hub.tick(self.now))
        while self._queue and not until():
            self.carry()

    def carry(self) -> None:
        """Carry one message."""
        sender, receiver, message = self._queue.popleft()
        if {sender, receiver} & self.lost:
            return
        self.wire.append((sender, receiver, message))
        if receiver in self.sites:
            for reply in self.sites[receiver].receive(message):
                self._queue.append((receiver, "hub", reply))
        else:
            self._take(self.hub.receive(message, self.now))

    def _take(self, step: Step) -> None:
        self.events += step.events
        self._queue.extend(("hub", outgoing.receiver, outgoing.message) for outgoing in step.outgoing)
