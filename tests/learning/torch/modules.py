"""Modules of every kind that book-keeping knows, and mixtures of them, small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Case:
    """A module, the shape of its rows, the classes of its label, and the range of its numbers if whole."""

    factory: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    vocabulary: int = 0


class Tokens(nn.Module):
    """Embedding, attention written out of Linear layers, LayerNorm, mean over time."""

    def __init__(self, vocabulary: int = 11, width: int = 8, heads: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.out = nn.Linear(width, classes)
        self.heads = heads

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embed(rows.long())
        b, t, f = x.shape
        normal = self.first(x)
        q, k, v = (
            layer(normal).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)
        seen = (weights @ v).transpose(1, 2).reshape(b, t, f)
        x = x + self.o(seen)
        x = x + self.down(functional.gelu(self.up(self.second(x))))
        return self.out(x.mean(1))


class LowRank(nn.Module):
    """A frozen linear layer with a trained detour of low rank."""

    def __init__(self, inner: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.a = nn.Linear(inner.in_features, rank, bias=False)
        self.b = nn.Linear(rank, inner.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.b(self.a(x))


def adapted() -> nn.Module:
    module = Tokens().requires_grad_(False)
    module.q, module.v = LowRank(module.q), LowRank(module.v)
    module.out.requires_grad_(True)
    return module


class TimeFirst(nn.Module):
    """A layer that sees (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(rows.transpose(0, 1))).mean(0))


class Folded(nn.Module):
    """Positions folded into the batch, for a Linear and for a convolution with GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.inner, self.out = nn.Linear(24, 5), nn.Linear(5, 2)

    def forward(self, rows: Tensor) -> Tensor:
        b, t = rows.shape[:2]
        pieces = self.norm(self.conv(rows.reshape(b * t, 2, 6))).flatten(1)
        return self.out(torch.tanh(self.inner(pieces)).view(b, t, 5).mean(1))


class Twice(nn.Module):
    """One layer used twice, and an embedding that is also the last layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(5, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embed(rows.long())
        x = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.out(x.mean(1))


class Overwriting(nn.Sequential):
    """Activations written into the layer's own output."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows)[:, 0]


def image(*layers: nn.Module, features: int, classes: int = 3) -> Callable[[], nn.Module]:
    """Return a factory for convolutions over (2, 9, 8) with one linear layer behind them."""
    return lambda: nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(features, classes))


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(6, 1), (6,), 0),
    "linear, two scores": Case(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)), (6,), 2),
    "in place, one score": Case(Overwriting, (6,), 2),
    "no bias": Case(lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)), (6,), 3),
    "sequence, gradients formed": Case(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)), (9, 4), 3
    ),
    "sequence, Gram": Case(
        lambda: nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Flatten(), nn.Linear(90, 3)), (3, 40), 3
    ),
    "conv2d": Case(image(nn.Conv2d(2, 4, 3), features=168), (2, 9, 8), 3),
    "conv2d, stride, padding, dilation": Case(
        image(nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), (2, 1)), features=4 * 4 * 11), (2, 9, 8), 3
    ),
    "conv2d, groups": Case(image(nn.Conv2d(2, 6, 3, groups=2), features=252), (2, 9, 8), 3),
    "conv2d, depthwise, same, circular": Case(
        image(nn.Conv2d(2, 2, 3, groups=2, padding="same", padding_mode="circular"), features=144),
        (2, 9, 8),
        3,
    ),
    "conv2d, even kernel, same": Case(image(nn.Conv2d(2, 3, 4, padding="same"), features=216), (2, 9, 8), 3),
    "conv2d, one position": Case(image(nn.Conv2d(2, 3, (9, 8)), features=3), (2, 9, 8), 3),
    "conv2d, Gram": Case(
        lambda: nn.Sequential(nn.Conv2d(30, 40, 3), nn.Tanh(), nn.Flatten(), nn.Linear(160, 3)), (30, 4, 4), 3
    ),
    "conv1d": Case(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)
        ),
        (2, 12),
        2,
    ),
    "conv3d": Case(
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 2)), (1, 4, 4, 4), 2
    ),
    "group norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        ),
        (1, 6, 6),
        3,
    ),
    "group norm of vectors": Case(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1)), (5,), 0
    ),
    "layer norm over two axes": Case(
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 1)), (5, 3, 4)[1:], 0
    ),
    "embedding with padding": Case(
        lambda: nn.Sequential(Index(), nn.Embedding(6, 4, padding_idx=1), nn.Flatten(), nn.Linear(16, 3)),
        (4,),
        3,
        6,
    ),
    "transformer": Case(Tokens, (6,), 3, 11),
    "low rank": Case(adapted, (6,), 3, 11),
    "time first": Case(TimeFirst, (3, 4), 2),
    "folded": Case(Folded, (3, 12), 2),
    "shared": Case(Twice, (4,), 5, 5),
}


class Index(nn.Module):
    """Whole numbers from floats."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.long()
