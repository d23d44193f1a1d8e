"""`cloister relay URL`: between clients and one service, so that the service does not see who asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.common import say
from cloister.cli.serviceoptions import CaOption, tls_of
from cloister.errors import InputError

__all__ = ["relay"]


def relay(
    url: Annotated[str, typer.Argument(help="The one service to forward to.", show_default=False)],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8200,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain in PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key in PEM.")] = None,
    tls_ca: CaOption = None,
    streams: Annotated[int, typer.Option("--streams", min=1, max=65536, help="Requests at a time.")] = 256,
) -> None:
    """Forward sealed requests to one service, without saying whose they are.

    It holds no key, keeps nothing and logs nothing. Run by the service itself it would hide nothing: somebody
    else has to run it.
    """
    from cloister.inference.client import Relay
    from cloister.inference.webserver import check_tls, listen, until_told, web_server

    if (tls_cert is None) != (tls_key is None):
        raise InputError("--tls-cert and --tls-key go together", fix="Give both, or neither")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    if tls is not None:
        check_tls(tls)
    trusted = tls_of(tls_ca)
    listening = listen(host, port)

    async def work() -> None:
        relay = Relay(url, streams=streams, verify=trusted)
        scheme = "http" if tls is None else "https"
        place = f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        say(f"Relaying {scheme}://{place} to {relay.service.url}. Ctrl-C ends it.")
        try:
            await until_told(web_server(relay, tls=tls), listening)
        finally:
            await relay.aclose()

    try:
        asyncio.run(work())
    finally:
        listening.close()
