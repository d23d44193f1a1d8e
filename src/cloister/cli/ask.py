"""`cloister ask URL TEXT`: one question to a language model that was verified first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli.common import JsonOption, emit, resolve_identity, say
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
from cloister.errors import InputError, ProtocolError
from cloister.files import write_atomic
from cloister.text import printable

if TYPE_CHECKING:
    import httpx2

    from cloister.inference.client import PrivateClient

__all__ = ["ask"]

_CHAT: Final = "/v1/chat/completions"
_MAX_TEXT: Final = 8 << 20


def ask(
    url: Annotated[
        str, typer.Argument(help="The service, such as https://models.example.", show_default=False)
    ],
    text: Annotated[
        str,
        typer.Argument(
            help="The question; - reads standard input, which other users of this machine do not see.",
            show_default=False,
        ),
    ],
    policy: PolicyOption = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="What the model is told beforehand.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="The answer's length at most.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="NAME", help="Seal the answer to this reader instead; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the sealed answer goes; with --to.")
    ] = None,
    token_file: TokenOption = None,
    relay: RelayOption = None,
    receipts: ReceiptsOption = None,
    model_digest: ModelDigestOption = "",
    tls_ca: CaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a language model one question, sealed to a service that was verified first."""
    from cloister.inference.client import PrivateClient

    if bool(to) != (out is not None):
        raise InputError("--to and --out go together", fix="Say who reads the answer, and where it goes")
    if out is not None and out.exists():
        raise InputError("the target exists", where=str(out), fix="Choose another one with --out")
    readers = [resolve_identity(name) for name in to or []]
    client = PrivateClient(
        url,
        client_policy(policy),
        token=read_token(token_file) or "",
        seal_to=readers,
        receipts=receipts,
        relay=relay,
        model_digest=model_digest,
        verify=tls_of(tls_ca),
    )
    with client, in_reach(relay or url):
        verified = client.attest()
        tell_verified(url, verified)
        body = _body(verified.keys.model, _question(text), system, max_tokens)
        if out is not None:
            _sealed(client, body, out, [reader.name for reader in readers], as_json=as_json)
        else:
            _open(client, body, as_json=as_json)


def _open(client: PrivateClient, body: dict[str, Any], *, as_json: bool) -> None:
    """Ask, and print the answer as it comes."""
    from cloister.inference.client.privateclient import receipt_of

    plain = not as_json and sys.stdout.isatty()
    pieces: list[str] = []
    with client.stream("POST", _CHAT, json={**body, "stream": True}) as response:
        _check(response)
        try:
            for piece in _pieces(response):
                pieces.append(piece)
                if not as_json:
                    print(_printable(piece) if plain else piece, end="", flush=True)
        except BaseException:
            if pieces and not as_json:
                print(flush=True)  # what went wrong is told on a line of its own
            raise
        receipt = receipt_of(response)
    if receipt is None:
        raise ProtocolError("the answer has no receipt", fix="Do not use it; ask again")
    if not as_json:
        print(flush=True)
        say(f"The answer is complete; {receipt.model} signed its receipt.")
        return
    result = {
        "answer": "".join(pieces),
        "model": receipt.model,
        "model_digest": receipt.model_digest,
        "keys": receipt.keys,
        "receipt_at": receipt.at.isoformat(),
        "protection": None if client.verified is None else client.verified.protection,
    }
    emit(result, as_json=True)


def _sealed(
    client: PrivateClient, body: dict[str, Any], out: Path, names: list[str], *, as_json: bool
) -> None:
    """Ask for a sealed answer, and write it unread."""
    response = client.post(_CHAT, json=body)
    _check(response)
    write_atomic(out, response.content, mode=0o600, replace=False)
    people = ", ".join(names)
    emit(
        {"out": str(out), "sealed_to": names},
        as_json=as_json,
        text=f"The answer is in {out}, sealed to {people}.",
    )


def _body(model: str, question: str, system: str | None, max_tokens: int | None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    limit = {} if max_tokens is None else {"max_completion_tokens": max_tokens}
    return {"model": model, "messages": messages, **limit}


def _question(text: str) -> str:
    if text != "-":
        return text
    data = sys.stdin.buffer.read(_MAX_TEXT + 1)
    if len(data) > _MAX_TEXT:
        raise InputError(f"the question has more than {_MAX_TEXT >> 20} MiB", fix="Ask something shorter")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError("the question is not UTF-8 text", fix="Save it as text") from None


def _check(response: httpx2.Response) -> None:
    """Raise ProtocolError where the service answers with an error object."""
    if response.status_code < 400:
        return
    response.read()
    if response.status_code == 401:
        raise ProtocolError(
            "the service does not know this token, or wants one",
            fix="Give the one that its operator made for you with --token-file",
        )
    if response.status_code == 404:
        raise ProtocolError(
            "the service has no language model that chats", fix="For scores: `cloister predict URL FILE`"
        )
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {response.status_code}"
    fix = "Change the request" if response.status_code < 500 else "Ask again later"
    said = _printable(message).rstrip(".")
    raise ProtocolError(
        f"the service refuses: {said}", fix="" if ". " in said else fix
    )  # it may say it itself


def _pieces(response: httpx2.Response) -> Iterator[str]:
    """Yield the texts of a stream. Raises ProtocolError where it holds an error, or ends too early."""
    import msgspec

    for line in response.iter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data in ("", "[DONE]"):
            continue
        try:
            event = msgspec.json.decode(data, type=dict[str, Any])
            if "error" in event:
                raise ProtocolError(f"the service failed: {_printable(str(event['error'].get('message')))}")
            for choice in event.get("choices", ()):
                yield choice["delta"].get("content") or ""
        except (msgspec.DecodeError, KeyError, AttributeError, TypeError):
            raise ProtocolError("the service's answer is no chat completion") from None


def _printable(text: str) -> str:
    """Return text whose control characters cannot steer a terminal."""
    return printable(text, "\N{REPLACEMENT CHARACTER}", keep="\n\t")
