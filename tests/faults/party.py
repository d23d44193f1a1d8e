"""One process of a faulty network: a hub for one study, or a site for all it is invited to.

It does what the commands `cloister hub` and `cloister site` do, with the product's own services, journals and
logs, and what it is told to suffer from. It reports to a file, so that killing it at any instant breaks
nothing for who reads on.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.datagrams import Faults, FaultyTransport, Weather
from tests.faults.homes import Homes, seeded

from cloister.errors import CloisterError
from cloister.runtime import Site
from cloister.runtime.events import Event, Refused, RoundDone, SetupDone
from cloister.runtime.hubjournal import open_hub_log
from cloister.runtime.invite import Invitation
from cloister.runtime.journal import SiteJournal, volatile_folder
from cloister.runtime.nats import Lease, NatsTransport, TlsFiles
from cloister.runtime.observe import Observer
from cloister.runtime.party import site_of
from cloister.runtime.service import HubService, NoLease, SiteService
from cloister.runtime.sitepolicy import Decision
from cloister.runtime.store import save_conclusion, save_study

__all__ = ["Options", "run"]


@dataclass(frozen=True)
class Options:
    """What a process is told.

    Attributes:
        urls: of the network's servers.
        study: number of the hub's study.
        seed: of training.
        lease: whether the hub has to hold the lease before it acts.
        faults: what befalls the datagrams it sends.
        pace: seconds that training takes a site.
        skew: seconds by which its wall clock is wrong.
        room: bytes that a file of it may hold at most, as on a full disk.
        updates: what each site adds in the place of training.
        record: whether what arrives is written down, for a replay later.
    """

    urls: tuple[str, ...]
    study: int = 0
    seed: int = 7
    lease: bool = False
    faults: Faults | None = None
    pace: float = 0.0
    skew: float = 0.0
    room: int | None = None
    updates: Mapping[str, float] | None = None
    record: bool = False


class Said:
    """Reports to a file, a line at once; what a killed process had said is there."""

    def __init__(self, homes: Homes, name: str) -> None:
        self._file = os.open(homes.root / "said" / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, event: str, **fields: object) -> None:
        line = {"at": time.monotonic(), "pid": os.getpid(), "event": event, **fields}
        with suppress(OSError):  # the disk may be full, and that is not what is asked
            os.write(self._file, json.dumps(line).encode() + b"\n")

    def event(self, event: Event, study: str = "") -> None:
        """Report an event of the product."""
        if isinstance(event, RoundDone):
            self("round", round=event.round, attempt=event.attempt, survivors=event.survivors, study=study)
        elif isinstance(event, SetupDone):
            self("setup", epoch=event.epoch, study=study)
        elif isinstance(event, Refused):
            self("refused", peer=event.peer, reason=event.reason, study=study)
        else:
            self(type(event).__name__.lower(), detail=repr(event)[:400], study=study)


class Recording:
    """A transport that also writes down what arrives, for a replay later."""

    def __init__(self, inner: Any, path: Path) -> None:
        self.inner, self._path = inner, path

    async def send(self, receiver: str, message: Any) -> None:
        await self.inner.send(receiver, message)

    async def receive(self, timeout: float) -> bytes | None:
        found: bytes | None = await self.inner.receive(timeout)
        if found is not None:
            with self._path.open("a") as file:
                file.write(bytes(found).hex() + "\n")
        return found


async def _enter(homes: Homes, name: str, options: Options) -> tuple[NatsTransport, Any]:
    """Return the network's transport, and what the party speaks through."""
    files = TlsFiles.in_folder(homes.root / "server" / "parties" / name, "local")
    network = await NatsTransport.connect(list(options.urls), files, name, patience=60.0)
    transport: Any = network
    if options.record:
        transport = Recording(transport, homes.root / "private" / f"arrived-at-{name}")
    if options.faults is not None:
        transport = FaultyTransport(transport, Weather(options.faults, options.seed))
    return network, transport


async def be_hub(homes: Homes, options: Options, said: Said) -> None:
    """Carry a study to its end, and keep what it left."""
    plan, identity, home = homes.plan(options.study), homes.identity("hub"), homes.home("hub")
    public = homes.public()
    network, transport = await _enter(homes, "hub", options)
    with Observer.of(home / "logs", study=plan.study.name, party="hub") as observer:

        def on_event(event: Event) -> None:
            observer(event)
            said.event(event)

        service = HubService(
            plan,
            identity,
            {site.name: public[site.name] for site in plan.sites},
            homes.schema,
            transport,
            open_log=lambda: open_hub_log(home / "journal", plan.digest, identity),
            lease=Lease(network, plan.digest.hex()) if options.lease else NoLease(),
            trusted=lambda: homes.trusted("hub"),
            on_event=on_event,
        )
        network.on_reconnect = service.reconnected
        said("up", plan=options.study)
        hub = await service.run()
        kept = None
        if hub.stopped is None and hub.model is not None:
            kept = str(save_study(home / "studies", hub.result(), identity))
        model = None if hub.stopped or hub.model is None else hub.model.released().tobytes().hex()
        rounds = [[done.epoch, done.round, done.attempt, list(done.survivors)] for done in hub.rounds]
        said("end", stopped=hub.stopped, model=model, rounds=rounds, kept=kept, study=plan.study.name)
        await network.close()


