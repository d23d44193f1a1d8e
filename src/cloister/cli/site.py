"""`cloister site`: take part in studies, as the owner's policy allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import common
from cloister.cli.baseoption import BasesOption, Device, DeviceOption, RanksOption, ShardOption
from cloister.cli.between import (
    MetricsOption,
    NetworkOption,
    OtlpOption,
    TrustNow,
    network_folder,
)
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.sitepolicy import approvals, dry_run, policy
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError
from cloister.text import printable

if TYPE_CHECKING:
    from cloister.cli.siteparts import SiteParts

app = typer.Typer(help="Take part in studies: what your policy allows, and nothing else.")
app.add_typer(approvals, name="approvals")
app.add_typer(policy, name="policy")


@app.callback(invoke_without_command=True)
def site(
    context: typer.Context,
    nats: Annotated[
        list[str] | None,
        typer.Option("--nats", metavar="URL", help="Server of the network; repeat for a cluster's."),
    ] = None,
    hub: Annotated[
        list[str] | None,
        typer.Option("--hub", metavar="NAME", help="A trusted hub to ask for studies; all by default."),
    ] = None,
    network: NetworkOption = None,
    held_out: Annotated[
        str | None, typer.Option(help="Dataset to evaluate on; shown only where a plan's rows are public.")
    ] = None,
    allow_user_code: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Allow this Python file where a plan trains its module; repeat."),
    ] = None,
    base: BasesOption = None,
    ranks: RanksOption = 1,
    shard: ShardOption = False,
    device: DeviceOption = Device.AUTO,
    worker: WorkerOption = Where.SANDBOXED,
    once: Annotated[bool, typer.Option("--once", help="End when the first study has ended.")] = False,
    dry: Annotated[
        Path | None,
        typer.Option("--dry-run", metavar="PLAN", help="Show what a plan would disclose, and do nothing."),
    ] = None,
    metrics: MetricsOption = None,
    otlp: OtlpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for invitations, and train on this home's rows where its policy says so.

    What the policy says "ask" to waits in `cloister site approvals`. Killed at any moment, a site goes on in
    its studies when it is started again.
    """
    if context.invoked_subcommand is not None:
        return
    if dry is not None:
        code = allow_user_code[0] if allow_user_code else None
        sandboxed = is_sandboxed(worker, aloud=code is not None)
        dry_run(dry, as_json=as_json, user_code=code, bases=base or [], sandboxed=sandboxed)
        return
    if not nats:
        raise InputError("a site needs the address of its network", where="--nats", fix="Give --nats URL")
    from cloister.cli.siteparts import SiteParts

    identity = common.load_identity()
    trusted = TrustNow(identity.public)
    hubs = hub or sorted(each.name for each in common.trust_store().list())
    for name in hubs:
        common.trust_store().get(name)
    with ExitStack() as stack:
        parts = SiteParts(
            identity,
            trusted,
            stack,
            held_out=held_out,
            user_code=allow_user_code or [],
            bases=base or [],
            ranks=ranks,
            shard=shard,
            device=device.value,
            sandboxed=is_sandboxed(worker),
            metrics=metrics,
            otlp=otlp,
            say=(lambda line: None) if as_json else say,
        )
        ended = asyncio.run(_serve(parts, hubs, nats, network_folder(network), once=once))
    emit({"site": identity.name, "ended": ended}, as_json=as_json, text=_in_words(ended))
    if once and any(reason is not None for reason in ended.values()):
        raise typer.Exit(1)


async def _serve(
    parts: SiteParts, hubs: list[str], nats: list[str], network: Path, *, once: bool
) -> dict[str, str | None]:
    from cloister.runtime.events import Traffic
    from cloister.runtime.nats import NatsTransport, TlsFiles
    from cloister.runtime.service import SiteService

    identity = parts.identity
    transport = await NatsTransport.connect(
        nats, TlsFiles.in_folder(network, common.passphrase()), identity.name
    )
    try:
        service = SiteService(
            identity,
            hubs,
            transport,
            trusted=parts.trusted,
            decide=parts.decide,
            open_site=parts.open_site,
            on_event=parts.on_event,
            on_end=parts.on_end,
            on_left=parts.on_left,
            attesting_of=parts.evidence.of_site,
        )
        transport.on_reconnect = service.reconnected
        parts.traffic = lambda: Traffic(dict(transport.sent_bytes), dict(transport.received_bytes))
        parts.say(f"Site {identity.name}: waiting for {', '.join(hubs)}.")
        until: Callable[[], bool] = (lambda: bool(service.ended)) if once else (lambda: False)
        await service.run(until=until)
        return service.ended
    finally:
        await transport.close()


def _in_words(ended: dict[str, str | None]) -> str:
    return "\n".join(
        f"{name}: came to its end."
        if reason is None
        else f"{name}: ended, {printable(reason, '?').rstrip('.')}."
        for name, reason in ended.items()
    )
