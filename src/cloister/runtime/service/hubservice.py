"""A running hub: it waits for its lease, takes up the journal, serves the study, and stands back when the
lease is lost.

At most one process acts for a study. The lease says which, its term is in every session, and sites listen to
the highest term they have seen; so a hub that was cut off and does not know it yet talks to nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from cloister.crypto import Identity, PublicIdentity
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.runtime.attestation import Attesting
from cloister.runtime.drive import carry_hub, drive_hub
from cloister.runtime.events import Event, LeaseLost, LeaseTaken
from cloister.runtime.hub import Hub
from cloister.runtime.hubjournal import FileJournal, TermTaken
from cloister.runtime.journal import EncryptedLog
from cloister.runtime.service.inviting import InvitingEnd
from cloister.types import Transport
from cloister.vault import Schema

__all__ = ["HoldsLease", "HubService", "NoLease"]

_LINGER_SECONDS = 20.0  # a site that dies at the end needs as long to come back, whatever a round may take
_RENEW_SECONDS = 2.0


def _next_term(journal: FileJournal, term: int) -> int:
    """Return a term above all before, also where the servers lost theirs; it is on the disk."""
    before = [record.term for record in journal.records() if isinstance(record, TermTaken)]
    term = max(term, *(each + 1 for each in before)) if before else term
    journal.append(TermTaken(term), durable=True)
    return term


class HoldsLease(Protocol):
    """Says which process acts for a study."""

    @property
    def held(self) -> bool:
        """Whether this process may act, by the local clock."""

    async def acquire(self) -> int | None:
        """Take the lease and return its term, or None while another holds it."""

    async def renew(self) -> None:
        """Say that this process lives; `held` tells whether that was heard."""

    async def release(self) -> None:
        """Let another take it."""


class NoLease:
    """One process on one machine, whose journal is locked against a second."""

    held = True

    async def acquire(self) -> int | None:
        """Return term 0."""
        return 0

    async def renew(self) -> None:
        """Do nothing."""

    async def release(self) -> None:
        """Do nothing."""


class HubService:
    """The hub of one study between organisations.

    Args:
        plan: the study's plan.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema the plan names.
        transport: the network.
        open_log: opens the journal's file; called when the lease is there. A second opener is refused.
        lease: which process acts.
        trusted: returns the fingerprints that are trusted now.
        user_code: the Python file of a module of the user's own, which the hub allows.
        facts: what a worker states of the plan's model; then that file does not run in this process.
        on_event: is told what happens.
        on_end: keeps a study that came to its end, before another process may act for it.
        attesting: what the aggregator shows, and how the hub's owner judges the sites; needed where the plan
            asks for evidence.

    Attributes:
        hub: the machine, once there is one.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        schema: Schema,
        transport: Transport,
        *,
        open_log: Callable[[], EncryptedLog],
        lease: HoldsLease,
        trusted: Callable[[], Collection[str]],
        user_code: Path | None = None,
        facts: ModelFacts | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        on_end: Callable[[Hub], None] = lambda hub: None,
        attesting: Attesting | None = None,
    ) -> None:
        self._plan, self._identity, self._sites, self._schema = plan, identity, sites, schema
        self._transport = transport
        self._open_log = open_log
        self._lease = lease
        self._trusted = trusted
        self._user_code, self._facts = user_code, facts
        self._on_event, self._on_end = on_event, on_end
        self._attesting = attesting
        self._end: InvitingEnd | None = None
        self.hub: Hub | None = None

    def reconnected(self) -> None:
        """The network is back: send again what was not acknowledged."""
        if self._end is not None:
            self._end.nudge(time.monotonic())

    async def run(self) -> Hub:
        """Serve until the study has ended; return the machine, which says how.

        Raises:
            StorageError: journal or network refused; what was kept is whole, and another run goes on.
        """
        while True:
            term = await self._wait_for_lease()
            self._on_event(LeaseTaken(term))
            renewing = asyncio.create_task(self._keep_renewing())
            try:
                hub = await self._serve(term)
            finally:
                renewing.cancel()
                with suppress(asyncio.CancelledError):
                    await renewing
                await self._lease.release()
            if hub is not None:
                return hub
            self._on_event(LeaseLost(term))

    async def _wait_for_lease(self) -> int:
        while (term := await self._lease.acquire()) is None:
            await asyncio.sleep(_RENEW_SECONDS / 2)
        return term

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self._lease.renew()

    async def _serve(self, term: int) -> Hub | None:
        """Serve for one term; None where it ended before the study did."""
        log = self._open_log()
        try:
            journal = FileJournal(log)
            term = _next_term(journal, term)
            hub = Hub(
                self._plan,
                self._identity,
                self._sites,
                self._schema,
                user_code=self._user_code,
                facts=self._facts,
                journal=journal,
                transport="nats",
            )
            self.hub = hub
            end = self._end = InvitingEnd(
                hub,
                self._identity,
                self._sites,
                self._plan,
                term=term,
                trusted=self._trusted,
                silence_seconds=self._plan.study.deadline_seconds,
                attesting=self._attesting,
                aside=log.folder,
            )

            def over() -> bool:
                return not self._lease.held or hub.finished or hub.stopped is not None

            await drive_hub(end, self._transport, self._on_event, until=over)
            if not self._lease.held:
                return None
            if hub.finished:
                self._on_end(hub)
            await self._linger(end)
            return hub
        finally:
            self._end = None
            log.close()

    async def _linger(self, end: InvitingEnd) -> None:
        """Stay until everybody has heard how it ended, for a while at most."""
        until = time.monotonic() + max(self._plan.study.deadline_seconds, _LINGER_SECONDS)

        def over() -> bool:
            heard = end.idle and end.complete
            return heard or not self._lease.held or time.monotonic() >= until

        await carry_hub(end, self._transport, self._on_event, until=over)
