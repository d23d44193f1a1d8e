"""Private over plain step of torch modules: a small CNN, and LoRA of a small transformer; Opacus beside it.

    python -m benchmarks.dpsgd_torch [--quick]

Every figure is the time of a whole private step over that of a plain one (forward, backward, SGD), on the
same rows, in one thread: medians of repetitions that take turns, in processor time, so that a busy machine
changes little. A private step here is per-example clipping by book-keeping, rounding to the integer grid, one
share of discrete Gaussian noise, and the step. Opacus has its own noise: `opacus_hooks`: `GradSampleModule`,
`opacus_ghost` its fast gradient clipping, with ghost norms where it has them. What is done once for a module
(our tests of it, Opacus's hooks) is not in it.

CNN: that of Opacus's MNIST example (26,010 parameters), batch 256. LoRA: rank 8 on queries and values of a
transformer of 4 blocks, width 256, 64 tokens, batch 32, and its last layer; once with both factors, once with
the first one frozen (FFA-LoRA).
"""

from __future__ import annotations

import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import arguments, emit
from cloister.learning.torch import TorchPrivate, build_module
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

__all__ = ["cnn", "lora"]

_CLIP = 1.0
_RATE = 0.01

Step = Callable[[], object]


def mnist_cnn() -> nn.Module:
    """Return the network of Opacus's MNIST example."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


class LowRank(nn.Module):
    """A frozen linear layer with a trained detour of rank 8 (Hu et al. 2021)."""

    def __init__(self, inner: nn.Linear, *, first_frozen: bool, rank: int = 8) -> None:
        super().__init__()
        self.inner = inner
        self.a = nn.Linear(inner.in_features, rank, bias=False).requires_grad_(not first_frozen)
        self.b = nn.Linear(rank, inner.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.b(self.a(x))


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, f = x.shape
        normal = self.first(x)
        q, k, v = (
            layer(normal).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        seen = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(seen.transpose(1, 2).reshape(b, t, f))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Tokens to one of ten classes."""

    def __init__(self, *, width: int = 256, heads: int = 4, blocks: int = 4, words: int = 1000) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.embed(rows.long()))).mean(1))


def adapted(*, first_frozen: bool) -> nn.Module:
    """Return the transformer, frozen, with low-rank detours and a trained last layer."""
    module = Transformer().requires_grad_(False)
    for block in module.blocks:
        block.q, block.v = (LowRank(layer, first_frozen=first_frozen) for layer in (block.q, block.v))
    module.out.requires_grad_(True)
    return module


def _plain(factory: Callable[[], nn.Module], X: Tensor, y: Tensor) -> Step:
    module = build_module(factory, 0)
    optimiser = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=_RATE)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(module(X), y).backward()
        optimiser.step()

    return step


def _ours(factory: Callable[[], nn.Module], X: Tensor, y: Tensor) -> Step:
    private = TorchPrivate(factory, classes=10, shape=tuple(X.shape[1:]))
    rows, labels, batch = X.numpy(), y.numpy().astype(np.float64), len(X)
    params = private.initial(0)
    grid = IntegerGrid.fit(32, batch=batch, noise=1.0)
    noise = DiscreteGaussian(grid.sensitivity(private.size, private.float_bound(batch)) ** 2)

    def step() -> None:
        nonlocal params
        total = np.zeros(private.size, dtype=np.int64)
        for vector in private.clipped_sums(params, rows, labels, _CLIP, batch):
            total += grid.round(vector, _CLIP)
        noise.add_into(total)
        params = params - _RATE / batch * grid.values(total, _CLIP)

    return step


def _opacus(factory: Callable[[], nn.Module], X: Tensor, y: Tensor, *, ghost: bool) -> Step:
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    module = build_module(factory, 0).train()
    inner = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=_RATE)
    named = {"noise_multiplier": 1.0, "max_grad_norm": _CLIP, "expected_batch_size": len(X)}
    if ghost:
        wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=_CLIP, use_ghost_clipping=True)
        optimiser = DPOptimizerFastGradientClipping(inner, **named)
        loss = DPLossFastGradientClipping(wrapped, optimiser, nn.CrossEntropyLoss())
    else:
        wrapped, loss = GradSampleModule(module), functional.cross_entropy
        optimiser = DPOptimizer(inner, **named)

    def step() -> None:
        optimiser.zero_grad()
        loss(wrapped(X), y).backward()
        optimiser.step()

    return step


def _ratios(factory: Callable[[], nn.Module], X: Tensor, y: Tensor, repeats: int) -> dict[str, Any]:
    """Return the median time of each kind of private step over the plain one's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Opacus: its noise is not from a secure source
            steps = {
                "plain": _plain(factory, X, y),
                "ours": _ours(factory, X, y),
                "opacus_hooks": _opacus(factory, X, y, ghost=False),
                "opacus_ghost": _opacus(factory, X, y, ghost=True),
            }
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for at in range(repeats + 2):
                for name, step in steps.items():
                    begin = time.process_time()
                    step()
                    if at >= 2:  # the first ones find out how much memory they need
                        seconds[name].append(time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = {name: round(each / medians["plain"], 3) for name, each in medians.items() if name != "plain"}
    return {**ratios, "plain_ms": round(medians["plain"] * 1e3, 2), "repetitions": repeats}


def _conditions(batch: int, trained: int) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "opacus")}
    return {
        "batch": batch,
        "trained_parameters": trained,
        "threads": 1,
        "clock": "processor time",
        **versions,
    }


def cnn(quick: bool) -> dict[str, Any]:
    """Return private over plain step of a small CNN: ours, opacus_hooks, opacus_ghost, and conditions."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand((256, 784), generator=generator)
    y = torch.randint(10, (256,), generator=generator)
    trained = sum(each.numel() for each in mnist_cnn().parameters())
    return {**_ratios(mnist_cnn, X, y, 9 if quick else 41), **_conditions(256, trained)}


def lora(quick: bool) -> dict[str, Any]:
    """Return private over plain step of rank-8 LoRA: ours, opacus_hooks, opacus_ghost, and conditions.

    `first_frozen` holds the same figures with the first factor frozen.
    """
    generator = torch.Generator().manual_seed(0)
    X = torch.randint(1000, (32, 64), generator=generator).float()
    y = torch.randint(10, (32,), generator=generator)
    repeats = 5 if quick else 21
    found = [
        _ratios(lambda frozen=frozen: adapted(first_frozen=frozen), X, y, repeats) for frozen in (False, True)
    ]
    trained = sum(each.numel() for each in adapted(first_frozen=False).parameters() if each.requires_grad)
    return {**found[0], "first_frozen": found[1], **_conditions(32, trained)}


def main() -> None:
    parsed = arguments("private over plain step of torch modules").parse_args()
    emit("dpsgd_torch", {"cnn": cnn(parsed.quick), "lora": lora(parsed.quick)})


if __name__ == "__main__":
    main()
