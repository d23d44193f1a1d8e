"""`cloister hub`: carry a study between organisations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption
from cloister.cli.between import (
    MetricsOption,
    NatsOption,
    NetworkOption,
    OtlpOption,
    TrustNow,
    network_folder,
)
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.eventwords import in_words
from cloister.cli.evidence import HomeEvidence
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError, ProtocolError

_TELL_SECONDS = 2.0

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.learning import Plan
    from cloister.learning.facts import ModelFacts
    from cloister.runtime import Event, Hub
    from cloister.runtime.attestation import Attesting
    from cloister.runtime.nats import NatsTransport
    from cloister.vault import Schema


def hub(
    plan: Annotated[Path, typer.Argument(help="The plan, as `study init` writes one.")],
    nats: NatsOption,
    schema: Annotated[Path, typer.Option(help="The public schema that the plan names.")],
    network: NetworkOption = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="Folder of the journal, which a second hub can take over; HOME/journal/hub."),
    ] = None,
    allow_user_code: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Allow this Python file, whose module the plan trains."),
    ] = None,
    base: BaseOption = None,
    worker: WorkerOption = Where.SANDBOXED,
    metrics: MetricsOption = None,
    otlp: OtlpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the hub of a study: invite its sites, add what they send, keep the model encrypted.

    Killed at any moment, it goes on when it is started again. A second one waits until the first is dead.
    """
    from cloister.learning import load_plan
    from cloister.runtime.observe import Observer
    from cloister.vault import load_schema

    agreed, public = load_plan(plan), load_schema(schema)
    studies = common.new_study(agreed.study.name)
    identity = common.load_identity()
    facts = _stated(agreed, public, allow_user_code, base, worker)
    with ExitStack() as stack:
        attesting = HomeEvidence(common.home(), identity.public, stack, say).of_hub(agreed)
        observer = stack.enter_context(
            Observer.of(
                common.home() / "logs",
                study=agreed.study.name,
                party=identity.name,
                peers=[site.name for site in agreed.sites],
                public=agreed.data.public_rows,
                metrics=metrics,
                otlp=otlp,
            )
        )
        told = _tell(agreed, observer, shown=not as_json)
        machine = asyncio.run(
            _serve(
                agreed,
                identity,
                public,
                nats=nats,
                network=network_folder(network),
                journal=journal or common.home() / "journal" / "hub",
                user_code=allow_user_code,
                facts=facts,
                attesting=attesting,
                on_event=told,
            )
        )
    if machine.stopped is not None:
        raise ProtocolError(
            f"the study stopped: {machine.stopped.rstrip('.')}",
            fix="Nothing was released; started again it goes on from its journal once that is mended",
        )
    summary, text = _summary(machine, agreed, studies)
    emit(summary, as_json=as_json, text=text)


def _stated(
    plan: Plan, schema: Schema, user_code: Path | None, base: Path | None, worker: Where
) -> ModelFacts | None:
    """Return what is stated of a model that is code, or starts from a base; None where the hub may look for
    itself."""
    from cloister.runtime.workers.models import known_model

    if plan.model.is_language:
        return known_model(plan, schema, base=base, sandboxed=is_sandboxed(worker))
    if plan.model.kind != "torch" or not is_sandboxed(worker):
        return None
    return known_model(plan, schema, user_code=user_code)


def _summary(machine: Hub, plan: Plan, studies: Path) -> tuple[dict[str, Any], str]:
    result = machine.result()
    kept = None if machine.model is None else studies / plan.study.name
    summary = {
        "study": plan.study.name,
        "rounds": len(result.rounds),
        "epochs": [epoch.number for epoch in result.epochs],
        "sites": [member.name for member in result.members],
        "folder": None if kept is None else str(kept),
        "metrics": None if result.final_metrics is None else result.final_metrics[0],
        "transport": result.transport,
        "protection": result.protection,
    }
    where = (
        "The sites keep the model, which this hub has not seen."
        if kept is None
        else f"The model is kept encrypted in {kept}."
    )
    return summary, f"{len(result.rounds)} rounds over {len(result.members)} sites. {where}"


