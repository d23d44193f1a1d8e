"""A reply as server-sent events: data: {...}, blank line; the last is data: [DONE].

An error after the first event is itself an event, {"error": {...}}, and ends the stream without [DONE]; an
error before it is the reply's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec

from cloister.inference.application import Reply
from cloister.inference.openai.errors import error_object, refusal_of
from cloister.inference.openai.streams import Begun, close

__all__ = ["DONE", "event", "streamed"]

DONE: Final = b"data: [DONE]\n\n"
"""The end of a stream."""
_HEADERS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}

_encode = msgspec.json.Encoder().encode


def event(value: object) -> bytes:
    """Return one event."""
    return b"data: " + _encode(value) + b"\n\n"


async def streamed(events: AsyncIterator[bytes]) -> Reply:
    """Return the reply that streams `events`, once the first of them is there; raises what it raises."""
    return Reply(200, _HEADERS, await Begun.of(_guarded(events)))


async def _guarded(events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    begun = False
    try:
        async for each in events:
            begun = True
            yield each
    except Exception as error:  # whatever broke, the reader of a begun stream is told that it did
        if not begun:
            raise
        yield event(error_object(refusal_of(error)))
    finally:
        await close(events)
