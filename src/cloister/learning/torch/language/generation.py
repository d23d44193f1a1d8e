"""Answers to prompts, token by token, with keys and values kept.

Prompts of like lengths go together, made up at their left; a mask hides what was made up. The most probable
token is taken, or one drawn at a temperature from our own stream. An answer ends before the base's end token.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from cloister.crypto import StreamRandom
from cloister.errors import InputError

__all__ = ["generate"]

_TOGETHER: Final = 32


def generate(
    base: nn.Module,
    prompts: Sequence[Sequence[int]],
    most: int,
    *,
    ends: Collection[int],
    pad: int,
    temperature: float,
    random: StreamRandom,
) -> list[list[int]]:
    """Return the tokens that follow each prompt, at most `most`, in the order of the prompts.

    Args:
        base: transformers' causal model, in evaluation mode.
        prompts: each at least one token.
        most: tokens of an answer.
        ends: tokens that end one; they are not returned.
        pad: token that fills up.
        temperature: 0 for the most probable token.
        random: what is drawn from above 0.

    Raises:
        InputError: a prompt is empty, or a number is out of range.
    """
    if most < 1 or temperature < 0.0 or not all(prompts):
        raise InputError(
            "a prompt is empty, or there is nothing to answer", fix="Give prompts of one token or more"
        )
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.no_grad():
        for at in range(0, len(order), _TOGETHER):
            some = order[at : at + _TOGETHER]
            answers = _together(base, [prompts[i] for i in some], most, set(ends), pad, temperature, random)
            for i, answer in zip(some, answers, strict=True):
                found[i] = answer
    return found


def _together(
    base: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    ends: set[int],
    pad: int,
    temperature: float,
    random: StreamRandom,
) -> list[list[int]]:
    from transformers import DynamicCache

    device, width = next(base.parameters()).device, max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros((len(prompts), width + most), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    takes = inspect.signature(base.forward).parameters
    cache = DynamicCache(config=base.config)
    answers: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    for step in range(most):
        until = width + step
        options: dict[str, Any] = {"attention_mask": mask[:, :until]}
        if "position_ids" in takes:
            options["position_ids"] = places[:, until - ids.shape[1] : until]
        if "logits_to_keep" in takes:
            options["logits_to_keep"] = 1
        output = base(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True, **options)
        drawn = _drawn(output.logits[:, -1].float(), temperature, random)
        for row, token in enumerate(drawn):
            going[row] = going[row] and token not in ends
            if going[row]:
                answers[row].append(token)
        if not any(going):
            break
        ids = torch.tensor(drawn, device=device)[:, None]
    return answers


def _drawn(logits: torch.Tensor, temperature: float, random: StreamRandom) -> list[int]:
    """Return one token for each row of logits, float32[b, vocabulary]."""
    if temperature == 0.0:
        return [int(token) for token in logits.argmax(1).tolist()]
    scores = logits.double().cpu().numpy() / temperature
    chances = np.cumsum(np.exp(scores - scores.max(1, keepdims=True)), axis=1)
    where = random.uniform((len(chances),)) * chances[:, -1]
    return [int(np.searchsorted(row, at, side="right")) for row, at in zip(chances, where, strict=True)]
