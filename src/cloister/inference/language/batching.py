"""Many requests at once: the continuous batching of transformers, with what a service needs around it.

Transformers' own manager does the work, in a thread of its own: a paged cache of keys and values, prompts cut
into pieces between others' tokens, requests set back and computed again when the cache is full. Added here:

- a cancelled request is heard no more, and what it would still say is dropped;
- a cancellation lets waiting requests in again: transformers forgets to, once the cache has been full, and
  everybody would wait for ever;
- a fatal error reaches every open request, those included that were handed over while the thread died;
- nothing is logged: the manager's messages quote prompts.

Invariants: blocks are never shared between requests (`allow_block_sharing=False`); a request's tokens are
given to its own listener alone; every request that is taken ends: finished, cancelled, or failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, Final

from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from cloister.errors import CloisterError
from cloister.inference.language.drawing import KEYWORD, Draw, Drawing

__all__ = ["Batcher", "EngineStopped"]

PAGE: Final = 32
"""Tokens in a block of the cache."""

_STEP_TOKENS: Final = 256
_STEP_REQUESTS: Final = 128
_WATCH_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 30.0
_SCHEDULER: Final = "cloister"


class EngineStopped(CloisterError):
    """The engine no longer computes; the service has to be started again."""

    def __init__(self) -> None:
        super().__init__("the language model has stopped computing", fix="Start the service again")


class _Scheduler(FIFOScheduler):  # type: ignore[misc]  # transformers is not followed
    """First come, first served; a cancellation makes room just as an end does."""

    def clear_cancelled_requests(self) -> list[Any]:
        cancelled: list[Any] = super().clear_cancelled_requests()
        if cancelled:
            self.block_new_requests = False
        return cancelled


class _Nowhere(queue.Queue):  # type: ignore[type-arg]
    """Where the manager puts what nobody listens for."""

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Drop it."""


class _Manager(ContinuousBatchingManager):  # type: ignore[misc]  # transformers is not followed
    """The manager of transformers, with a thread that keeps no process alive."""

    def start(self) -> None:
        """Start the thread, once."""
        self.background_thread_status.clear()
        self._generation_thread = threading.Thread(
            target=self._run_generation_loop, name="generation", daemon=True
        )
        self._generation_thread.start()

    @property
    def started(self) -> bool:
        return self._generation_thread is not None

    @property
    def failed(self) -> bool:
        return self.background_thread_status.fatal_error is not None

    def replace_processors(self, processor: Any) -> None:
        """Have one processor of logits, that takes its settings from each request."""
        processors = self.logit_processor
        processors.logits_processor = LogitsProcessorList([processor])
        processors.tensors_required, processors.do_processing = 1, True
        processors.supported_keys, processors.ignored_keys = dict(processor.supported_kwargs), set()

    def forget(self, name: str) -> None:
        """Send nothing more of this request to its listener."""
        with self.output_router._lock:
            self.output_router.result_handlers.pop(name, None)


class Batcher:
    """Generates for many requests with one model.

    Args:
        model: a causal language model of transformers, its attention "sdpa" or "eager".
        cache_tokens: room for keys and values, in tokens of all requests together.
        ends: ids of the tokens that end an answer.

    Raises:
        ValueError, RuntimeError: transformers cannot batch this model, or there is no memory for the cache.

    Attributes:
        capacity: the most tokens one request may come to, prompt and answer.
    """

    def __init__(self, model: Any, cache_tokens: int, ends: Sequence[int]) -> None:
        _silence()
        SCHEDULER_MAPPING.setdefault(_SCHEDULER, _Scheduler)
        self._manager = _Manager(
            model=model,
            generation_config=GenerationConfig(eos_token_id=list(ends) or -1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=max(2, math.ceil(cache_tokens / PAGE)),
                max_batch_tokens=_STEP_TOKENS,
                max_requests_per_batch=_STEP_REQUESTS,
                allow_block_sharing=False,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
                cpu_offload_space=0.0,
                scheduler_type=_SCHEDULER,
                per_request_processors=True,
            ),
        )
        self._manager.replace_processors(Drawing())
        self._manager.output_router.output_queue = _Nowhere()
        self._manager.warmup()  # takes the cache's memory, in this thread
        self.capacity = int(infer_max_single_request_tokens(self._manager.batch_processor.cache))
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
        allocators = self._manager.batch_processor.cache.cache_allocators.values()
        held = sum(len(blocks) for one in allocators for blocks in one.block_table.values())
        return int(self._manager.batch_processor.cache.num_blocks) - held

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
            taken = self._manager.add_request(
                list(prompt), request_id=name, max_new_tokens=most, streaming=True, **{KEYWORD: draw}
            )
            if taken is None:
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


def _silence() -> None:
    """Have the manager log nothing: its messages quote token ids and errors."""
    logger = logging.getLogger("ContinuousBatchingLogger")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
