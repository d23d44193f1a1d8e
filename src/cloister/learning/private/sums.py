"""A site's contribution to one step: sampled rows, clipped one by one, as integers.

In this order: each row enters by its own coin (`poisson_rows`); each example's gradient is clipped; those of
one microbatch are summed; that sum is multiplied by K / clip and rounded once; the integers are added. Which
microbatch a row belongs to is its position in the dataset divided by the microbatch's size, so a row changes
one microbatch whatever it holds: the sum's sensitivity is K (1 + float bound) + sqrt(d) units, as
`IntegerGrid.sensitivity` has it.

A sum is never clipped: clipping a sum bounds the site and leaves one row free to be all of it.

The result is not private yet. Noise is added by whoever holds it, before it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.private.base import PrivateModel
from cloister.learning.private.closed_form import NumpyPrivate, PreparedRows
from cloister.learning.private.poisson import poisson_rows
from cloister.privacy.mechanisms import IntegerGrid

__all__ = ["RowSums", "integer_sum"]

_TOGETHER = 1 << 14  # coordinates rounded in one call


class RowSums:
    """The rows of one site, ready for many steps; or of several, as if each had been asked and all added up.

    What depends on the rows alone is computed once. The rows must not change afterwards.

    Args:
        private: the model.
        parts: (X, y) of each site; one for a real site.
        rate: each row's probability to enter a step.
        microbatch: rows of the dataset, by position, that are summed before rounding.

    Raises:
        InputError: rows do not fit the model or each other, or a number is out of range.
    """

    def __init__(
        self,
        private: PrivateModel,
        parts: Sequence[tuple[NDArray[Any], Array]],
        *,
        rate: float,
        microbatch: int,
    ) -> None:
        if not parts or microbatch < 1 or not 0.0 < rate <= 1.0:
            raise InputError(
                "private sums need rows, a microbatch of at least 1 and a rate above 0 and at most 1",
                fix="Take them from the plan",
            )
        if any(len(X) != len(y) for X, y in parts):
            raise InputError("features and labels differ in length", fix="Give one label for each row")
        self._private, self._rate, self._microbatch = private, rate, microbatch
        one = len(parts) == 1
        self._X = parts[0][0] if one else np.concatenate([X for X, _ in parts])
        self._y = parts[0][1] if one else np.concatenate([y for _, y in parts])
        self._X, self._y = self._X.view(), self._y.view()
        self._X.flags.writeable = self._y.flags.writeable = False
        offsets = np.cumsum([0, *(len(y) for _, y in parts)])
        self._bounds = np.concatenate(
            [np.arange(begin, end, microbatch) for begin, end in pairwise(offsets.tolist())] + [offsets[-1:]]
        )
        # the closed form works through all microbatches in one pass; other models get one after another
        self._rows = PreparedRows(private, self._X, self._y) if isinstance(private, NumpyPrivate) else None

    def integers(
        self, params: Array, *, clip: float, grid: IntegerGrid, random: StreamRandom
    ) -> NDArray[np.int64]:
        """Return one step's sum in units of the grid, int64[d], without noise.

        Args:
            params: float64[d], the global model.
            clip: L2 norm an example's gradient may have.
            grid: the integers.
            random: the source of the sample; `StreamRandom.system()` but in tests and simulations.

        Raises:
            InputError: the parameters do not fit the model, or the clip is out of range.
        """
        if min(self._microbatch, len(self._y)) * grid.clip_units >= 1 << 52:
            raise InputError(
                "a microbatch's sum would not fit a float64 in units of the grid",
                fix="Make microbatches smaller",
            )
        index = poisson_rows(len(self._y), self._rate, random)
        starts = index.searchsorted(self._bounds)
        total = np.zeros(self._private.size, dtype=np.int64)
        size = self._private.size
        vectors = self._vectors(params, index, starts, clip)
        # rounding is elementwise: small vectors take the way together
        while some := list(islice(vectors, max(1, _TOGETHER // size))):
            if len(some) == 1:
                total += grid.round(some[0], clip)
            else:
                total += grid.round(np.concatenate(some), clip).reshape(-1, size).sum(axis=0)
        return total

    def _vectors(
        self, params: Array, index: NDArray[np.int64], starts: NDArray[np.int64], clip: float
    ) -> Iterator[Array]:
        """Yield the clipped sum of each microbatch that has a sampled row."""
        if self._rows is not None:
            yield from self._rows.sums(params, index, starts, clip)
            return
        for begin, end in pairwise(starts.tolist()):
            if begin < end:
                some = index[begin:end]
                yield from self._private.clipped_sums(
                    params, self._X[some], self._y[some], clip, self._microbatch
                )


def integer_sum(
    private: PrivateModel,
    params: Array,
    X: NDArray[Any],
    y: Array,
    *,
    clip: float,
    grid: IntegerGrid,
    rate: float,
    microbatch: int,
    random: StreamRandom,
) -> NDArray[np.int64]:
    """Return one step's sum over a site's rows in units of the grid, int64[d], without noise.

    For many steps over the same rows make a `RowSums` once; this makes one for a single step.

    Args:
        private: the model.
        params: float64[d], the global model.
        X: [n, ...], the site's rows.
        y: float64[n], labels.
        clip: L2 norm an example's gradient may have.
        grid: the integers.
        rate: each row's probability to enter the step.
        microbatch: rows of the dataset, by position, that are summed before rounding.
        random: the source of the sample; `StreamRandom.system()` but in tests.

    Raises:
        InputError: a shape or a number does not fit.
    """
    sums = RowSums(private, [(X, y)], rate=rate, microbatch=microbatch)
    return sums.integers(params, clip=clip, grid=grid, random=random)
