"""Local training: many clients' steps of SGD or Adam at once, in numpy.

One call is one round at the sites: every client starts from the parameters given, takes `local_steps` steps
on batches of its own rows, and ends with its own parameters. A real site is one client. Adam's moments start
at zero in each round, so nothing of a client outlives the call. Randomness decides the order of rows alone
and comes from the operating system, unless a test injects a stream.

What trains without limit is refused: parameters that are no longer finite are an error, never an update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.sampling import Batches
from cloister.learning.sections import TrainingSection

__all__ = ["ClientRows", "train", "train_together"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_CACHE_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class ClientRows:
    """The rows of C clients in one stacked table.

    Args:
        X: float64[N, f], features after scaling.
        y: float64[N], labels.
        starts: int64[C], each client's first row.
        counts: int64[C], each client's rows, at least 1.
    """

    X: Array
    y: Array
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def stack(cls, parts: Sequence[tuple[Array, Array]]) -> ClientRows:
        """Return the clients' (X, y) as one.

        Raises:
            InputError: there is no client, one has no rows, or shapes differ.
        """
        if not parts or any(len(X) == 0 for X, _ in parts):
            raise InputError("a client has no rows to train on", fix="Leave it out, or give it rows")
        width = parts[0][0].shape[1]
        if any(X.ndim != 2 or X.shape[1] != width or y.shape != (len(X),) for X, y in parts):
            raise InputError("clients' features or labels differ in shape", fix="Use one feature map for all")
        counts = np.array([len(X) for X, _ in parts], dtype=np.int64)
        X = np.ascontiguousarray(np.concatenate([X for X, _ in parts]), dtype=np.float64)
        y = np.concatenate([y for _, y in parts]).astype(np.float64, copy=False)
        return cls(X, y, np.cumsum(counts) - counts, counts)

    @property
    def clients(self) -> int:
        """How many clients, C."""
        return len(self.counts)

    def select(self, clients: Sequence[int] | NDArray[np.int64]) -> ClientRows:
        """Return some of the clients, by number; the table is shared, not copied."""
        chosen = np.asarray(clients, dtype=np.int64)
        return ClientRows(self.X, self.y, self.starts[chosen], self.counts[chosen])

    def pooled(self) -> ClientRows:
        """Return all rows as those of one client."""
        return ClientRows(self.X, self.y, np.zeros(1, np.int64), np.array([len(self.X)], dtype=np.int64))


def train(
    model: Model,
    params: Array,
    rows: ClientRows,
    config: TrainingSection,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return each client's parameters after `config.local_steps` steps.

    Args:
        model: what is trained.
        params: float64[d], one start for all, or float64[C, d].
        rows: the clients' data.
        config: `[training]` of the plan.
        insecure_test_random: the order of rows in tests and benchmarks; otherwise from the operating system.

    Returns:
        float64[C, d], new memory.

    Raises:
        PlanError: training diverged.
        InputError: a shape does not fit the model.
    """
    if rows.X.shape[1] != model.inputs or params.shape[-1] != model.size:
        raise InputError(
            f"the model takes {model.inputs} features and {model.size} parameters",
            fix="Use the feature map and the start of this plan",
        )
    random = insecure_test_random or StreamRandom.system()
    current = np.array(np.broadcast_to(params, (rows.clients, model.size)), order="C")
    together = max(1, _CACHE_BYTES // _bytes_of_client(model, min(config.batch, int(rows.counts.max()))))
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, rows.clients, together):
            some = slice(at, at + together)
            train_together(model, current[some], rows.select(np.arange(rows.clients)[some]), config, random)
    if not np.isfinite(current).all():
        raise PlanError(
            "training diverged: the update is not finite",
            where="[training] learning_rate",
            fix="Choose a smaller learning rate, or check the features' bounds",
        )
    return current


def _bytes_of_client(model: Model, batch: int) -> int:
    return 8 * (2 * model.size + batch * (model.inputs + 2 * sum(model.widths[1:])))


def train_together(
    model: Model, params: Array, rows: ClientRows, config: TrainingSection, random: StreamRandom
) -> None:
    """Move `params` [C, d] by all local steps of clients few enough to stay in the processor's cache."""
    batches = Batches(rows.starts, rows.counts, batch=config.batch, steps=config.local_steps, random=random)
    adam = _Adam(config.learning_rate, params.shape) if config.optimiser == "adam" else None
    # plain SGD has its rate in each example's share, which saves a pass over all parameters
    rate = config.learning_rate if adam is None else 1.0
    shares = np.full((rows.clients, batches.width), 1.0 / batches.width)
    shares = rate * (shares if batches.weights is None else batches.weights)
    decay = rate * config.l2 * model.penalised if config.l2 else None
    X = np.empty((rows.clients, batches.width, model.inputs))
    y = np.empty((rows.clients, batches.width))
    gradient = np.empty_like(params)
    space = model.workspace(rows.clients, batches.width)
    for index in batches:
        np.take(rows.X, index, axis=0, out=X, mode="clip")
        np.take(rows.y, index, out=y, mode="clip")
        model.gradient(params, X, y, shares, out=gradient, workspace=space)
        if decay is not None:
            gradient += decay * params
        params -= gradient if adam is None else adam.move(gradient)


class _Adam:
    """Kingma and Ba 2015, algorithm 1, elementwise over all clients."""

    def __init__(self, rate: float, shape: tuple[int, ...]) -> None:
        self._rate, self._step = rate, 0
        self._first, self._second = np.zeros(shape), np.zeros(shape)

    def move(self, gradient: Array) -> Array:
        """Return what to subtract from the parameters, in the gradient's memory."""
        self._step += 1
        self._first *= _BETA1
        self._first += (1.0 - _BETA1) * gradient
        gradient *= gradient
        gradient *= 1.0 - _BETA2
        self._second *= _BETA2
        self._second += gradient
        np.divide(self._second, 1.0 - _BETA2**self._step, out=gradient)
        np.sqrt(gradient, out=gradient)
        gradient += _EPSILON
        np.divide(self._first, gradient, out=gradient)
        gradient *= self._rate / (1.0 - _BETA1**self._step)
        return gradient
