"""`cloister proxy URL`: OpenAI's API on this machine, in front of a service that takes no plaintext."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.common import JsonOption, resolve_identity, say
from cloister.cli.serviceoptions import (
    CaOption,
    ModelDigestOption,
    PolicyOption,
    ReceiptsOption,
    RelayOption,
    TokenOption,
    client_policy,
    in_reach,
    read_token,
    tell_verified,
    tls_of,
)
from cloister.errors import InputError

if TYPE_CHECKING:
    import socket

    from cloister.inference.client import Proxy

__all__ = ["proxy"]

_HOST = "127.0.0.1"


def proxy(
    url: Annotated[
        str, typer.Argument(help="The service, such as https://models.example.", show_default=False)
    ],
    policy: PolicyOption = None,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")
    ] = 8100,
    token_file: TokenOption = None,
    relay: RelayOption = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="NAME", help="Seal answers to this reader instead; may be repeated."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", metavar="DIR", help="Where sealed answers go; with --to.")
    ] = None,
    receipts: ReceiptsOption = None,
    model_digest: ModelDigestOption = "",
    tls_ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve OpenAI's API on this machine, each request sealed to a service that was verified first.

    Point any OpenAI client at http://127.0.0.1:8100/v1 and change nothing else. The page on / shows what was
    verified. Everything on this machine may use the proxy while it runs. Ctrl-C ends it.
    """
    from cloister.inference.client import AsyncPrivateClient, Proxy
    from cloister.inference.client.sealedanswers import SealedAnswers
    from cloister.inference.webserver import listen

    if bool(to) != (answers is not None):
        raise InputError("--to and --answers go together", fix="Say who reads the answers, and where they go")
    readers = [resolve_identity(name) for name in to or []]
    rules, token, tls = client_policy(policy), read_token(token_file), tls_of(tls_ca)
    listening = listen(_HOST, port)
    try:

        async def work() -> None:
            client = AsyncPrivateClient(
                url,
                rules,
                token=token,
                seal_to=readers,
                receipts=receipts,
                relay=relay,
                model_digest=model_digest,
                verify=tls,
            )
            sealed = None if answers is None else SealedAnswers(answers, readers)
            await _run(Proxy(client, answers=sealed), listening, as_json=as_json)

        with in_reach(relay or url):
            asyncio.run(work())
    finally:
        listening.close()


async def _run(proxy: Proxy, listening: socket.socket, *, as_json: bool) -> None:
    """Verify the service, say so, and serve until a signal."""
    from cloister.inference.webserver import until_told, web_server

    address = f"http://{_HOST}:{listening.getsockname()[1]}"
    async with proxy:
        verified = proxy.verified
        if verified is not None:
            tell_verified(proxy.url, verified)
        say(f"Listening: {address}/v1 for OpenAI clients, {address}/ for what was verified. Ctrl-C ends it.")
        if as_json:
            print(json.dumps({"address": f"{address}/v1", **proxy.facts()}, indent=2), flush=True)
        await until_told(web_server(proxy), listening)
    say(f"Ended after {proxy.requests} requests, {proxy.receipts} answers with a receipt.")
