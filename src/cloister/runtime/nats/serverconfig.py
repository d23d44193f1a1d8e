"""The configuration of a NATS server between one hub and its sites, as text.

Who may say what is decided twice, by the server alone and from the certificate alone:

1. Every organisation has an account of its own. Nothing passes between accounts but what one exports to the
   other by name: a site's datagrams to the hub (`cloister.v1.HUB.SITE`) and the hub's to that site
   (`cloister.v1.SITE.HUB`). Sites have no path to each other.
2. Within its account a party may publish and subscribe only to those subjects, so that a mistake is an error
   and not silence.

The user is the subject of the client's certificate (`verify_and_map`); there are no passwords. TLS 1.3 comes
first, before the server says a word (`handshake_first`): a client could else be talked into going on without.

Routes between the servers of a cluster trust a certificate authority of their own: the one that signs for
organisations would let each of them pass as a server, to whom no account applies.

JetStream holds only the hub's lease. It writes through to the disk: a lease must not go back in time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import InputError
from cloister.runtime.nats.certificates import subject_of
from cloister.types import check_name

__all__ = ["LEASE_BUCKET", "MAX_DATAGRAM", "Cluster", "Leaf", "Tls", "server_config", "subject"]

MAX_DATAGRAM: Final = 8 << 20
LEASE_BUCKET: Final = "cloister-lease"
_MAX_PENDING: Final = 256 << 20  # what the server holds for one slow reader before it hangs up
_STORE: Final = 64 << 20


def subject(receiver: str, sender: str) -> str:
    """Return where datagrams from `sender` to `receiver` go; `sender` may be the wildcard ">"."""
    return f"cloister.v1.{receiver}.{sender}"


@dataclass(frozen=True)
class Tls:
    """Paths, on the server, of its certificate, its unencrypted key, and the authority it trusts."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Cluster:
    """A server's place among several.

    Args:
        name: of the cluster, the same at all servers.
        host: address to listen on.
        port: for the other servers.
        routes: HOST:PORT of the others.
        tls: of the routes; its authority signs servers and nobody else.
    """

    name: str
    host: str
    port: int
    routes: Sequence[str]
    tls: Tls


@dataclass(frozen=True)
class Leaf:
    """Where servers that organisations run in their own networks may connect, each into its own account."""

    host: str
    port: int


def server_config(
    *,
    name: str,
    hub: str,
    sites: Sequence[str],
    tls: Tls,
    store: Path,
    host: str = "0.0.0.0",  # noqa: S104  # a server between organisations is there to be reached
    port: int = 4222,
    cluster: Cluster | None = None,
    leaf: Leaf | None = None,
) -> str:
    """Return the text of nats-server.conf.

    Args:
        name: of this server, different at every server.
        hub: the hub's name.
        sites: the sites' names.
        tls: for clients and leaves.
        store: folder for JetStream.
        host: address to listen on.
        port: for clients.
        cluster: where there are several servers.
        leaf: where organisations may connect servers of their own.

    Raises:
        InputError: a name is not allowed, or there twice.
    """
    names = [check_name(each, "an organisation's name") for each in (hub, *sites)]
    if len(set(names)) != len(names):
        raise InputError("two organisations have one name", where=", ".join(names), fix="Name each once")
    blocks = [
        f"server_name: {_text(name)}\nlisten: {_text(f'{host}:{port}')}",
        f"max_payload: {MAX_DATAGRAM}\nmax_pending: {_MAX_PENDING}",
        'write_deadline: "10s"\nping_interval: "20s"',
        _tls(tls, "verify_and_map: true\nhandshake_first: true"),
        _block(
            "jetstream",
            f"store_dir: {_text(store)}\nmax_memory_store: 0\nmax_file_store: {_STORE}\n"
            "sync_interval: always",
        ),
        _accounts(hub, sites),
        "system_account: SYS",
    ]
    if cluster is not None:
        blocks.append(_cluster(cluster))
    if leaf is not None:
        blocks.append(_leaf(leaf, tls, names))
    return "\n".join(blocks) + "\n"


def _text(value: str | Path) -> str:
    text = str(value)
    if any(ord(character) < 32 for character in text):
        raise InputError("a path or address holds a control character", where=repr(text), fix="Change it")
    return json.dumps(text, ensure_ascii=False)


def _block(head: str, body: str) -> str:
    inner = "\n".join(f"  {line}" for line in body.splitlines())
    return f"{head} {{\n{inner}\n}}"


def _tls(tls: Tls, rest: str) -> str:
    body = (
        f"cert_file: {_text(tls.certificate)}\nkey_file: {_text(tls.key)}\nca_file: {_text(tls.authority)}\n"
        f'min_version: "1.3"\ntimeout: 10\n{rest}'
    )
    return _block("tls", body)


def _accounts(hub: str, sites: Sequence[str]) -> str:
    hub_account = _account(
        hub,
        publish=[subject("*", hub), "$JS.API.>", f"$KV.{LEASE_BUCKET}.>"],
        subscribe=[subject(hub, ">"), "_INBOX.>"],
        peers=sites,
        rest=f"jetstream: {{ max_file: {_STORE}, max_mem: 0, max_streams: 4, max_consumers: 16 }}",
    )
    site_accounts = [
        _account(site, publish=[subject(hub, site)], subscribe=[subject(site, ">")], peers=[hub])
        for site in sites
    ]
    return _block("accounts", "\n".join([hub_account, *site_accounts, "SYS { }"]))


def _account(
    name: str, *, publish: Sequence[str], subscribe: Sequence[str], peers: Sequence[str], rest: str = ""
) -> str:
    allowed = f"publish: {{ allow: {_list(publish)} }}, subscribe: {{ allow: {_list(subscribe)} }}"
    exports = [f"{{ stream: {_text(subject(peer, name))}, accounts: [{_text(peer)}] }}" for peer in peers]
    imports = [
        f"{{ stream: {{ account: {_text(peer)}, subject: {_text(subject(name, peer))} }} }}" for peer in peers
    ]
    body = "\n".join(
        [
            f"users: [ {{ user: {_text(subject_of(name))}, permissions: {{ {allowed} }} }} ]",
            _rows("exports", exports),
            _rows("imports", imports),
            *([rest] if rest else []),
        ]
    )
    return _block(_text(name), body)


def _rows(head: str, rows: Sequence[str]) -> str:
    return "\n".join([f"{head}: [", *(f"  {row}" for row in rows), "]"])


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"


def _cluster(cluster: Cluster) -> str:
    routes = _list([f"nats-route://{route}" for route in cluster.routes])
    body = (
        f"name: {_text(cluster.name)}\nlisten: {_text(f'{cluster.host}:{cluster.port}')}\nroutes: {routes}\n"
        f"no_advertise: true\n{_tls(cluster.tls, 'verify: true')}"
    )
    return _block("cluster", body)


def _leaf(leaf: Leaf, tls: Tls, names: Sequence[str]) -> str:
    users = [f"{{ user: {_text(subject_of(name))}, account: {_text(name)} }}" for name in names]
    body = "\n".join(
        [
            f"listen: {_text(f'{leaf.host}:{leaf.port}')}",
            _block("authorization", _rows("users", users)),
            _tls(tls, "verify_and_map: true\nhandshake_first: true"),
        ]
    )
    return _block("leafnodes", body)
