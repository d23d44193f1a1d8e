"""Building a module so that a public seed gives the same parameters on every machine.

torch's generators promise the same numbers neither across versions nor across platforms, and a plan pins its
initial model by digest. So a factory runs in a mode in which every random operation of torch is answered from
a `StreamRandom` under the seed: uniform and normal numbers and integers are drawn as float64 by exactly
rounded operations and then stored in the tensor's own type. The factory's own choices stay: Linear's usual
start, a LoRA's zeros, weights it reads from a file. A random operation that has no such answer is refused.

What torch computes from these numbers (an orthogonal matrix, say) is as stable as torch is; the digest tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cloister.crypto import StreamRandom
from cloister.errors import InputError

__all__ = ["build_module"]


def build_module(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return what the factory makes, its random numbers taken from `seed`.

    Args:
        factory: a function without arguments; it is called once.
        seed: 0 to 2**64 - 1, public.

    Raises:
        InputError: it makes something else than a module, or draws in a way that has no stable answer.
    """
    with _Drawn(StreamRandom.from_seed(seed, "initial module")):
        module = factory()
    if not isinstance(module, nn.Module):
        raise InputError("the factory does not return a torch module", fix="Return a torch.nn.Module")
    return module


class _Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers torch's random operations from a stream."""

    def __init__(self, random: StreamRandom) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._random = random

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        draw = getattr(self, f"_{name}", None)
        if draw is None or kwargs.get("generator") is not None:
            raise InputError(
                f"the factory draws by {name}, for which a seed gives no stable numbers",
                fix="Draw by uniform_, normal_, rand, randn or randint without a generator",
            )
        return draw(*args, **kwargs)

    def _uniform(self, shape: Any) -> np.ndarray:
        return self._random.uniform(tuple(shape))

    def _uniform_(self, into: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
        return into.copy_(torch.from_numpy(low + (high - low) * self._uniform(into.shape)))

    def _normal_(self, into: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
        return into.copy_(torch.from_numpy(mean + std * self._random.normal(tuple(into.shape))))

    def _rand(self, size: Any, **options: Any) -> Tensor:
        return self._uniform_(torch.empty(size, **_kept(options)))

    def _randn(self, size: Any, **options: Any) -> Tensor:
        return self._normal_(torch.empty(size, **_kept(options)))

    def _rand_like(self, like: Tensor, **options: Any) -> Tensor:
        return self._uniform_(torch.empty_like(like, **_kept(options)))

    def _randn_like(self, like: Tensor, **options: Any) -> Tensor:
        return self._normal_(torch.empty_like(like, **_kept(options)))

    def _randint(self, *args: Any, **options: Any) -> Tensor:
        low, high, size = args if len(args) == 3 else (0, *args)
        drawn = self._random.integers(high - low, math.prod(size)).reshape(tuple(size)) + low
        return torch.empty(size, **({"dtype": torch.int64} | _kept(options))).copy_(torch.from_numpy(drawn))


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "dtype" and value is not None}
