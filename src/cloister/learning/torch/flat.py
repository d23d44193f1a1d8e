"""A module's trainable parameters as one flat vector, in the order of `named_parameters` or in one's own.

Frozen parameters (`requires_grad` False) and buffers are no part of the vector: they stand still, and all
parties must have the same. `fixed_digest` names them, so that a plan or a certificate can.

All parameters lie on one device; vectors that come in or go out are numpy's.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array

__all__ = ["MOST_PARAMETERS", "Flat"]

MOST_PARAMETERS: Final = 1 << 28
"""Trainable parameters of a module at most; their float64 vector takes 2 GiB."""

_HASHED: Final = 1 << 24


class Flat:
    """The flat view of a module.

    Args:
        module: its trainable parameters must be all float32, or all float64.
        parameters: those that make up the vector, in its order; None for all that are trainable.

    Raises:
        InputError: there are none, too many, or of another type; or they lie on several devices.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter] | None = None) -> None:
        self._module, self._sign = module, object()
        if parameters is None:
            parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self.parameters = dict(parameters)
        kinds = {each.dtype for each in self.parameters.values()}
        if len(kinds) != 1 or not kinds <= {torch.float32, torch.float64}:
            raise InputError(
                "a module's trainable parameters must be there, and all be float32 or all float64",
                fix="Freeze the others, or convert them",
            )
        devices = {each.device for each in module.parameters()}
        if len(devices) != 1 or next(iter(devices)).type == "meta":
            raise InputError("a module's parameters must be on one device", fix="Build it on the CPU")
        self.dtype: torch.dtype = kinds.pop()
        self.device: torch.device = devices.pop()
        self.slices: dict[str, slice] = {}
        start = 0
        for name, each in self.parameters.items():
            self.slices[name] = slice(start, start + each.numel())
            start += each.numel()
        self.size = start
        if not 0 < self.size <= MOST_PARAMETERS:
            raise InputError(
                f"the module has {self.size} trainable parameters; 1 to {MOST_PARAMETERS} are possible",
                fix="Freeze some, or train adapters",
            )

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches: those with two axes or more; bool[d]."""
        mask = np.zeros(self.size, dtype=np.bool_)
        for name, each in self.parameters.items():
            mask[self.slices[name]] = each.dim() >= 2
        return mask

    def read(self) -> Array:
        """Return the parameters' values, float64[d]."""
        parts = [each.detach().reshape(-1).double() for each in self.parameters.values()]
        vector: Array = torch.cat(parts).cpu().numpy()
        return vector

    def write(self, params: Array) -> object:
        """Set the parameters, rounded to the module's type; return a sign that `holds` until the next write.

        Raises:
            InputError: the vector has another length.
        """
        if params.shape != (self.size,):
            raise InputError(
                f"the model has {self.size} parameters and {params.size} were given",
                fix="Use the start of this plan",
            )
        whole = torch.from_numpy(np.array(params, dtype=np.float64))
        with torch.no_grad():
            for name, each in self.parameters.items():
                each.copy_(whole[self.slices[name]].view(each.shape))
        self._sign = object()
        return self._sign

    @contextlib.contextmanager
    def moved(self, random: StreamRandom) -> Iterator[None]:
        """Move all parameters by up to 0.1 for the length of a `with`: zeros at the start would hide much."""
        before, sign = self.read(), self._sign
        self.write(before + 0.2 * (random.uniform(before.shape) - 0.5))
        try:
            yield
        finally:
            self.write(before)
            self._sign = sign

    def holds(self, sign: object) -> bool:
        """Whether the parameters are those whose writing returned this sign."""
        return sign is self._sign

    def fixed_state(self) -> object:
        """Return something that changes when what is frozen does: its digest, or how often it was written to
        where there is too much of it to be read for every test."""
        fixed = self._fixed()
        if sum(each.numel() for each in fixed.values()) <= _HASHED:
            return self.fixed_digest()
        return [(name, id(each), each._version) for name, each in sorted(fixed.items())]

    def fixed_digest(self) -> str:
        """Return SHA-256, in hex, over names, shapes and values of frozen parameters and buffers."""
        state = hashlib.sha256()
        for name, each in sorted(self._fixed().items()):
            state.update(f"{name}|{each.dtype}|{tuple(each.shape)}|".encode())
            state.update(each.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        return state.hexdigest()

    def _fixed(self) -> dict[str, Tensor]:
        own = set(self.parameters.values())
        frozen = {name: each for name, each in self._module.named_parameters() if each not in own}
        return {**frozen, **dict(self._module.named_buffers())}
