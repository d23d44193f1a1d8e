"""Per-example clipping written a second time: gradients by torch.func, one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from cloister.learning.torch import TorchPrivate

Loss = Callable[[Tensor, Tensor], Tensor]


def squared(scores: Tensor, label: Tensor) -> Tensor:
    return 0.5 * (scores.reshape(()) - label) ** 2


def logistic(scores: Tensor, label: Tensor) -> Tensor:
    if scores.numel() == 2:
        return functional.cross_entropy(scores.reshape(1, 2), label.long().reshape(1))
    return functional.binary_cross_entropy_with_logits(scores.reshape(()), label)


def softmax(scores: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy(scores.reshape(1, -1), label.long().reshape(1))


def loss_for(classes: int) -> Loss:
    return {0: squared, 2: logistic}.get(classes, softmax)


def example_gradients(module: nn.Module, X: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return float64[n, d] of the module's trainable parameters, in the order of `named_parameters`."""
    loss = loss_for(classes)
    trained = {name: each.detach() for name, each in module.named_parameters() if each.requires_grad}

    def one(parameters: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return loss(functional_call(module, parameters, (row[None],))[0], label)

    found = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")(trained, X, y)
    return torch.cat([found[name].reshape(len(X), -1).double() for name in trained], 1)


def clipped_sum(gradients: Tensor, clip: float) -> np.ndarray:
    norms = gradients.norm(dim=1, keepdim=True)
    return (gradients * (clip / norms).clamp(max=1.0)).sum(0).numpy()


def rows_for(shape: tuple[int, ...], classes: int, count: int, *, vocabulary: int = 0) -> tuple[Any, Any]:
    """Return made-up rows and labels; whole numbers below `vocabulary` where that is given."""
    rng = np.random.default_rng(7)
    X = rng.integers(vocabulary, size=(count, *shape)) if vocabulary else rng.normal(size=(count, *shape))
    y = rng.integers(classes, size=count) if classes else rng.normal(size=count)
    return X.astype(np.float64), y.astype(np.float64)


def moved(private: TorchPrivate) -> np.ndarray:
    """Return parameters away from the start, so that no layer has gradients of zero."""
    return private.initial(0) + 0.05 * np.random.default_rng(3).normal(size=private.size)
