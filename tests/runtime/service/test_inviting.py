"""Who declines an invitation, and when a hub stops for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.parties import parties, plan_for, schema

from cloister.crypto import Identity, PublicIdentity
from cloister.runtime import Event, Hub, Refused
from cloister.runtime.events import Stopped
from cloister.runtime.invite import Invitation, make_decline
from cloister.runtime.service.inviting import InvitingEnd

NAMES = ("site0", "site1", "site2")


class Inviting:
    """A hub that invites three sites, none of which is there."""

    def __init__(self, folder: Path) -> None:
        self.hub = Identity.generate("hub")
        members = parties(folder, [20, 20, 20])
        self.plan = plan_for(self.hub, members)
        self.sites = {each.identity.name: each.identity for each in members}
        public: dict[str, PublicIdentity] = {name: each.public for name, each in self.sites.items()}
        self.trusted = {each.fingerprint for each in public.values()}
        self.machine = Hub(self.plan, self.hub, public, schema())
        self.end = InvitingEnd(
            self.machine,
            self.hub,
            public,
            self.plan,
            term=0,
            trusted=lambda: self.trusted,
            silence_seconds=60.0,
        )
        self.end.start(0.0)

    def decline(self, name: str, *, instance: bytes | None = None) -> list[Event]:
        said = Invitation(self.hub.public, self.plan, 0, instance or self.end._instance)
        return self.end.receive(make_decline(self.sites[name], said, "no"), 0.0)

    def revoke(self, name: str) -> None:
        self.trusted = self.trusted - {self.sites[name].public.fingerprint}


def test_a_decline_that_an_earlier_process_of_the_hub_caused_is_no_news(tmp_path: Path) -> None:
    inviting = Inviting(tmp_path)
    assert inviting.decline("site0", instance=bytes(16)) == []
    assert inviting.decline("site0") == [Refused("site0", "takes no part: no")]


@pytest.mark.parametrize("again", [False, True])
def test_where_the_last_who_did_not_decline_is_shut_out_the_hub_stops(tmp_path: Path, again: bool) -> None:
    inviting = Inviting(tmp_path)
    events = inviting.decline("site0") + inviting.decline("site1")
    assert not any(isinstance(event, Stopped) for event in events)
    inviting.revoke("site2")
    # whoever repeats a refusal is heard as well
    events = inviting.decline("site0") if again else inviting.end.tick(0.1)
    reason = "every site refuses; site0: no; site1: no; site2: is shut out"
    assert Stopped(reason) in events
    assert inviting.machine.stopped == reason
    assert not any(isinstance(event, Refused) for event in events)
    assert inviting.end.tick(0.2) == []  # once
