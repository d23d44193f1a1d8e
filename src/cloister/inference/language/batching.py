"""Many requests at once, and what becomes of each: finished, cancelled, or failed.

`Manager` computes, in a thread of its own; here each request has a listener in the event loop's thread.

Invariants: a request's tokens are given to its own listener alone; every request that is taken ends; a
cancelled one is heard no more; a fatal error reaches every open request, those included that were handed over
while the thread died; a reader who is slow gets more tokens at once, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Final

from cloister.errors import CloisterError
from cloister.inference.language.drawing import Draw
from cloister.inference.language.manager import Manager

__all__ = ["Batcher", "EngineStopped"]

_WATCH_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 30.0


class EngineStopped(CloisterError):
    """The engine no longer computes; the service has to be started again."""

    def __init__(self) -> None:
        super().__init__("the language model has stopped computing", fix="Start the service again")


class Batcher:
    """Generates for many requests with one model.

    Args:
        manager: not yet started; closed with this.

    Attributes:
        capacity: the most tokens one request may come to, prompt and answer.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager, self.capacity = manager, manager.capacity
        self._open: dict[str, _Listener] = {}
        self._count, self._closed = 0, False
        self._starting = threading.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it can compute: it was not closed, and nothing fatal has happened."""
        if self._closed or self._manager.failed:
            return False
        return not self._manager.started or bool(self._manager.is_running())

    @property
    def open(self) -> int:
        """Requests that compute or wait."""
        return len(self._open)

    @property
    def free_blocks(self) -> int:
        """Blocks of the cache that no request holds."""
        return self._manager.free_blocks

    async def tokens(
        self, prompt: Sequence[int], most: int, draw: Draw
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        """Generate; yield new tokens, one or more, and whether they are the last. Closing cancels.

        Args:
            prompt: token ids, at least one; with `most` no more than `capacity`.
            most: tokens are generated.
            draw: how.

        Raises:
            EngineStopped: it cannot go on.
        """
        self._start()
        self._count += 1
        name = str(self._count)
        listener = self._open[name] = _Listener()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        finished, given = False, 0
        try:
            self._manager.register_result_handler(name, listener.heard)
            if not self._manager.submit(name, prompt, most, draw):
                raise EngineStopped
            while not finished:
                output = await listener.next()
                if output.error is not None:
                    raise EngineStopped
                finished = output.is_finished()
                new, given = output.generated_tokens[given:], len(output.generated_tokens)
                if new or finished:
                    yield new, finished
        finally:
            del self._open[name]
            self._manager.forget(name)
            if not finished:
                self._manager.cancel_request(name)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let another thread than the event loop's use the model while the batch waits.

        Raises:
            EngineStopped: it cannot go on.
        """
        self._start()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._manager.pause())
            except RuntimeError:
                raise EngineStopped from None
            yield

    async def aclose(self) -> None:
        """Stop; open requests end with EngineStopped."""
        if self._closed:
            return
        self._closed = True
        for listener in self._open.values():
            listener.fail()
        if self._manager.started:
            await asyncio.to_thread(self._manager.stop, block=True, timeout=_STOP_SECONDS, hard_stop=True)

    def _start(self) -> None:
        """Start the thread with the first request: the walls are up by then. Raises EngineStopped."""
        with self._starting:
            if not self.running:
                raise EngineStopped
            if not self._manager.started:
                self._manager.start()

    async def _watch(self) -> None:
        """Fail open requests where the thread has died; what it was handed meanwhile, it tells nobody."""
        while self._open:
            if not self.running:
                for listener in self._open.values():
                    listener.fail()
            await asyncio.sleep(_WATCH_SECONDS)


class _Listener:
    """Keeps what one request has said last; each output holds all its tokens."""

    def __init__(self) -> None:
        self._output: Any = None
        self._failed = False
        self._waits: asyncio.Future[None] | None = None

    def heard(self, output: Any) -> None:
        """Take an output, in the event loop's thread."""
        self._output = output
        self._wake()

    def fail(self) -> None:
        """Have `next` raise."""
        self._failed = True
        self._wake()

    async def next(self) -> Any:
        """Return the newest output. Raises EngineStopped."""
        while self._output is None:
            if self._failed:
                raise EngineStopped
            self._waits = asyncio.get_running_loop().create_future()
            await self._waits
        output, self._output = self._output, None
        return output

    def _wake(self) -> None:
        if self._waits is not None and not self._waits.done():
            self._waits.set_result(None)
