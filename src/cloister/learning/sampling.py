"""Which rows go into which local step: sampling without replacement within an epoch, batched over clients.

Each client walks through a fresh random permutation of its rows, batch after batch; where it ends inside a
batch, the next permutation goes on. A client with fewer rows than the batch uses all of them in every step.
Clients are independent of each other.

A permutation is the order of uniform keys. Where so few steps follow that most of it would never be used, its
beginning alone is drawn: uniform draws, repeats drawn again until none is left. The rule treats all rows
alike, so all ordered choices of distinct rows are equally likely, which is what the beginning of a
permutation is.

It claims no privacy amplification: that needs Poisson sampling and its own account.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom

__all__ = ["Batches", "distinct"]

Indices = NDArray[np.int64]

_SPARSE = 4  # draw the beginning alone where it is at most 1 / _SPARSE of the rows


class Batches:
    """Row numbers of `steps` batches for C clients; iterate once.

    Args:
        starts: int64[C], each client's first row in the stacked table.
        counts: int64[C], each client's rows, at least 1.
        batch: rows of a step.
        steps: steps of a client.
        random: the source of the order.

    Attributes:
        width: rows of a step as stored, w = min(batch, largest count).
        weights: float64[C, w], each stored row's share of its step, or None where all are 1 / w.
    """

    def __init__(
        self, starts: Indices, counts: Indices, *, batch: int, steps: int, random: StreamRandom
    ) -> None:
        self._starts, self._counts, self._steps, self._random = starts, counts, steps, random
        sizes = np.minimum(counts, batch)
        self.width = int(sizes.max())
        self.weights: NDArray[np.float64] | None = None
        if sizes.min() < self.width:
            inside = np.arange(self.width) < sizes[:, None]
            self.weights = inside / sizes[:, None]
        self._sizes = sizes
        needed = steps * batch
        self._sparse = np.flatnonzero(needed * _SPARSE <= counts)
        self._dense = np.flatnonzero(needed * _SPARSE > counts)

    def __iter__(self) -> Iterator[Indices]:
        """Yield int64[C, w] row numbers; the last one's memory may be used again for the next."""
        sparse = self._sparse
        length = self._steps * self.width
        beginnings = distinct(self._counts[sparse], length, self._random) if len(sparse) else None
        dense = self._dense
        lanes = np.minimum(np.arange(self.width), self._sizes[dense, None] - 1)
        walk = _Walk(self._starts[dense], self._counts[dense], self._sizes[dense], lanes, self._random)
        index = np.empty((len(self._counts), self.width), dtype=np.int64)
        for step in range(self._steps):
            if beginnings is None:
                yield walk.next()
                continue
            index[sparse] = beginnings[:, step * self.width : (step + 1) * self.width]
            index[sparse] += self._starts[sparse, None]
            if len(dense):
                index[dense] = walk.next()
            yield index


def distinct(highs: Indices, length: int, random: StreamRandom) -> Indices:
    """Return ordered choices without repeats: int64[C, length], row i of [0, highs[i]), all equally likely.

    Args:
        highs: int64[C], each at least `length`; fast where it is several times larger.
        length: how many to choose.
        random: the source.
    """
    drawn = random.integers(highs[:, None], (len(highs), length))
    while True:
        order = np.argsort(drawn, axis=1, kind="stable")
        ranked = np.take_along_axis(drawn, order, axis=1)
        client, rank = np.nonzero(ranked[:, 1:] == ranked[:, :-1])
        if not len(client):
            return drawn
        drawn[client, order[client, rank + 1]] = random.integers(highs[client], len(client))


class _Walk:
    """Whole permutations, one for each client, renewed as each comes to its end.

    `lanes` int64[C, w] are a batch's places within its client's walk; those beyond a client's own size repeat
    its last.
    """

    def __init__(
        self, starts: Indices, counts: Indices, sizes: Indices, lanes: Indices, random: StreamRandom
    ) -> None:
        self._starts, self._counts, self._sizes, self._lanes = starts, counts, sizes, lanes
        self._random = random
        self._offsets = np.cumsum(counts) - counts
        self._order = np.empty(int(counts.sum()), dtype=np.int64)
        self._at = counts.copy()  # at the end: the first batch begins a permutation

    def next(self) -> Indices:
        """Return the next batch's row numbers, int64[C, w]."""
        begins, self._at = self._at, self._at + self._sizes
        ended = self._at > self._counts
        places = (self._offsets + begins)[:, None] + self._lanes
        if not ended.any():
            inside: Indices = self._order[places]
            return inside
        beyond = begins[:, None] + self._lanes - self._counts[:, None]
        rows = self._order[np.where(beyond >= 0, 0, places)]
        self._shuffle(np.flatnonzero(ended))
        self._at -= np.where(ended, self._counts, 0)
        fresh = self._order[self._offsets[:, None] + np.maximum(beyond, 0)]
        rows[beyond >= 0] = fresh[beyond >= 0]
        return rows

    def _shuffle(self, clients: Indices) -> None:
        """Put fresh permutations of the given clients' rows into the order."""
        counts = self._counts[clients]
        if (counts == counts[0]).all():
            ranks = np.argsort(self._random.uniform((len(clients), int(counts[0]))), axis=1)
            rows = ranks + self._starts[clients, None]
            self._order[self._offsets[clients, None] + np.arange(counts[0])] = rows
            return
        groups = np.repeat(np.arange(len(clients)), counts)
        begins = np.cumsum(counts) - counts
        ranks = np.argsort(groups + self._random.uniform((int(counts.sum()),)))
        within = np.arange(len(groups)) - begins[groups]
        local = ranks - begins[groups]
        self._order[self._offsets[clients][groups] + within] = self._starts[clients][groups] + local
