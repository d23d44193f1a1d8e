"""The continuous batching of transformers, with the settings and corrections that a service needs.

- Blocks of the cache are never shared between requests: a prefix cache would tell one client what others ask.
- A cancellation lets waiting requests in again: transformers forgets to, once the cache has been full, and
  everybody would wait for ever.
- Its thread keeps no process alive, and begins with the first request: the walls are up by then.
- It logs nothing, for its messages quote prompts; what nobody listens for is dropped.
- No kernel is looked for, and none fetched (`auto_switch_to_flash=False`).

`tried` runs a model before anybody's prompt does. Written against transformers 5.23; the tests beside this
module notice where another release behaves otherwise.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from cloister.errors import InputError
from cloister.inference.application import Sampling
from cloister.inference.language.drawing import KEYWORD, Draw, Drawing

__all__ = ["Manager", "tried"]

_PAGE: Final = 32
_STEP_TOKENS: Final = 256
_STEP_REQUESTS: Final = 128
_SCHEDULER: Final = "cloister"
_TRIAL: Final = (5, 41)
_TRIAL_TOKENS: Final = 3
_TOLERANCE: Final = {torch.float32: 0.01}  # in nats; half precision rounds far more
_WIDE: Final = 0.5


class _Scheduler(FIFOScheduler):  # type: ignore[misc]  # transformers is not followed
    """First come, first served; a cancellation makes room just as an end does."""

    def clear_cancelled_requests(self) -> list[Any]:
        """Remove what was cancelled, and let others in."""
        cancelled: list[Any] = super().clear_cancelled_requests()
        if cancelled:
            self.block_new_requests = False
        return cancelled


class _Nowhere(queue.Queue):  # type: ignore[type-arg]
    """Where the manager puts what nobody listens for."""

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Drop it."""


class Manager(ContinuousBatchingManager):  # type: ignore[misc]  # transformers is not followed
    """Generates for many requests with one model.

    Args:
        model: a causal language model of transformers, its attention "sdpa" or "eager".
        cache_tokens: room for keys and values, in tokens of all requests together; taken now.
        ends: ids of the tokens that end an answer.

    Raises:
        ValueError, RuntimeError: transformers cannot batch this model, or there is no memory for the cache.

    Attributes:
        capacity: the most tokens one request may come to, prompt and answer.
    """

    def __init__(self, model: Any, cache_tokens: int, ends: Sequence[int]) -> None:
        _silence()
        SCHEDULER_MAPPING.setdefault(_SCHEDULER, _Scheduler)
        super().__init__(
            model=model,
            generation_config=GenerationConfig(eos_token_id=list(ends) or -1, max_new_tokens=1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE,
                num_blocks=max(2, math.ceil(cache_tokens / _PAGE)),
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
        processors = self.logit_processor
        processors.logits_processor = LogitsProcessorList([Drawing()])
        processors.tensors_required, processors.do_processing = 1, True
        processors.supported_keys, processors.ignored_keys = dict(Drawing.supported_kwargs), set()
        self.output_router.output_queue = _Nowhere()
        self.warmup()
        self.capacity = int(infer_max_single_request_tokens(self.batch_processor.cache))

    def start(self) -> None:
        """Start the thread, once."""
        self.background_thread_status.clear()
        self._generation_thread = threading.Thread(
            target=self._run_generation_loop, name="generation", daemon=True
        )
        self._generation_thread.start()

    @property
    def started(self) -> bool:
        """Whether its thread was started, whatever became of it."""
        return self._generation_thread is not None

    @property
    def failed(self) -> bool:
        """Whether its thread has met what it cannot go on after."""
        return self.background_thread_status.fatal_error is not None

    @property
    def free_blocks(self) -> int:
        """Blocks of the cache that no request holds."""
        cache = self.batch_processor.cache
        held = sum(len(one) for each in cache.cache_allocators.values() for one in each.block_table.values())
        return int(cache.num_blocks) - held

    def submit(self, name: str, prompt: Sequence[int], most: int, draw: Draw) -> bool:
        """Hand a request over; return whether it was taken."""
        taken = self.add_request(
            list(prompt), request_id=name, max_new_tokens=most, streaming=True, **{KEYWORD: draw}
        )
        return taken is not None

    def forget(self, name: str) -> None:
        """Send nothing more of this request to its listener."""
        with self.output_router._lock:
            self.output_router.result_handlers.pop(name, None)

    def generated_here(self, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[list[int]]:
        """Return a few tokens for each prompt, computed at once in this thread, before its own is started."""
        heard: queue.Queue[Any] = queue.Queue()
        nowhere, self.output_router.output_queue = self.output_router.output_queue, heard
        for index, (prompt, draw) in enumerate(zip(prompts, draws, strict=True)):
            self.submit(str(index), prompt, _TRIAL_TOKENS, draw)
        while self.batch_processor.prepare_next_batch():
            self.batch_processor._generation_step(self.model)
            self.batch_processor.update_batch()
        self.output_router.output_queue = nowhere
        tokens: dict[str, list[int]] = {}
        while not heard.empty():
            output = heard.get_nowait()
            tokens[output.request_id] = output.generated_tokens
        return [tokens[str(index)] for index in range(len(prompts))]


@torch.inference_mode()
def tried(manager: Manager, vocabulary: int) -> None:
    """Generate for two prompts of our own at once; each token is as likely as the model finds it alone.

    A model whose attention does not heed the batch's mask would answer one client with another's words.

    Raises:
        InputError: it is not.
        RuntimeError, and whatever else a model raises: it cannot be batched.
    """
    model, batched = manager.model, manager.model.config._attn_implementation
    prompts = [
        [(7 * place + length) % vocabulary for place in range(length)]
        for length in _TRIAL
        if length + _TRIAL_TOKENS <= manager.capacity
    ]
    draws = [Draw(Sampling(max_tokens=_TRIAL_TOKENS, temperature=0, logprobs=True)) for _ in prompts]
    answers = manager.generated_here(prompts, draws)
    if batched.startswith("paged|"):
        model.set_attn_implementation(batched.removeprefix("paged|"))
    tolerance = _TOLERANCE.get(model.dtype, _WIDE)
    try:
        for prompt, draw, answer in zip(prompts, draws, answers, strict=True):
            logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
            alone = logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
            if not torch.allclose(alone, torch.tensor(draw.logprobs), rtol=0.0, atol=tolerance):
                raise InputError(
                    "this model answers otherwise beside others than it does alone",
                    fix="Use another model, or another release of transformers",
                )
    finally:
        if batched.startswith("paged|"):
            model.set_attn_implementation(batched)


def _silence() -> None:
    logger = logging.getLogger("ContinuousBatchingLogger")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
