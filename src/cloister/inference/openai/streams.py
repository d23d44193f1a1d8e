"""Iterators of pieces: several merged into one, and one that has begun before its reply is given.

Whatever ends first (the last piece, an error, a client that is gone) closes every source, and with that the
engine's work behind it. A source is made only when it is first asked, because an asynchronous generator that
never began runs no clean-up when it is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Generic, TypeVar

__all__ = ["Begun", "close", "merged"]

_T = TypeVar("_T")


async def close(source: object) -> None:
    """Close an iterator, where it can be closed."""
    aclose = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


async def merged(sources: Sequence[AsyncIterator[_T]]) -> AsyncGenerator[tuple[int, _T], None]:
    """Yield what the sources yield, as it comes, each with the number of its source.

    The first error of any source ends all. With several, each step of a source runs in a task of its own.
    """
    if len(sources) == 1:
        try:
            async for item in sources[0]:
                yield 0, item
        finally:
            await close(sources[0])
        return
    waiting = {asyncio.ensure_future(_next(source)): index for index, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                try:
                    item = task.result()
                except StopAsyncIteration:
                    del waiting[task]
                    continue
                index = waiting.pop(task)
                yield index, item
                waiting[asyncio.ensure_future(_next(sources[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await close(source)


async def _next(source: AsyncIterator[_T]) -> _T:
    return await anext(source)


class Begun(Generic[_T]):
    """An iterator whose first item has been computed, so that an error before it is still the reply's.

    Args:
        first: that item.
        rest: the iterator it was taken from.
    """

    def __init__(self, first: _T, rest: AsyncIterator[_T]) -> None:
        self._first: list[_T] = [first]
        self._rest = rest

    @classmethod
    async def of(cls, source: AsyncIterator[_T]) -> Begun[_T]:
        """Return `source` with its first item computed; raises what computing it raises."""
        try:
            return cls(await anext(source), source)
        except BaseException:
            await close(source)
            raise

    def __aiter__(self) -> Begun[_T]:
        return self

    async def __anext__(self) -> _T:
        return self._first.pop() if self._first else await anext(self._rest)

    async def aclose(self) -> None:
        """Stop the iterator and what computes it."""
        self._first.clear()
        await close(self._rest)
