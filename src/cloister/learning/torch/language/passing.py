"""Rows of `Examples` through the module: padded, on its device, in its precision.

Rows of like lengths go together where there are several passes, so that little is padding: the order within
a step, or an evaluation, tells nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.module import LanguageModule
from cloister.learning.torch.language.team import ALONE, Team

__all__ = ["Passes"]

Rows = NDArray[np.int64]

_TOKENS: Final = 1 << 13
"""Tokens of a pass in evaluation, padding counted, where the plan says nothing of rows."""


class Passes:
    """What computes losses and scores of rows.

    Args:
        module: base and head.
        device: where it lies.
        bfloat16: whether it computes in bfloat16; scores, losses and gradients are float32.
        most: rows that go through it at once in evaluation; 0 for as many as fit a few thousand tokens.
        team: the processes that share rows; each of them must call the same.
    """

    def __init__(
        self,
        module: LanguageModule,
        device: torch.device,
        *,
        bfloat16: bool,
        most: int,
        team: Team = ALONE,
    ) -> None:
        self._module, self._device, self._bfloat16, self._most = module, device, bfloat16, most
        self.team = team

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Compute in the plan's precision for the length of a `with`."""
        if not self._bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def scores(self, examples: Examples, rows: Rows) -> Tensor:
        """Return a classifier's scores, float32[b, classes]."""
        ids, mask = examples.padded(rows)[0], examples.mask(rows)
        with self.autocast():
            return self._module.scores(self._moved(ids), self._moved(mask), self._places(examples, rows))

    def losses(self, examples: Examples, rows: Rows) -> Tensor:
        """Return each row's loss, float32[b]: cross-entropy, or the sum over its counted tokens, in nats."""
        if self._module.classes:
            labels = self._moved(self.labels(examples, rows))
            return F.cross_entropy(self.scores(examples, rows), labels, reduction="none")
        ids, counted = examples.padded(rows)
        keep = np.flatnonzero(counted[:, 1:].any(0))
        with self.autocast():
            return self._module.token_losses(
                self._moved(ids),
                self._moved(counted),
                keep=self._moved(keep),
                places=self._places(examples, rows),
            )

    def shares(self, examples: Examples) -> Rows:
        """Return how often each row counts in a step's mean, int64[n]: once, or for each counted token."""
        return np.ones(len(examples), np.int64) if self._module.classes else examples.counts

    def labels(self, examples: Examples, rows: Rows) -> Rows:
        """Return the classes' numbers of some rows, int64[b].

        Raises:
            InputError: one of them is no class.
        """
        found = examples.labels[rows].astype(np.int64)
        if len(found) and not (found.min() >= 0 and found.max() < self._module.classes):
            raise InputError(
                f"a label is not one of the classes 0 to {self._module.classes - 1}",
                fix="Check the plan's classes",
            )
        return found

    def all_scores(self, examples: Examples) -> Array:
        """Return float64[n, classes], no gradients."""
        return self._gathered(examples, self.scores, (self._module.classes,))

    def all_losses(self, examples: Examples) -> Array:
        """Return float64[n], no gradients."""
        return self._gathered(examples, self.losses, ())

    def _gathered(
        self, examples: Examples, compute: Callable[[Examples, Rows], Tensor], shape: tuple[int, ...]
    ) -> Array:
        """Return float64[n, *shape] of all rows, whoever computed them."""
        found = torch.zeros((len(examples), *shape), dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for rows in self._alike(examples):
                mine = self.team.part(rows)
                some = compute(examples, mine if len(mine) else rows[:1])
                found[self._moved(mine)] = some[: len(mine)].double()
        self.team.sum(found)
        every: Array = found.cpu().numpy()
        return every

    def _alike(self, examples: Examples) -> Iterator[Rows]:
        """Yield all rows, those of like lengths together."""
        lengths = examples.lengths
        order = np.argsort(lengths, kind="stable")
        at = 0
        while at < len(order):
            step = self._most or max(1, _TOKENS // max(1, int(lengths[order[at]])))
            some = order[at : at + step]
            if not self._most:
                longest = np.maximum.accumulate(lengths[some]) * np.arange(1, len(some) + 1)
                some = some[: max(1, int(np.count_nonzero(longest <= _TOKENS)))]
            yield some
            at += len(some)

    def _places(self, examples: Examples, rows: Rows) -> Tensor | None:
        return None if examples.places is None else self._moved(examples.padded_places(rows))

    def _moved(self, array: NDArray[Any]) -> Tensor:
        tensor: Tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)
