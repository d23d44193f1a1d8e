"""What a study trains, whatever it is made of: one of the built-in models, or a module of the user's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.learning.heads import Array, Head
from cloister.learning.language.layout import Tensor, Window

__all__ = ["Learner", "Shape", "Vector", "WholeVector"]

Vector: TypeAlias = NDArray[Any]
"""A model's parameters: float64[d], or float32[d] where its `Shape` is single."""


class Shape(Protocol):
    """What is known of a model without having it: enough to hold parameters and to read its metrics."""

    @property
    def size(self) -> int:
        """Number of parameters, d."""

    @property
    def inputs(self) -> int:
        """Features it takes, f."""

    @property
    def head(self) -> Head:
        """Loss and prediction."""

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches; bool[d]."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The vector's named tensors, in its order; () for a model that names none."""

    @property
    def windows(self) -> tuple[Window, ...]:
        """What rounds move, in turn: elements [start, stop) of the vector."""

    @property
    def single(self) -> bool:
        """Whether the vector is float32; float64 otherwise."""


class WholeVector(ABC):
    """Layout of a model whose rounds move one unnamed float64 vector as a whole."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters, d."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """None are named."""
        return ()

    @property
    def windows(self) -> tuple[Window, ...]:
        """All of it, in every round."""
        return ((0, self.size),)

    @property
    def single(self) -> bool:
        """False: float64."""
        return False


class Learner(Shape, Protocol):
    """A model whose parameters are one flat float64 vector; `Model` and `TorchPrivate` are."""

    def initial(self, seed: int) -> Array:
        """Return the start that `seed` determines, float64[d]."""

    def predict(self, params: Array, X: NDArray[Any]) -> Array:
        """Return float64[n] values or probabilities of class 1; float64[n, classes] for more classes."""

    def losses(self, params: Array, X: NDArray[Any], y: Array) -> Array:
        """Return each row's loss, float64[n]."""
