"""`cloister keys network`: enter the network of an operator, or be the operator.

cloister keys network request --out ORG.request        an organisation makes a key and asks
cloister keys network issue --hub HUB.request --site ORG.request --host NAME --out DIR
                                                       the operator lets in whom it trusts
cloister keys network install DIR/bundles/ORG.json     the organisation uses what it got
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, say
from cloister.errors import InputError
from cloister.files import new_directory, read_bytes, write_atomic

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.runtime.nats.certificates import Authority
    from cloister.runtime.nats.enrolment import Request
    from cloister.runtime.nats.serverconfig import Cluster, Tls

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Enter the network between organisations, or operate it.")

_MAX_FILE: Final = 256 << 10
_CLUSTER: Final = 3
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  # a server between organisations is there to be reached


class _Ports(NamedTuple):
    """Where a server listens for parties, for the other servers of its cluster, and for leaves."""

    parties: int
    routes: int
    leaves: int | None


def _network() -> Path:
    return common.home() / "network"


@app.command()
def request(
    out: Annotated[Path, typer.Option(help="File to write, for the operator.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key for the network, and a signed request for its certificate."""
    from cloister.runtime.nats.enrolment import make_request

    if out.exists() and not force:
        raise InputError("the file exists", where=str(out), fix="Choose another name, or use --force")
    identity = common.load_identity()
    data = make_request(_network(), identity, common.passphrase())
    write_atomic(out, data, replace=force)
    emit(
        {"name": identity.name, "request": str(out), "network": str(_network())},
        as_json=as_json,
        text=f"Send {out} to the operator, who must trust your identity, and install what comes back.",
    )


