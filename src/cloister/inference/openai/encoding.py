"""Texts into tokens, so that nobody waits for somebody else's long one.

A tokenizer takes about a second for a million characters, and all requests share one event loop. So what is
too long for any context is refused by its length, before it is encoded; and a long text is encoded in a
thread, one after another. A short one is encoded at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from cloister.inference.openai.errors import Refusal

__all__ = ["CHARACTERS", "LONG", "check_body", "check_text", "encoded"]

CHARACTERS: Final = 32
"""Characters that a token stands for at most, on average over a text that fills a context."""
LONG: Final = 16 << 10
"""Characters from which on a thread encodes."""
_BYTES: Final = 6 * CHARACTERS
"""Bytes that these are at most, as JSON writes them."""
_ROOM: Final = 1 << 20

_T = TypeVar("_T")
_thread: Final = ThreadPoolExecutor(1, "cloister-tokens")


def check_body(context: int, body: bytes, param: str) -> None:
    """Raise Refusal where a body is too long to be one prompt, whatever is in it; `context` is in tokens."""
    if len(body) > _ROOM + _BYTES * context:
        raise _too_long(context, param)


def check_text(context: int, text: str, param: str) -> None:
    """Raise Refusal where a text is too long for a context of so many tokens, whatever is in it."""
    if len(text) > max(CHARACTERS * context, LONG):
        raise _too_long(context, param)


async def encoded(size: int, encode: Callable[[], _T]) -> _T:
    """Return what `encode` returns, for texts of `size` characters; raises what it raises."""
    if size < LONG:
        return encode()
    return await asyncio.get_running_loop().run_in_executor(_thread, encode)


def _too_long(context: int, param: str) -> Refusal:
    return Refusal(
        f"This model's maximum context length is {context} tokens. The {param} cannot fit it.",
        param=param,
        code="context_length_exceeded",
    )
