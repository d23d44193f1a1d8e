"""Answers that are sealed to somebody else, behind an application that expects OpenAI's.

The application asks as ever. The request goes out without streaming, its answer comes back sealed by the
enclave to the readers; it is written to a folder, unread, and the application gets a well-formed answer whose
text names the file. Embeddings have no text to name one in, so they are refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from cloister.crypto import PublicIdentity
from cloister.errors import InputError
from cloister.files import write_atomic

__all__ = ["Asked", "SealedAnswers"]

_CHAT: Final = "/v1/chat/completions"
_TEXT: Final = "/v1/completions"
_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(frozen=True)
class Asked:
    """A request as it goes out, and how its application wants the answer.

    Attributes:
        body: without streaming.
        path: that was asked.
        model: that was asked for.
        streamed: whether the application waits for a stream.
        usage: whether it wants a count of tokens at the end of it.
    """

    body: bytes
    path: str
    model: str
    streamed: bool
    usage: bool


class SealedAnswers:
    """Keeps sealed answers in a folder, and words what the application is told.

    Args:
        folder: where they go; made where missing.
        readers: to whom they are sealed.
    """

    def __init__(self, folder: Path, readers: Sequence[PublicIdentity]) -> None:
        self.folder, self.readers = folder, tuple(readers)

    def ask(self, path: str, body: bytes) -> Asked:
        """Return the request as it goes out.

        Raises:
            InputError: it is no JSON object, or its answer could not name a file.
        """
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise InputError("the body of the request is not a JSON object")
        if path not in (_CHAT, _TEXT, "/v1/score"):
            raise InputError(
                "answers of this path cannot be sealed to others", fix="Ask it through a proxy without --to"
            )
        options = fields.pop("stream_options", None)
        streamed = bool(fields.pop("stream", False))
        usage = isinstance(options, dict) and bool(options.get("include_usage"))
        model = fields.get("model")
        named = model if isinstance(model, str) else ""
        return Asked(msgspec.json.encode(fields), path, named, streamed, usage)

    def keep(self, sealed: bytes) -> Path:
        """Write a sealed answer to a file of its own, and return its path.

        Raises:
            StorageError: it cannot be written.
        """
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = self.folder / f"answer-{now}-{os.urandom(4).hex()}.sealed"
        write_atomic(path, sealed, mode=0o600, replace=False)
        return path

    def answer(self, asked: Asked, path: Path) -> tuple[str, bytes]:
        """Return media type and body of what the application is told."""
        if asked.path == "/v1/score":
            said: dict[str, Any] = {"model": asked.model, "sealed": str(path)}
            return "application/json", msgspec.json.encode(said)
        names = ", ".join(reader.name for reader in self.readers)
        text = f"This answer is sealed to {names}; it was saved as {path}."
        if asked.streamed:
            return "text/event-stream", _stream(asked, text)
        whole = _object(asked, [_choice(asked, text, "stop")])
        return "application/json", msgspec.json.encode({**whole, "usage": _USAGE})


def _stream(asked: Asked, text: str) -> bytes:
    stamp = _object(asked, [], chunk=True)
    events: list[dict[str, Any]] = [
        {**stamp, "choices": [_choice(asked, text, None, chunk=True)]},
        {**stamp, "choices": [_choice(asked, "", "stop", chunk=True)]},
    ]
    if asked.usage:
        events.append({**stamp, "usage": _USAGE})
    lines = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events]
    return b"".join([*lines, b"data: [DONE]\n\n"])


def _object(asked: Asked, choices: list[dict[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
    chat = asked.path == _CHAT
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{os.urandom(12).hex()}",
        "object": kind,
        "created": int(datetime.now(UTC).timestamp()),
        "model": asked.model,
        "choices": choices,
    }


def _choice(asked: Asked, text: str, finish: str | None, *, chunk: bool = False) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if asked.path == _TEXT:
        return {**choice, "text": text}
    if chunk:
        return {**choice, "delta": {"role": "assistant", "content": text} if text else {}}
    return {**choice, "message": {"role": "assistant", "content": text, "refusal": None}}
