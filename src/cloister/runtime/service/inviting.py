"""A hub's end that also finds its sites: it invites those who are not there, hears who declines, and shuts
out who is revoked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.errors import CloisterError
from cloister.learning import Plan
from cloister.runtime.attestation import Attesting
from cloister.runtime.ends import HubEnd
from cloister.runtime.events import Event, Refused
from cloister.runtime.hub import Hub
from cloister.runtime.invite import is_decline, is_greeting, make_invite, read_decline, read_knock

__all__ = ["INVITE_SECONDS", "InvitingEnd"]

INVITE_SECONDS = 5.0
"""How often a site that is not there is invited again."""
_KNOCK_SECONDS = 0.5  # a site that knocks more often is answered as if it did not


class InvitingEnd(HubEnd):
    """A `HubEnd` over a network on which sites come and go.

    Args:
        machine: the hub.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        plan: what they are invited to.
        term: of the hub's lease.
        trusted: returns the fingerprints that are trusted now, another object whenever they change; asked
            before every message.
        attesting, aside: as in `HubEnd`.
    """

    def __init__(
        self,
        machine: Hub,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        plan: Plan,
        *,
        term: int,
        trusted: Callable[[], Collection[str]],
        silence_seconds: float,
        attesting: Attesting | None = None,
        aside: Path | None = None,
    ) -> None:
        super().__init__(
            machine,
            identity,
            sites,
            plan.digest,
            term=term,
            silence_seconds=silence_seconds,
            largest=machine.largest,
            attesting=attesting,
            aside=aside,
        )
        self._identity = identity
        self._sites = dict(sites)
        self._plan = plan
        self._term = term
        self._trusted = trusted
        self._seen: Collection[str] | None = None
        self._instance = os.urandom(16)
        self._invited = dict.fromkeys(self._sites, -math.inf)
        self._answered = dict.fromkeys(self._sites, -math.inf)  # knocks
        self._invites: list[tuple[str, bytes]] = []

    def receive(self, datagram: Buffer, now: float) -> list[Event]:
        """Take a datagram: a knock, a decline, or one of a session."""
        events = self._shut_out(now)
        if not is_greeting(datagram):
            return events + super().receive(datagram, now)
        try:
            if is_decline(datagram):
                return events + self._hear_decline(datagram)
            site = read_knock(datagram, self._identity.name, self._sites)
        except CloisterError as error:
            return [*events, Refused("unknown", str(error))]
        # an invitation that was sent unasked may have come before the site listened: it does not count
        if now - self._answered[site] > _KNOCK_SECONDS and not self.barred(site):
            self._answered[site] = now
            self._invite(site, now)
        return events

    def _hear_decline(self, datagram: Buffer) -> list[Event]:
        """Hear that a site begins nothing; one that has a session says so there."""
        declined = read_decline(datagram, self._identity, self._sites, self._plan.digest, self._instance)
        if declined is None:  # it answers what this hub said before it was started anew
            return []
        site, reason = declined
        if self.connected(site) or self.barred(site):
            return []
        return self._take(self.machine.decline(site, reason))

    def tick(self, now: float) -> list[Event]:
        """Let time pass: who is not there is invited again, unless nobody is left to wait for."""
        events = self._shut_out(now) + super().tick(now) + self._take(self.machine.look_around())
        for name in self._sites:
            absent = not self.connected(name) and not self.barred(name)
            if absent and now - self._invited[name] > INVITE_SECONDS:
                self._invite(name, now)
        return events

    def poll(self, now: float) -> Iterator[tuple[str, bytes]]:
        """Yield what there is to send."""
        while self._invites:
            yield self._invites.pop()
        yield from super().poll(now)

    def _invite(self, name: str, now: float) -> None:
        self._invited[name] = now
        invite = make_invite(self._identity, self._sites[name], self._plan, self._term, self._instance)
        self._invites.append((name, invite))

    def _shut_out(self, now: float) -> list[Event]:
        trusted = self._trusted()
        if trusted is self._seen:  # asked before every message; every site is looked at when it changes
            return []
        self._seen = trusted
        gone = [name for name, site in self._sites.items() if site.fingerprint not in trusted]
        events: list[Event] = []
        for name in gone:
            del self._sites[name]
            events += self.revoke(name, now)
        return events
