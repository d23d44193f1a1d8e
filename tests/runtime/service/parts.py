"""A hub service and site services over any transport, in one process. Importable, not collected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.runtime.parties import schema

from cloister.crypto import Identity, PublicIdentity
from cloister.learning import Plan
from cloister.runtime import Event, Hub, MemoryNetwork, Party, Site
from cloister.runtime.attestation import Attesting
from cloister.runtime.hubjournal import open_hub_log
from cloister.runtime.invite import Invitation
from cloister.runtime.journal import KeepsSite, NoJournal
from cloister.runtime.party import site_of
from cloister.runtime.service import HubService, NoLease, SiteService
from cloister.runtime.sitepolicy import Decision
from cloister.types import Transport


@dataclass
class Net:
    """A plan's parties, each of which can be started, killed and started again.

    Attributes:
        transport_of: makes a party's transport, by name.
        journals: makes a site's journal, by name.
        at_end: is called where a site keeps what its study left, by name.
        at_leaving: is called where a site closes what it opened, by name.
        attesting: what each party shows of itself, by name, where the plan asks for evidence.
        events: what the hub reported.
        sites: machines by name, the newest.
    """

    plan: Plan
    hub: Identity
    parties: Mapping[str, Party]
    root: Path
    transport_of: Callable[[str], Transport]
    journals: Callable[[str], KeepsSite] = lambda name: NoJournal()
    at_end: Callable[[str], None] = lambda name: None
    at_leaving: Callable[[str], None] = lambda name: None
    verdict: Callable[[str], Decision] = lambda name: Decision("accept", ())
    attesting: Mapping[str, Attesting] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    site_events: dict[str, list[Event]] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    services: dict[str, SiteService] = field(default_factory=dict)
    distrusted: set[str] = field(default_factory=set)

    def _public(self) -> dict[str, PublicIdentity]:
        return {name: party.identity.public for name, party in self.parties.items()}

    def _trusted(self) -> dict[str, PublicIdentity]:
        everybody = [self.hub.public, *self._public().values()]
        return {each.fingerprint: each for each in everybody if each.name not in self.distrusted}

    async def run_hub(self) -> Hub:
        service = HubService(
            self.plan,
            self.hub,
            self._public(),
            schema(),
            self.transport_of("hub"),
            open_log=lambda: open_hub_log(self.root / "hub-journal", self.plan.digest, self.hub),
            lease=NoLease(),
            trusted=self._trusted,
            on_event=self.events.append,
            attesting=self.attesting.get("hub"),
        )
        return await service.run()

    async def run_site(self, name: str) -> None:
        party = self.parties[name]

        def open_site(invitation: Invitation) -> Site:
            trusted = tuple(self._trusted().values())
            bound = Party(party.identity, party.vault, party.held_out, trusted, party.ledger)
            self.sites[name] = site_of(invitation.plan, invitation.hub, bound, journal=self.journals(name))
            return self.sites[name]

        service = self.services[name] = SiteService(
            party.identity,
            ["hub"],
            self.transport_of(name),
            trusted=self._trusted,
            decide=lambda invitation: self.verdict(name),
            open_site=open_site,
            on_end=lambda invitation, site: self.at_end(name),
            on_left=lambda invitation, site: self.at_leaving(name),
            on_event=lambda study, event: self.site_events.setdefault(name, []).append(event),
            attesting_of=(lambda invitation, site: self.attesting[name]) if name in self.attesting else None,
        )
        await service.run(until=lambda: bool(service.ended))


async def all_of(net: Net, names: Sequence[str]) -> Hub:
    """Run hub and sites to their end."""
    hub, *_ = await asyncio.gather(net.run_hub(), *(net.run_site(name) for name in names))
    return hub


def memory(network: MemoryNetwork) -> Callable[[str], Transport]:
    """Return what opens mailboxes of a network once, and hands the same one out afterwards."""
    boxes: dict[str, Transport] = {}
    for name in ["hub", *(f"site{index}" for index in range(10))]:
        boxes[name] = network.join(name)
    return boxes.__getitem__
