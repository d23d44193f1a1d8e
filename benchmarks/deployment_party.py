"""One process of a deployed benchmark: the hub, or some of its sites.

    python -m benchmarks.deployment_party hub FOLDER URL
    python -m benchmarks.deployment_party sites FOLDER URL NAME...

Prints one JSON object a line for what happens, with the machine's monotonic time, and ends when its standard
input does: whoever started it cannot leave it behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.deployment_network import enter
from benchmarks.deployment_world import World
from cloister.learning import initial_model
from cloister.runtime.events import Connected, Event, RoundDone, SetupDone

__all__ = ["memory", "say"]

STEP = 1.0 / 1024  # what a site adds: exact in the fixed point, so the final model is known


def say(event: str, **fields: object) -> None:
    """Tell whoever started this process."""
    sys.stdout.write(json.dumps({"at": time.monotonic(), "event": event, **fields}) + "\n")
    sys.stdout.flush()


def memory() -> dict[str, int]:
    """Return bytes of this process that are resident now, and the most since `settle`."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    )
    return {
        name: int(fields[key].split()[0]) * 1024 for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))
    }


def settle() -> None:
    """Give what is free back to the system, and begin to measure the peak anew.

    Set-up leaves free heap behind. Were it counted as idle, rounds would be served from it, and a hub would
    seem to need next to nothing.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def on_hub_event(event: Event) -> None:
    """Tell what the figures are made of; where the set-up ends, memory is what an idle hub needs."""
    if isinstance(event, RoundDone):
        say("round", round=event.round, seconds=event.seconds, survivors=len(event.survivors))
    elif isinstance(event, SetupDone):
        settle()
        say("setup", **memory())
    elif isinstance(event, Connected):
        say("connected", peer=event.peer)
    else:
        say(type(event).__name__, detail=repr(event)[:300])


async def be_hub(world: World, urls: list[str]) -> None:
    """Run the study to its end."""
    from cloister.runtime.hubjournal import open_hub_log
    from cloister.runtime.nats import Lease
    from cloister.runtime.service import HubService

    plan, identity = world.plan, world.identity("hub")
    everybody = {each.name: each for each in world.everybody(plan)}
    trusted: Collection[str] = frozenset(each.fingerprint for each in everybody.values())
    transport = await enter(world, identity.name, urls)
    try:
        service = HubService(
            plan,
            identity,
            {site.name: everybody[site.name] for site in plan.sites},
            world.schema,
            transport,
            open_log=lambda: open_hub_log(world.private("hub"), plan.digest, identity),
            lease=Lease(transport, plan.digest.hex()),
            trusted=lambda: trusted,
            on_event=on_hub_event,
        )
        transport.on_reconnect = service.reconnected
        hub = await service.run()
    finally:
        await transport.close()
    say("end", stopped=hub.stopped, **memory())
    if hub.model is not None and hub.stopped is None and plan.privacy is None:
        expected = initial_model(plan, world.schema) + plan.training.rounds * STEP
        say("checked", right=bool(np.allclose(hub.model.released(), expected, rtol=0.0, atol=1e-4)))


async def be_site(world: World, name: str, urls: list[str]) -> None:
    """Take part until the study has ended."""
    from cloister.privacy.ledger import Cap, Ledger
    from cloister.runtime import Party, Site
    from cloister.runtime.invite import Invitation
    from cloister.runtime.journal import SiteJournal, volatile_folder
    from cloister.runtime.party import site_of
    from cloister.runtime.service import SiteService
    from cloister.runtime.sitepolicy import Decision

    plan, identity = world.plan, world.identity(name)
    everybody = world.everybody(plan)
    ledger = None
    if plan.privacy is not None:
        ledger = Ledger.open(world.private(f"{name}-ledger"), identity)
        ledger.declare("rows", Cap.of(20.0, 1e-3))
        vault = world.vault(identity)
        ledger.bind("rows", vault.manifest("rows").dataset_id, vault.fingerprints("rows"))
    party = Party(identity, world.vault(identity), trusted=everybody, ledger=ledger)
    journal = SiteJournal(world.private(name), volatile_folder(), identity, plan.digest)
    transport = await enter(world, name, urls)

    def open_site(invitation: Invitation) -> Site:
        site = site_of(plan, invitation.hub, party, journal=journal)
        if plan.privacy is None:
            site._worker.train = add_one  # type: ignore[method-assign]
        return site

    try:
        service = SiteService(
            identity,
            [plan.hub.name],
            transport,
            trusted=lambda: {each.fingerprint: each for each in everybody},
            decide=lambda invitation: Decision("accept", ()),
            open_site=open_site,
        )
        transport.on_reconnect = service.reconnected
        await service.run(until=lambda: bool(service.ended))
        say("ended", site=name, reason=service.ended.get(plan.study.name))
    finally:
        await transport.close()
        journal.close()


def add_one(params: NDArray[np.float64]) -> NDArray[np.float64]:
    """Be what training costs least: the peer's nodes add one as well."""
    return params + STEP


async def be_sites(world: World, names: list[str], urls: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(be_site(world, name, urls))


def end_with_input() -> None:
    """End this process when its standard input ends, whatever it does."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    role, folder, url, *names = sys.argv[1:]
    end_with_input()
    world, urls = World(Path(folder)), url.split(",")
    say("started", pid=os.getpid())
    asyncio.run(be_hub(world, urls) if role == "hub" else be_sites(world, names, urls))


if __name__ == "__main__":
    main()
