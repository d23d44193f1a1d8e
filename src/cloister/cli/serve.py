"""`cloister serve MODEL`: a model in a walled worker, asked through the private exchange alone.

    MODEL is a sealed model           its key is lent to the worker, or released to it by the model's broker
             a release of a study     verified against the identities that this home trusts; that of a
                                      language model beside its base, --base DIR
             a language model         in the clear on this disk: only where --plain-weights says so
    --engine URL, without MODEL       an OpenAI-compatible server on this machine

This process has the home's files, and sees ciphertext of what is asked. What evidence of this machine says is
for each client to judge; here it is only told whether hardware stands behind it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.servesource import Wanted, source_of
from cloister.cli.verify import TrustOption
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.enclave.attester import Attester
    from cloister.inference.service import Address, Client, Service

__all__ = ["clients_path", "serve"]

_KINDS: Final = {"table": "a model of rows", "language": "a language model", "loopback": "a loopback engine"}


def clients_path() -> Path:
    """Return where this home's file of clients is."""
    return common.home() / "clients.toml"


def serve(
    model: Annotated[
        Path | None, typer.Argument(help="A sealed model, a release, or a folder.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8300,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain in PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key in PEM.")] = None,
    clients: Annotated[
        Path | None,
        typer.Option("--clients", metavar="FILE", help="Who may ask; this home's clients without it."),
    ] = None,
    anyone: Annotated[bool, typer.Option("--anyone", help="Let anybody ask.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="URL", help="An OpenAI-compatible server on 127.0.0.1, or unix:PATH."
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Under which clients ask for it.")] = "",
    accelerators: Annotated[
        int, typer.Option("--accelerators", min=0, max=64, help="GPUs that the engine computes on.")
    ] = 0,
    rotate_hours: Annotated[
        float, typer.Option("--rotate-hours", min=0.01, max=8760.0, help="How long keys are offered.")
    ] = 24.0,
    kv_tokens: Annotated[
        int, typer.Option("--kv-tokens", min=64, help="Room for tokens of all requests together.")
    ] = 16_384,
    streams: Annotated[int, typer.Option("--streams", min=1, max=4096, help="Requests at a time.")] = 256,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=4096, help="That compute.", show_default=False)
    ] = None,
    plain_weights: Annotated[
        bool, typer.Option("--plain-weights", help="Accept weights that lie in the clear on this disk.")
    ] = False,
    allow_user_code: Annotated[
        Path | None,
        typer.Option("--allow-user-code", metavar="FILE", help="Run this Python file, the released module."),
    ] = None,
    allow_swap: Annotated[
        bool, typer.Option("--allow-swap", help="Accept that the worker's memory may be swapped out.")
    ] = False,
    base: BaseOption = None,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a model privately: requests and answers are in the clear in a walled worker alone.

    Clients come with `cloister proxy` or `cloister ask`, and verify this machine's evidence first. Make them
    tokens with `cloister clients add`. Ctrl-C ends it.
    """
    from cloister.cli.evidence import HomeEvidence
    from cloister.crypto import Identity
    from cloister.enclave.sandbox.limits import shut_readers
    from cloister.inference.service import Limits, LoopbackEngine, Service, run
    from cloister.inference.webserver import check_tls, listen

    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together", fix="Give both, or neither")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    if accelerators and engine is None:
        raise InputError("only an engine on loopback computes on GPUs here", fix="Leave --accelerators out")
    register = _register(clients, anyone=anyone)
    if tls is not None:
        check_tls(tls)
    shut_readers()
    owner = Identity.read_public(common.identity_path())
    with ExitStack() as stack:
        evidence = HomeEvidence(common.home(), owner, stack, say)
        wanted = Wanted(
            model, engine, name, accelerators, kv_tokens, plain_weights, allow_user_code, trust, base
        )
        source = source_of(wanted, evidence)
        listening = stack.enter_context(listen(host, port))
        attester = evidence.attester()
        if isinstance(source, LoopbackEngine):
            _tell_engine(source.address)
        say(f"Loading {model or engine} ...")
        service = stack.enter_context(
            Service(
                source,
                attester=attester,
                clients=register,
                name=name,
                limits=Limits(streams=streams),
                lifetime=rotate_hours * 3600,
                threads=threads,
                allow_swap=allow_swap,
                say=say,
            )
        )
        del source  # what lent a key is not kept while strangers are heard
        place = f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        url = f"{'http' if tls is None else 'https'}://{place}"
        result = _facts(service, url, attester, register)
        if as_json:
            emit(result, as_json=True)
        _tell(result, register)
        run(service, listening, tls=tls)
        counts = service.stats()
    say(f"Ended after {counts.get('answered', 0)} answers.")


def _register(path: Path | None, *, anyone: bool) -> list[Client] | None:
    from cloister.inference.service import list_clients

    if anyone:
        if path is not None:
            raise InputError("--clients and --anyone exclude each other", fix="Give one of them")
        return None
    if path is None and not clients_path().exists():
        raise InputError(
            "nobody may ask yet", fix="Make tokens with `cloister clients add NAME`, or write --anyone"
        )
    return list_clients(path or clients_path())


def _tell_engine(address: Address) -> None:
    """Say what evidence does not cover, and whether the engine answers already; it may start later."""
    say("The engine sees requests in the clear: evidence covers the worker before it, not the engine itself.")
    try:
        address.connect().close()
    except OSError:
        say(f"Nothing answers at {address.peer} yet: requests are refused until the engine runs.")


def _facts(service: Service, url: str, attester: Attester, register: list[Client] | None) -> dict[str, Any]:
    ready = service.ready
    assert ready is not None  # noqa: S101  # it was started
    return {
        "url": url,
        "model": ready.model,
        "model_digest": ready.model_digest,
        "kind": ready.kind,
        "keys": ready.keys,
        "hardware": attester.hardware,
        "clients": None if register is None else len(register),
        "walls": service.walls,
    }


def _tell(facts: dict[str, Any], register: list[Client] | None) -> None:
    protection = (
        "Hardware vouches for it."
        if facts["hardware"]
        else "NOT HARDWARE-PROTECTED: a software TPM vouches for it, and protects from nobody here."
    )
    who = "Anybody may ask."
    if register is not None:
        who = f"{len(register)} client{'' if len(register) == 1 else 's'} may ask."
    digest = f" ({facts['model_digest'][:16]})" if facts["kind"] != "loopback" else ""
    say(f"Serving {facts['model']}, {_KINDS[facts['kind']]}{digest}, at {facts['url']}")
    say(f"Keys {facts['keys'][:16]}. {protection} {who} Ctrl-C ends it.")