@app.command()
def issue(
    hub: Annotated[Path, typer.Option(metavar="FILE", help="The hub's request.")],
    site: Annotated[list[Path], typer.Option(metavar="FILE", help="A site's request; repeat for each.")],
    host: Annotated[
        list[str], typer.Option(metavar="NAME", help="Name or address the server is reached under; repeat.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for what server and parties get.")],
    port: Annotated[int, typer.Option(help="For the parties.", min=1, max=65535)] = 4222,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="Three servers, on the three machines that --host names."),
    ] = False,
    route_port: Annotated[
        int, typer.Option(help="Of a cluster's servers for one another.", min=1, max=65535)
    ] = 6222,
    leaf_port: Annotated[
        int | None, typer.Option(help="For servers in the parties' own networks; none without it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a hub and its sites into a network: certificates, a bundle for each, the server's configuration.

    Whose request it is must be trusted here (`cloister keys trust`). The first time makes this home an
    operator: its authority stays in HOME/operator, under the passphrase. Give all parties each time.
    """
    from cloister.runtime.nats.enrolment import authority_fingerprint, bundle_for, read_request

    if cluster and len(set(host)) != _CLUSTER:
        raise InputError("a cluster has three servers", where="--host", fix="Name each machine once")
    if len({port, route_port, leaf_port}) != _CLUSTER:
        raise InputError("two kinds of connections have one port", fix="Choose another for one of them")
    trusted = _trusted()
    requests = [
        read_request(read_bytes(path, limit=_MAX_FILE, what="network request"), trusted)
        for path in (hub, *site)
    ]
    authority = _operator("authority", "Cloister network")
    with new_directory(out, mode=0o700) as folder:
        for each in requests:
            write_atomic(folder / "bundles" / f"{each.name}.json", bundle_for(authority, each))
        if cluster:
            _cluster(folder, authority, requests, host, _Ports(port, route_port, leaf_port))
        else:
            _server(folder, authority, requests, host, _Ports(port, route_port, leaf_port))
    fingerprint = authority_fingerprint(authority.certificate)
    result = {
        "folder": str(out),
        "parties": [each.name for each in requests],
        "authority": fingerprint,
        "urls": [f"tls://{_bracketed(name)}:{port}" for name in host],
    }
    place = "the folder of each machine" if cluster else str(out)
    text = (
        f"Start the server in {place}: nats-server -c nats-server.conf\n"
        f"Send each party its file in {out / 'bundles'}.\n"
        f"Tell them the operator's fingerprint over another channel: {fingerprint}"
    )
    emit(result, as_json=as_json, text=text)
    say("Each server's key lies there unencrypted: keep these folders to the servers.")


@app.command()
def install(
    bundle: Annotated[Path, typer.Argument(help="The bundle that the operator sent.")],
    operator: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="The operator's fingerprint, as you were told.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Accept another operator than before.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Install the certificate that the operator sent, after checking that it fits your key."""
    from cloister.crypto import Identity
    from cloister.runtime.nats.enrolment import install_bundle

    data = read_bytes(bundle, limit=_MAX_FILE, what="bundle")
    name = Identity.read_public(common.identity_path()).name
    done = install_bundle(
        _network(), data, name, common.passphrase(), compared=operator, replace_authority=replace
    )
    emit(
        {"name": done.name, "network": str(_network()), "operator": done.authority, "until": done.until},
        as_json=as_json,
        text=f"Installed in {_network()}, valid until {done.until}. Operator: {done.authority}",
    )
    if operator is None:
        say("Compare this fingerprint with the operator over another channel.")


def _trusted() -> list[PublicIdentity]:
    """Return whose requests are answered: the trusted identities, and one's own."""
    from cloister.crypto import Identity

    path = common.identity_path()
    own = [Identity.read_public(path)] if path.exists() else []
    return own + common.trust_store().list()


def _operator(part: str, title: str) -> Authority:
    """Return an authority of this home, made the first time."""
    from cloister.runtime.nats.certificates import Authority

    folder = common.home() / "operator" / part
    if folder.exists():
        return Authority.load(folder, common.passphrase())
    passphrase = common.passphrase(confirm=True)
    authority = Authority.generate(title)
    with new_directory(folder, mode=0o700) as part_folder:  # whole, or not there
        authority.save(part_folder, passphrase)
    return authority


def _cluster(
    folder: Path, authority: Authority, requests: list[Request], hosts: list[str], ports: _Ports
) -> None:
    """Write a folder for each machine. Their routes trust an authority that signs for servers alone."""
    from cloister.runtime.nats.serverconfig import Cluster

    routes = _operator("routes", "Cloister routes")
    others = [f"{_bracketed(name)}:{ports.routes}" for name in hosts]
    for number, name in enumerate(hosts):
        machine = folder / f"server-{number}-{name.replace(':', '.')}"
        tls = _server_tls(machine, routes, [name], "route")
        place = Cluster("cloister", _EVERYWHERE, ports.routes, others, tls)
        _server(machine, authority, requests, [name], ports, name=f"server-{number}", cluster=place)


def _server(
    folder: Path,
    authority: Authority,
    requests: list[Request],
    hosts: list[str],
    ports: _Ports,
    *,
    name: str = "server",
    cluster: Cluster | None = None,
) -> None:
    """Write one server's files. Their paths are relative: the folder is carried to its machine."""
    from cloister.runtime.nats.serverconfig import Leaf, server_config

    text = server_config(
        name=name,
        hub=requests[0].name,
        sites=[each.name for each in requests[1:]],
        tls=_server_tls(folder, authority, hosts, "server"),
        store=Path("jetstream"),
        port=ports.parties,
        cluster=cluster,
        leaf=None if ports.leaves is None else Leaf(_EVERYWHERE, ports.leaves),
    )
    write_atomic(folder / "nats-server.conf", text.encode(), mode=0o600)


def _server_tls(folder: Path, authority: Authority, hosts: list[str], prefix: str) -> Tls:
    from cloister.crypto import SECRET_ACCESS
    from cloister.runtime.nats.certificates import NetworkKey
    from cloister.runtime.nats.serverconfig import Tls

    key = NetworkKey.generate()
    tls = Tls(
        Path("ca.pem" if prefix == "server" else f"{prefix}-ca.pem"),
        Path(f"{prefix}.pem"),
        Path(f"{prefix}.key"),
    )
    write_atomic(folder / tls.authority, authority.pem)
    write_atomic(folder / tls.certificate, authority.server(key, hosts))
    write_atomic(folder / tls.key, key.to_pem(SECRET_ACCESS), mode=0o600)
    return tls


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
