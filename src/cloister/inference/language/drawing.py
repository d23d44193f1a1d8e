"""Which token comes next: the likeliest, or one drawn by temperature, top-k and top-p; its log-probability.

The continuous batching of transformers asks its processors of logits once a step for all requests. Its own
three sort the vocabulary twice for each token (23 ms for 152,000 words on one core, where a small model takes
less to compute), and log-probabilities come after them, 0 for whatever is greedy. `Drawing` is one processor
in their place. A request carries its `Draw`; a drawn token leaves with an infinite logit, so that the argmax
which follows takes it. A greedy row is not touched: its token is that of `generate`.

Top-p alone needs no order, either: a token drawn from all belongs to the smallest set of the likeliest ones
whose sum reaches p if those likelier than it sum to less than p; else another is drawn, and after a few the
vocabulary is sorted after all. It is the same distribution, but that tokens as likely as the last one belong.

Order, as in transformers: temperature, top-k, top-p. Log-probabilities are of the model's own distribution,
before all three. Each token is drawn with 8 fresh bytes of the operating system's: what one client is told
says nothing about what another's tokens were drawn with.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Final

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from cloister.inference.application import Sampling

__all__ = ["KEYWORD", "Draw", "Drawing", "drawn"]

KEYWORD: Final = "draw"
"""Under which a request carries its `Draw`."""

_GREEDY: Final = 1e-5
_TRIES: Final = 6
"""Draws from all tokens before they are sorted to be drawn from by top-p."""


class Draw:
    """How one request's tokens are drawn, and what was told of them. Its `repr` shows nothing.

    Args:
        sampling: temperature, top_p, top_k and whether log-probabilities are told.
        insecure_test_random: in the place of `os.urandom`, in tests.

    Attributes:
        logprobs: of the tokens so far, where told.
    """

    def __init__(
        self, sampling: Sampling, *, insecure_test_random: Callable[[int], bytes] | None = None
    ) -> None:
        self.greedy = sampling.temperature < _GREEDY or sampling.top_k == 1
        self.temperature, self.top_p, self.top_k = sampling.temperature, sampling.top_p, sampling.top_k
        self.tells, self.logprobs = sampling.logprobs, list[float]()
        self._random = insecure_test_random or os.urandom

    def __deepcopy__(self, memo: object) -> Draw:
        """Return itself: a request that is computed again, for want of blocks, keeps what was told."""
        return self

    def uniform(self) -> float:
        """Return a fresh number in [0, 1), of 53 bits."""
        return (int.from_bytes(self._random(8), "big") >> 11) * 2.0**-53


class Drawing(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # transformers is not followed
    """Draws for each request of a batch by its own `Draw`."""

    supported_kwargs: Final = {KEYWORD: Draw}
    ignored_kwargs: Final = ()

    def __init__(self) -> None:
        self._draws: list[Draw] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Do nothing: what is drawn by does not travel in this tensor."""

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Take note of the requests that will get a token, in the order of the rows of scores."""
        self._draws = [request.state.logit_processor_kwargs[KEYWORD] for request in requests_with_new_token]
        return torch.zeros(len(self._draws), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return scores (tokens, vocabulary), of which the argmax is each request's token."""
        # Rows beyond those are of requests whose prompt is not yet read to its end; nobody takes their token.
        for row, draw in zip(scores[: len(self._draws)], self._draws, strict=True):
            if draw.greedy and not draw.tells:
                continue  # the argmax that follows is all there is to do
            token = int(row.argmax()) if draw.greedy else drawn(row, draw)
            if draw.tells:
                draw.logprobs.append(_finite(float(row[token] - row.logsumexp(-1))))
            if not draw.greedy:
                row[token] = torch.inf
        return scores


def drawn(row: torch.Tensor, draw: Draw) -> int:
    """Return a token drawn from one row of logits (vocabulary,), float32."""
    size = row.shape[-1]
    scaled = (row - row.max()) / draw.temperature
    if not 0 < draw.top_k < size:
        chances = scaled.softmax(-1)
        reached = chances.cumsum(-1, dtype=torch.float64)
        for _ in range(_TRIES):
            token = _at(reached, draw.uniform())
            if draw.top_p >= 1.0 or float(chances[chances > chances[token]].sum()) < draw.top_p:
                return token
    values, tokens = scaled.topk(draw.top_k if 0 < draw.top_k < size else size)
    reached = values.softmax(-1).cumsum(-1, dtype=torch.float64)
    if draw.top_p < 1.0:
        reached = reached[: int(torch.searchsorted(reached, draw.top_p)) + 1]
    return int(tokens[_at(reached, draw.uniform())])


def _finite(logprob: float) -> float:
    """Return a log-probability that JSON can tell: never above 0, and never below -9999."""
    return max(min(logprob, 0.0), -9999.0) if not math.isnan(logprob) else -9999.0


def _at(reached: torch.Tensor, uniform: float) -> int:
    """Return the place in a distribution, given as sums, that a uniform number in [0, 1) falls into."""
    place = int(torch.searchsorted(reached, uniform * float(reached[-1]), right=True))
    return min(place, reached.shape[-1] - 1)