class SiteParts:
    """What a site's process puts together for each study, as `cloister site` does."""

    def __init__(self, homes: Homes, name: str, options: Options, said: Said, stack: ExitStack) -> None:
        self._homes, self._name, self._options, self._said, self._stack = homes, name, options, said, stack
        self._home = homes.home(name)
        ledger = stack.enter_context(homes.ledger(name)) if (self._home / "ledger").exists() else None
        self._party = homes.party(name, ledger)
        self._observers: dict[str, Observer] = {}
        self._journals: dict[bytes, SiteJournal] = {}

    def open_site(self, invitation: Invitation) -> Site:
        plan, options = invitation.plan, self._options
        if plan.study.name not in self._observers:
            self._observers[plan.study.name] = self._stack.enter_context(
                Observer.of(self._home / "logs", study=plan.study.name, party=self._name)
            )
        folder = self._home / "journal" / plan.digest.hex()[:32]
        journal = SiteJournal(folder, volatile_folder(), self._party.identity, plan.digest)
        self._journals[plan.digest] = journal
        try:
            site = site_of(plan, invitation.hub, self._party, journal=journal)
        except CloisterError:
            journal.close()
            raise
        self._said("opened", study=plan.study.name, resumed=site.resumed, lost=journal.lost)
        return seeded(site, options.seed, before=self._computes, update=options.updates)

    def _computes(self) -> None:
        if self._options.pace:
            time.sleep(self._options.pace)
        self._homes.witness(self._name)

    def on_event(self, study: str, event: Event) -> None:
        if study in self._observers:
            self._observers[study](event)
        self._said.event(event, study)

    def on_end(self, invitation: Invitation, site: Site) -> None:
        self._journals.pop(invitation.plan.digest).close()
        name = invitation.plan.study.name
        if site.concluded is None or site.study_key is None:
            self._said("left", study=name, finished=site.finished)
            return
        model = site.model.released()
        save_conclusion(
            self._home / "studies",
            invitation.plan,
            site.concluded.record,
            site.concluded.study_keys,
            site.study_key,
            model,
            self._party.identity,
        )
        self._said("end", study=name, model=model.tobytes().hex(), rounds=site.rounds)


async def be_site(homes: Homes, name: str, options: Options, said: Said) -> None:
    """Take part in all there is, until this process is ended."""
    with ExitStack() as stack:
        parts = SiteParts(homes, name, options, said, stack)
        network, transport = await _enter(homes, name, options)
        service = SiteService(
            parts._party.identity,
            ["hub"],
            transport,
            trusted=lambda: homes.trusted(name),
            decide=lambda invitation: Decision("accept", ()),
            open_site=parts.open_site,
            on_event=parts.on_event,
            on_end=parts.on_end,
        )
        network.on_reconnect = service.reconnected
        said("up")
        await service.run()


def _set_clock(skew: float) -> None:
    """Make every wall clock that Python code can ask wrong; TLS asks the system's, which this does not move."""
    real = time.time

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Wrong:
            return cls.fromtimestamp(real() + skew, tz)

    right = datetime.datetime
    time.time = lambda: real() + skew
    datetime.datetime = Wrong  # type: ignore[misc]
    for name, module in list(sys.modules.items()):
        if name.startswith("cloister") and getattr(module, "datetime", None) is right:
            module.datetime = Wrong  # type: ignore[attr-defined]


def run(root: Path, name: str, options: Options) -> None:
    """Be a party: what a process starts with. Its name is "hub", or begins with it, or is a site's."""
    homes = Homes(root)
    said = Said(homes, name.split("-")[0])  # both of two hubs are the hub
    if options.skew:
        _set_clock(options.skew)
    if options.room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.room, options.room))
    try:
        if name.startswith("hub"):
            asyncio.run(be_hub(homes, options, said))
        else:
            asyncio.run(be_site(homes, name, options, said))
    except BaseException as error:
        said("failed", error=f"{type(error).__name__}: {error}")
        raise
