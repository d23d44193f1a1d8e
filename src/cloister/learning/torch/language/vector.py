"""A module's trainable parameters as one float32 vector, in an order that a plan fixes.

The parameters are views of the vector, and their gradients views of a second one: setting, reading, moving
and adding up are one operation each, and no further copy of an adapter is held. Only parameters of the window
in use have gradients; the others stand still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cloister.errors import InputError
from cloister.learning.language.layout import Tensor, Window

__all__ = ["ParameterVector", "Single"]

Single = NDArray[np.float32]


class ParameterVector:
    """The flat view of some of a module's parameters.

    Args:
        parameters: by public name, in the vector's order; on torch's meta device there are shapes alone.

    Attributes:
        tensors: names and shapes.
        size: numbers in all, d.
        names: public name to the parameter.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = dict(parameters)
        self.tensors = tuple(Tensor(name, tuple(each.shape)) for name, each in self.names.items())
        self.size = sum(tensor.size for tensor in self.tensors)
        self.slices: dict[str, slice] = {}
        start = 0
        for tensor in self.tensors:
            self.slices[tensor.name] = slice(start, start + tensor.size)
            start += tensor.size
        device = next(iter(self.names.values())).device
        self.flat = torch.zeros(self.size, dtype=torch.float32, device=device)
        for name, each in self.names.items():
            if device.type != "meta":
                view = self.flat[self.slices[name]].view(each.shape)
                view.copy_(each.detach())
                each.data = view
            each.requires_grad_(False)

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: those with two axes or more; bool[d]."""
        mask = np.zeros(self.size, dtype=np.bool_)
        for tensor in self.tensors:
            mask[self.slices[tensor.name]] = len(tensor.shape) >= 2
        return mask

    def check(self, params: NDArray[np.floating[Any]]) -> None:
        """Return if these are parameters, float[d].

        Raises:
            InputError: another length, or numbers that are not finite.
        """
        if params.shape != (self.size,):
            raise InputError(
                f"the model has {self.size} parameters and {params.size} were given",
                fix="Use the start of this plan",
            )
        if not np.isfinite(params).all():
            raise InputError(
                "the model's parameters hold numbers that are not finite",
                where=self._broken(params),
                fix="Use a round before the one that made them",
            )

    def load(self, params: NDArray[np.floating[Any]]) -> None:
        """Set the parameters to float[d]. Raises as `check`."""
        self.check(params)
        self.flat.copy_(torch.from_numpy(params if params.flags.writeable else params.copy()))

    def read(self) -> Single:
        """Return the parameters' values, float32[d], in memory of their own."""
        found: Single = self.flat.detach().cpu().numpy()
        return found.copy() if self.flat.device.type == "cpu" else found

    def select(self, window: Window) -> None:
        """Let the parameters within the window be trainable, and no others.

        Raises:
            InputError: the window cuts a tensor.
        """
        for name, where in self.slices.items():
            inside = window[0] <= where.start and where.stop <= window[1]
            if not inside and window[0] < where.stop and where.start < window[1]:
                raise InputError("a window cuts a tensor in two", where=name)
            self.names[name].requires_grad_(inside)
            self.names[name].grad = None

    def gradients(self, window: Window) -> torch.Tensor:
        """Return float32[stop - start] of zeros into which the window's gradients will be added."""
        self.select(window)
        flat = torch.zeros(window[1] - window[0], dtype=torch.float32, device=self.flat.device)
        for name, where in self.slices.items():
            each = self.names[name]
            if each.requires_grad:
                each.grad = flat[where.start - window[0] : where.stop - window[0]].view(each.shape)
        return flat

    def _broken(self, params: NDArray[np.floating[Any]]) -> str:
        first = int(np.argmin(np.isfinite(params)))
        return next(name for name, where in self.slices.items() if where.start <= first < where.stop)
