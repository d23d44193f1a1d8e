"""What a released language model is made of: the named tensors that belong to its card (`card`). No torch.

    lora, lora-alternating   for each adapted layer X: base_model.model.X.lora_A.weight [rank, inputs] and
                             base_model.model.X.lora_B.weight [outputs, rank], as peft calls them
    full                     every parameter of the base, as the base calls it
    text-classifier          in addition head.weight [classes, hidden] and head.bias [classes]

All are float32. Under "lora" A is not trained: it must be what the plan's public seed draws, so nobody can
have put another one there; who reads a file draws it again (`check_tensors`).

What this does not do: it does not know which layers a base has. That the tensors fit a base is for whoever
has it (`learning.torch.language`, `inference.language`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import IntegrityError
from cloister.learning.language.card import AdapterCard, check_card, plan_card
from cloister.learning.language.layout import Tensor

__all__ = [
    "HEAD",
    "AdapterCard",
    "check_card",
    "check_tensors",
    "draw_a",
    "layer_of",
    "named_tensors",
    "plan_card",
    "vector_of",
]

Single = NDArray[np.float32]

HEAD: Final = ("head.weight", "head.bias")
"""Tensors of a text-classifier's head."""

_PREFIX: Final = "base_model.model."
_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"
_REPLACED: Final = "Ask the releaser for the file as it was made"


def layer_of(name: str) -> str:
    """Return the layer's name in the base of an adapter's tensor. Raises IntegrityError for another name."""
    for ending in (_A, _B):
        inner = name.removeprefix(_PREFIX).removesuffix(ending)
        if name == f"{_PREFIX}{inner}{ending}" and inner:
            return inner
    raise _refuse(f"{name[:200]!r} is no tensor of an adapter")


def draw_a(seed: int, name: str, shape: tuple[int, ...]) -> Single:
    """Return an adapter's A, float32[rank, inputs], as a public seed determines it on every machine.

    Uniform in +-1 / sqrt(inputs), which is what peft draws from (He et al. 2015 with a = sqrt(5)).

    Args:
        seed: of the plan.
        name: of the tensor, as in a file; other names get unrelated numbers.
        shape: of A.
    """
    bound = 1.0 / math.sqrt(shape[-1])
    drawn = StreamRandom.from_seed(seed, f"lora A {name}").uniform(shape)
    drawn *= 2.0
    drawn -= 1.0
    drawn *= bound
    return drawn.astype(np.float32)


def check_tensors(card: AdapterCard, tensors: Mapping[str, Single]) -> None:
    """Check that these are the tensors of a card: their names, their shapes, their numbers.

    Raises:
        IntegrityError: one is missing or too many, has another rank or shape, holds a number that is not
            finite, or is an A that the plan's seed does not draw. It names the tensor.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise _refuse(f"{name[:200]!r} holds a number that is not finite")
    rest = set(tensors) - _check_head(card, tensors)
    if not card.adapted:
        if not rest or any(name.startswith(_PREFIX) for name in rest):
            raise _refuse("its plan trained the whole base, and it holds an adapter")
        return
    layers = {layer_of(name) for name in rest}
    if not layers:
        raise _refuse("it holds no adapter")
    for layer in sorted(layers):
        _check_layer(card, tensors, layer)


def _check_head(card: AdapterCard, tensors: Mapping[str, Single]) -> set[str]:
    """Return the names of the head's tensors, which are all there, or none where there is no head."""
    if not card.model.classes:
        return set()
    weight, bias = (tensors.get(name) for name in HEAD)
    if (
        weight is None
        or bias is None
        or weight.ndim != 2
        or (weight.shape[0], *bias.shape) != (card.model.classes, card.model.classes)
    ):
        raise _refuse(f"it has no head of {card.model.classes} classes")
    return set(HEAD)


def _check_layer(card: AdapterCard, tensors: Mapping[str, Single], layer: str) -> None:
    rank, targets = card.language.rank, card.language.targets
    name = f"{_PREFIX}{layer}{_A}"
    a, b = tensors.get(name), tensors.get(f"{_PREFIX}{layer}{_B}")
    if a is None or b is None:
        raise _refuse(f"layer {layer[:200]!r} has one of A and B, and not the other")
    if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        raise _refuse(f"the adapter of layer {layer[:200]!r} is not of rank {rank}")
    if targets and layer.rpartition(".")[2] not in targets:
        raise _refuse(f"layer {layer[:200]!r} is none of the plan's targets")
    if card.language.method == "lora" and not np.array_equal(a, draw_a(card.model.seed, name, a.shape)):
        raise _refuse(f"A of layer {layer[:200]!r} is not what the plan's seed draws")


def named_tensors(
    card: AdapterCard,
    layout: Sequence[Tensor],
    frozen: Sequence[Tensor],
    parameters: NDArray[np.floating],
) -> dict[str, Single]:
    """Return the tensors of a release, by name: what was trained, and A where it was not.

    Args:
        card: of the release.
        layout: names and shapes of what was trained, in the vector's order.
        frozen: names and shapes of A where it is no part of the vector.
        parameters: float32[d], the trained vector; the tensors are views of it.

    Raises:
        IntegrityError: the vector has another length.
    """
    size = sum(tensor.size for tensor in layout)
    if parameters.shape != (size,):
        raise IntegrityError(
            f"the study's model has {parameters.size} parameters, and its plan makes {size} of this base",
            fix="Give the base that the study was run with",
        )
    found: dict[str, Single] = {}
    start = 0
    for tensor in layout:
        part = parameters[start : start + tensor.size]
        found[tensor.name] = part.astype(np.float32, copy=False).reshape(tensor.shape)
        start += tensor.size
    for tensor in frozen:
        found[tensor.name] = draw_a(card.model.seed, tensor.name, tensor.shape)
    return found


def vector_of(layout: Sequence[Tensor], tensors: Mapping[str, Single]) -> Single:
    """Return the trained vector, float32[d], of named tensors.

    Raises:
        IntegrityError: a tensor is missing, or of another shape.
    """
    vector = np.empty(sum(tensor.size for tensor in layout), dtype=np.float32)
    start = 0
    for tensor in layout:
        found = tensors.get(tensor.name)
        if found is None or found.shape != tensor.shape:
            raise IntegrityError(
                f"the released model does not fit this base: {tensor.name[:200]!r} is missing or of another "
                "shape",
                fix="Give the base that the study was run with",
            )
        vector[start : start + tensor.size] = found.reshape(-1)
        start += tensor.size
    return vector


def _refuse(what: str) -> IntegrityError:
    return IntegrityError(f"not a released language model: {what}", fix=_REPLACED)