def _keep(hub: Hub, plan: Plan, identity: Identity) -> None:
    """Keep the study, unless the hub may not see its model, or another process has kept it."""
    from cloister.runtime.store import save_study

    studies = common.home() / "studies"
    if hub.model is not None and not (studies / plan.study.name).exists():
        save_study(studies, hub.result(), identity)


def _sites_of(plan: Plan, trusted: TrustNow, place: Path) -> dict[str, PublicIdentity]:
    """Return the identities of the plan's sites.

    One that is trusted no more is shut out, and still has to be known: it may have been in an epoch of the
    study. So those that were trusted at the start are remembered beside the journal.
    """
    import msgspec

    from cloister.crypto import PublicIdentity
    from cloister.files import read_bytes, write_atomic

    memory = place / "sites.json"
    remembered: dict[str, PublicIdentity] = {}
    if memory.exists():
        listed = msgspec.json.decode(read_bytes(memory, limit=64 << 20, what="list of sites"), type=list[str])
        known = [PublicIdentity.from_json(each.encode()) for each in listed]
        remembered = {each.fingerprint: each for each in known}
    sites = {}
    for entry in plan.sites:
        site = trusted().get(entry.identity) or remembered.get(entry.identity)
        if site is None:
            raise InputError(
                "the plan names a site that is not trusted here",
                where=entry.name,
                fix="`cloister keys trust` the identity it exported",
            )
        sites[entry.name] = site
    if not memory.exists():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        exported = [site.to_json().decode() for site in sites.values()]
        write_atomic(memory, msgspec.json.encode(exported), mode=0o600)
    return sites


async def _serve(
    plan: Plan,
    identity: Identity,
    schema: Schema,
    *,
    nats: list[str],
    network: Path,
    journal: Path,
    user_code: Path | None,
    facts: ModelFacts | None,
    attesting: Attesting | None,
    on_event: Callable[[Event], None],
) -> Hub:
    from cloister.runtime.events import Started
    from cloister.runtime.hubjournal import open_hub_log
    from cloister.runtime.nats import Lease, NatsTransport, TlsFiles
    from cloister.runtime.service import HubService

    trusted = TrustNow(identity.public)
    sites = _sites_of(plan, trusted, journal / plan.digest.hex()[:32])
    tls = TlsFiles.in_folder(network, common.passphrase())
    transport = await NatsTransport.connect(nats, tls, identity.name)
    lease = None
    try:
        lease = await Lease.connect(nats, tls, identity.name, plan.digest.hex())
        service = HubService(
            plan,
            identity,
            sites,
            schema,
            transport,
            open_log=lambda: open_hub_log(journal, plan.digest, identity),
            lease=lease,
            trusted=trusted,
            user_code=user_code,
            facts=facts,
            attesting=attesting,
            on_event=_with_traffic(on_event, transport),
            on_end=lambda hub: _keep(hub, plan, identity),
        )
        transport.on_reconnect = service.reconnected
        on_event(Started("hub", plan.training.rounds, tuple(sites)))
        say(f"Hub of {plan.study.name}: waiting for {', '.join(sites)}.")
        return await service.run()
    finally:
        if lease is not None:
            await lease.close()
        await transport.close()


def _with_traffic(on_event: Callable[[Event], None], transport: NatsTransport) -> Callable[[Event], None]:
    """Return what also tells, every other second and at the end, how much went over the network."""
    from cloister.runtime.events import Ended, RoundDone, Stopped, Traffic

    last = 0.0

    def told(event: Event) -> None:
        nonlocal last
        on_event(event)
        due = isinstance(event, RoundDone) and time.monotonic() - last > _TELL_SECONDS
        if due or isinstance(event, Ended | Stopped):
            last = time.monotonic()
            on_event(Traffic(dict(transport.sent_bytes), dict(transport.received_bytes)))

    return told


def _tell(plan: Plan, observer: Callable[[Event], None], *, shown: bool) -> Callable[[Event], None]:
    """Return what takes the events: the log, and lines for people; why it stopped is said at the end."""
    from cloister.runtime.events import Stopped

    def on_event(event: Event) -> None:
        observer(event)
        line = None if isinstance(event, Stopped) else in_words(event, rounds=True)
        if shown and line:
            say(line)

    return on_event
