"""A running site: it makes itself known, looks at what it is invited to, and takes part in what its owner's
policy lets it.

Each study is a session of its own: a machine, a link, and a thread for what takes long, so that a site that
trains still answers for the others. A session ends with its study, with a refusal, when the hub breaks the
protocol, or for an error of our own; the service goes on. However one ends, all is done that
leaving takes, as far as it can be, and the owner reads why.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cloister.crypto import Buffer, Identity, PublicIdentity
from cloister.errors import CloisterError, PolicyRefused
from cloister.runtime.attestation import REFUSED, Attesting, Question
from cloister.runtime.ends import SiteEnd
from cloister.runtime.events import Connected, Ended, Event, Refused, Resumed, RoundDone, Stopped
from cloister.runtime.invite import Invitation, is_greeting, make_decline, make_knock, read_invite
from cloister.runtime.link import peek
from cloister.runtime.messages import MAX_REASON, Farewell, Leave, Message
from cloister.runtime.service.told import for_owner, told_of
from cloister.runtime.site import Site
from cloister.runtime.sitepolicy import Decision
from cloister.types import Transport

__all__ = ["SiteService"]

KNOCK_SECONDS = 5.0
_IDLE_SECONDS = 0.05
_REMEMBERED = 256
_SILENT_SECONDS = 3.0  # less than a hub takes to invite again: a copy of an old invitation does little
_QUICK_SECONDS = 0.003
"""What takes less may hold up the other studies of this site; a change of threads costs a tenth of it."""

T = TypeVar("T")
_LAST_WORD_SECONDS = 0.05
_FAREWELL_SECONDS = 2.0


@dataclass
class _Session:
    """One study this site takes part in."""

    invitation: Invitation
    site: Site
    end: SiteEnd
    inbox: asyncio.Queue[Message | None] = field(default_factory=asyncio.Queue)  # None: a session opened
    task: asyncio.Task[None] | None = None
    showing: asyncio.Task[None] | None = None  # evidence that is being made
    over: bool = False
    trusted: Mapping[str, PublicIdentity] | None = None  # as the site was told last
    took: dict[type[Message], float] = field(default_factory=dict)  # seconds, by kind of message
    round_ended: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)  # when the hub last said something that verified


class SiteService:
    """One organisation's site.

    Args:
        identity: the site's own keys.
        hubs: names of the hubs to make itself known to.
        transport: the network.
        trusted: returns the identities the owner trusts now, by fingerprint; asked before every message.
        decide: the owner's word on an invitation; asked again with every repetition of it.
        open_site: makes the machine of a study, from vault, ledger and journal.
        on_event: is told what happens, by study.
        on_end: keeps what a study that has ended here left, before its secrets are erased.
        on_left: closes what `open_site` opened; the site has left.
        attesting_of: what this site shows of its worker, and how its owner judges the hub; asked once for
            each study whose plan asks for evidence. Without it none of those is taken part in.

    Attributes:
        ended: names of studies that came to their end here, and why: None where as planned.
    """

    def __init__(
        self,
        identity: Identity,
        hubs: Sequence[str],
        transport: Transport,
        *,
        trusted: Callable[[], Mapping[str, PublicIdentity]],
        decide: Callable[[Invitation], Decision],
        open_site: Callable[[Invitation], Site],
        on_event: Callable[[str, Event], None] = lambda study, event: None,
        on_end: Callable[[Invitation, Site], None] = lambda invitation, site: None,
        on_left: Callable[[Invitation, Site], None] = lambda invitation, site: None,
        attesting_of: Callable[[Invitation, Site], Attesting] | None = None,
    ) -> None:
        self._identity, self._hubs, self._transport = identity, tuple(hubs), transport
        self._trusted, self._decide, self._open_site = trusted, decide, open_site
        self._on_event, self._on_end, self._on_left = on_event, on_end, on_left
        self._attesting_of = attesting_of
        self._sessions: dict[bytes, _Session] = {}
        self._over: dict[bytes, bytes] = {}  # studies that ended here, and in which instance of their hub
        self._said: dict[bytes, str] = {}  # what was last said of an invitation
        self._knocked = -KNOCK_SECONDS
        self.ended: dict[str, str | None] = {}

    def reconnected(self) -> None:
        """The network is back: send again what was not acknowledged."""
        for session in self._sessions.values():
            session.end.link.nudge(time.monotonic())
        self._knocked = -KNOCK_SECONDS

    async def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Serve until `until`; sessions that are under way can be taken up again by another run.

        Raises:
            StorageError: the network refused.
        """
        try:
            while not until():
                await self._knock()
                for session in list(self._sessions.values()):
                    await self._look_at(session)
                    await self._flush(session)
                datagram = await self._transport.receive(self._pause())
                if datagram is not None:
                    await self._take(datagram)
        finally:
            for session in self._sessions.values():
                for task in (session.task, session.showing):
                    if task is not None:
                        task.cancel()

    # --- inside -----------------------------------------------------------------------------------

    def _pause(self) -> float:
        wake = min((session.end.link.wake_at() for session in self._sessions.values()), default=float("inf"))
        return min(max(wake - time.monotonic(), 0.0), _IDLE_SECONDS)

    async def _knock(self) -> None:
        now = time.monotonic()
        if now - self._knocked < KNOCK_SECONDS or any(s.end.link.ready for s in self._sessions.values()):
            return
        self._knocked = now
        for hub in self._hubs:
            await self._transport.send(hub, make_knock(self._identity, hub, os.urandom(16)))

    async def _take(self, datagram: Buffer) -> None:
        try:
            if is_greeting(datagram):
                await self._on_invite(read_invite(datagram, self._identity, self._trusted()))
                return
            session = self._sessions.get(peek(datagram).study)
        except CloisterError as error:  # anybody may have sent it
            self._on_event("", Refused("unknown", str(error)))
            return
        if session is None:
            return
        trusted = self._trusted()
        if session.invitation.hub.fingerprint not in trusted:
            await self._end(session, f"{session.invitation.hub.name} is trusted no more", tell=False)
            return
        if trusted is not session.trusted:
            session.trusted = trusted
            if (gone := session.site.trust(trusted)) is not None:
                await self._end(session, f"{gone} is trusted no more")
                return
        try:
            self._hear(session, datagram)
        except Exception as error:  # noqa: BLE001  # the other studies go on, whatever it is
            await self._fail(session, for_owner(error))

    def _hear(self, session: _Session, datagram: Buffer) -> None:
        """Take what came in a session."""
        refused = session.end.refused
        opened, messages = session.end.receive(datagram, time.monotonic())
        self._tell_of_evidence(session)
        if session.end.refused == refused:
            session.heard = time.monotonic()
        if opened:
            self._opened(session)
        for message in messages:
            session.inbox.put_nowait(message)

    def _opened(self, session: _Session) -> None:
        """The site may say where it is."""
        self._on_event(session.site.study, Connected(session.invitation.hub.name))
        while not session.inbox.empty():  # what the hub said before it says again
            session.inbox.get_nowait()
        session.inbox.put_nowait(None)

    # --- evidence ---------------------------------------------------------------------------------

    async def _look_at(self, session: _Session) -> None:
        """Let the evidence in a session grow old; a hub whose evidence has lapsed is left."""
        if session.over:
            return
        try:
            session.end.tick(time.monotonic())
        except Exception as error:  # noqa: BLE001  # the other studies go on, whatever it is
            await self._fail(session, for_owner(error))

    def _tell_of_evidence(self, session: _Session) -> None:
        """Say what was accepted, and begin to make what is due."""
        for event in session.end.events():
            self._on_event(session.site.study, event)
        if (question := session.end.question()) is not None:
            session.showing = asyncio.create_task(self._show(session, question))

    async def _show(self, session: _Session, question: Question) -> None:
        """Make evidence in a thread, and send it."""
        try:
            evidence = await asyncio.to_thread(question.evidence)
        except CloisterError as error:
            reason = f"this site's own evidence could not be made: {error}"
            await self._end(session, reason, told="it has no evidence to show")
            return
        except Exception as error:  # noqa: BLE001  # hub and owner are not to wait for ever
            await self._fail(session, for_owner(error))
            return
        try:
            if not session.over and session.end.show(question, evidence):
                self._opened(session)
        except Exception as error:  # noqa: BLE001  # likewise
            await self._fail(session, for_owner(error))

    def _attesting(self, invitation: Invitation, site: Site) -> Attesting | None:
        if site.reattest_seconds is None or self._attesting_of is None:
            return None
        return self._attesting_of(invitation, site)

    # --- sessions ---------------------------------------------------------------------------------

    async def _on_invite(self, invitation: Invitation) -> None:
        digest = invitation.plan.digest
        session = self._sessions.get(digest)
        if session is not None:
            # a hub that gave up a session that still seems open here invites again, and says nothing else
            silent = time.monotonic() - session.heard > _SILENT_SECONDS
            other = invitation.instance != session.invitation.instance
            anew = other or silent or not session.end.link.ready
            if not session.over and anew and session.site.obey(invitation.term):
                session.invitation = invitation
                session.end.link.obey(invitation.term)
                session.end.open(time.monotonic())
            return
        if self._over.get(digest) == invitation.instance:
            return
        try:
            decision = self._decide(invitation)
            if decision.verdict != "accept":
                self._say_once(invitation, f"{decision.verdict}: {'; '.join(decision.reasons)}")
                if decision.verdict == "refuse":
                    await self._decline(invitation, PolicyRefused("; ".join(decision.reasons)))
                return
            site = await asyncio.to_thread(self._open_site, invitation)
        except Exception as error:  # noqa: BLE001  # looked at anew next time: it may be mended by then
            known = for_owner(error)
            self._say_once(invitation, str(known))
            await self._decline(invitation, known)
            return
        await self._begin(invitation, site)

    async def _decline(self, invitation: Invitation, error: CloisterError) -> None:
        """Tell the hub that nothing begins here as things are."""
        reason = _told(invitation, error)
        await self._transport.send(invitation.hub.name, make_decline(self._identity, invitation, reason))

    def _say_once(self, invitation: Invitation, reason: str) -> None:
        """Tell the owner why nothing begins; not again while that is why."""
        if self._said.get(invitation.plan.digest) != reason:
            _note(self._said, invitation.plan.digest, reason)
            self._on_event(invitation.plan.study.name, Refused(invitation.hub.name, reason))

    async def _begin(self, invitation: Invitation, site: Site) -> None:
        try:
            if not site.obey(invitation.term):
                self._do_not_begin(invitation, site, "another process of this hub has acted since")
                return
            attesting = await asyncio.to_thread(self._attesting, invitation, site)  # a TPM may have to start
            end = SiteEnd(
                site,
                self._identity,
                invitation.hub,
                invitation.plan.digest,
                least_term=invitation.term,
                attesting=attesting,
            )
        except Exception as error:  # noqa: BLE001  # what was opened is closed, whatever it is
            known = for_owner(error)
            self._do_not_begin(invitation, site, str(known))
            await self._decline(invitation, known)
            return
        session = self._sessions[invitation.plan.digest] = _Session(invitation, site, end)
        session.task = asyncio.create_task(self._work(session))
        if site.resumed:
            self._on_event(site.study, Resumed(site.epoch_number, site.rounds, site.attempt))
        end.open(time.monotonic())

    def _do_not_begin(self, invitation: Invitation, site: Site, reason: str) -> None:
        errors: list[CloisterError] = []
        with _noting(errors):
            site.leave()
        with _noting(errors):
            self._on_left(invitation, site)
        self._say_once(invitation, " ".join([reason, *map(str, errors)]))

    async def _work(self, session: _Session) -> None:
        """Answer what the hub says, one message after another."""
        try:
            while not session.over:
                await self._answer(session, await session.inbox.get())
        except Exception as error:  # noqa: BLE001  # nobody awaits this: hub and owner would wait for ever
            await self._fail(session, for_owner(error))

    async def _answer(self, session: _Session, message: Message | None) -> None:
        """Answer a message; None is a session that opened, in which the site may say where it is."""
        site, link = session.site, session.end.link
        asked_in = link.session
        replies = [site.join()] if message is None else await self._handled(session, message)
        if session.over:  # meanwhile: nothing leaves any more
            return
        for event in site.events():
            self._on_event(site.study, self._timed(session, event))
        if link.ready and link.session == asked_in:  # else it is asked again in the new session
            session.end.answer(replies)
            await self._flush(session)
        if site.finished or site.stopped is not None:
            await self._end(session, site.stopped, tell=False)

    @staticmethod
    async def _handled(session: _Session, message: Message) -> list[Message]:
        """Let the machine answer: in a thread, unless the last message of this kind took next to no time."""
        kind, begun = type(message), time.perf_counter()
        if session.took.get(kind, 1.0) < _QUICK_SECONDS:
            replies = session.site.handle(message)
        else:
            replies = await asyncio.to_thread(session.site.handle, message)
        session.took[kind] = time.perf_counter() - begun
        return replies

    @staticmethod
    def _timed(session: _Session, event: Event) -> Event:
        """Say how long a round took, as seen from here."""
        if not isinstance(event, RoundDone):
            return event
        before, session.round_ended = session.round_ended, time.monotonic()
        return replace(event, seconds=session.round_ended - before)

    async def _flush(self, session: _Session) -> None:
        for datagram in session.end.poll(time.monotonic()):
            await self._transport.send(session.invitation.hub.name, datagram)

    async def _fail(self, session: _Session, error: CloisterError) -> None:
        """End a session for what went wrong: the owner reads all of it, the hub a sentence."""
        await self._end(session, str(error), told=_told(session.invitation, error))

    async def _end(
        self, session: _Session, reason: str | None, *, tell: bool = True, told: str | None = None
    ) -> None:
        """End a session; the hub is told why (or `told`), unless it knows. What fails on the way keeps
        nothing else from being done; the owner reads of it where there is no other reason."""
        if session.over:
            return
        session.over = True
        name, invitation, errors = session.site.study, session.invitation, list[CloisterError]()
        _note(self._over, invitation.plan.digest, invitation.instance)
        with _noting(errors):
            await self._last_word(session, (told or reason) if tell else None)
        # what the study left is kept before its secrets are erased, and before the hub may go: a kill between
        # two of these loses nothing
        with _noting(errors):
            self._on_end(invitation, session.site)
            if session.site.finished:  # and kept: until then the hub is needed
                await self._farewell(session)
        self._sessions.pop(invitation.plan.digest, None)
        with _noting(errors):
            await asyncio.to_thread(session.site.leave)
        with _noting(errors):
            self._on_left(invitation, session.site)
        reason = _first(reason, errors)
        with _noting(errors):
            self._on_event(name, Ended(session.site.rounds) if reason is None else Stopped(reason))
        self.ended[name] = _first(reason, errors)

    async def _last_word(self, session: _Session, told: str | None) -> None:
        """Send what is still to be sent, and that this site leaves, where the hub is to be told why."""
        if told is not None and session.end.link.ready:
            told = REFUSED if session.end.distrusts else told
            session.end.answer([Leave(told[:MAX_REASON])])
        await self._flush(session)
        await asyncio.sleep(_LAST_WORD_SECONDS)  # that the hub's last word has come is said a little later
        await self._flush(session)

    async def _farewell(self, session: _Session) -> None:
        """Tell the hub that this site needs it no more, for a moment at most: it may have gone."""
        link, until = session.end.link, time.monotonic() + _FAREWELL_SECONDS
        if link.ready:
            session.end.answer([Farewell()])
        while link.ready and link.outgoing and time.monotonic() < until:
            await self._flush(session)
            await asyncio.sleep(_LAST_WORD_SECONDS / 5)


@contextmanager
def _noting(errors: list[CloisterError]) -> Iterator[None]:
    """Note what goes wrong within, as the owner reads it, and go on. A cancellation passes."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever it is: what follows must be done
        errors.append(for_owner(error))


def _first(reason: str | None, errors: Sequence[CloisterError]) -> str | None:
    """Return why a session ended: the reason, or else the first error that was met in ending it."""
    return str(errors[0]) if reason is None and errors else reason


def _told(invitation: Invitation, error: CloisterError) -> str:
    """Return what the hub is told of an error."""
    plan = invitation.plan
    parties = {invitation.hub.name, *(site.name for site in plan.sites)}
    return told_of(error, private=plan.privacy is not None, parties=parties)


def _note(memory: dict[bytes, T], digest: bytes, value: T) -> None:
    """Remember something of a study; the oldest is forgotten, so that no hub can fill the memory."""
    memory.pop(digest, None)
    memory[digest] = value
    while len(memory) > _REMEMBERED:
        memory.pop(next(iter(memory)))
