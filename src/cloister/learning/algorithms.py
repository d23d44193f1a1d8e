"""What becomes of the updates: how a site weighs its own, and how the sum moves the global model.

A site sends w (local - global), w = rows / largest rows of the roster, or 1; so no weight exceeds 1 and the
secure sum's `value_range` bounds a coordinate whatever the sizes. The mean is the sum divided by the
survivors' summed weights. Row counts are public within a study: every site's signed manifest states them.

    FedAvg   x += rate * mean                                         (McMahan et al. 2017)
    FedAdam  m = b1 m + (1 - b1) mean;  v = b2 v + (1 - b2) mean^2    (Reddi et al. 2021, algorithm 2)
             x += rate * m / (sqrt(v) + tau)
             b1 0.9, b2 0.99, tau 1e-3; v starts at tau^2

Server steps are elementwise + - * / and sqrt in float64, each of which IEEE 754 rounds in one way only, so
every party that computes one gets the same bits, however it cuts the vector (`advance` takes a piece of it).
Sums of weights are exactly rounded (fsum).

With `average_last = k` the released model is the mean of the global models after the last k rounds; it costs
one vector of state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from cloister.errors import InputError
from cloister.learning.heads import Array
from cloister.learning.sections import TrainingSection

__all__ = [
    "Algorithm",
    "FedAdam",
    "FedAvg",
    "ServerState",
    "build_algorithm",
    "client_update",
    "mean_update",
    "site_weights",
]


@dataclass(frozen=True, eq=False)
class ServerState:
    """The global model and all that the next step needs. Its arrays are read-only and share one shape.

    Args:
        params: the global model.
        tail: sum of the last models so far, where the plan averages them.
        first: FedAdam's first moment; zeros otherwise.
        second: FedAdam's second moment; zeros otherwise.
        rounds: steps taken.
    """

    params: Array
    tail: Array
    first: Array
    second: Array
    rounds: int = 0

    def __post_init__(self) -> None:
        for array in (self.params, self.tail, self.first, self.second):
            if array.shape != self.params.shape or array.dtype != np.float64:
                raise InputError("the server state's arrays differ in shape or are not float64")
            array.flags.writeable = False


class Algorithm(Protocol):
    """How the hub, or every site where the hub may not see the model, moves the global model.

    Attributes:
        rounds: steps in all.
        average_last: how many of the last global models are averaged at the end.
        second_start: what the second moment starts at; None for an algorithm without moments.
    """

    @property
    def rounds(self) -> int: ...  # noqa: D102  # as above

    @property
    def average_last(self) -> int: ...  # noqa: D102

    @property
    def second_start(self) -> float | None: ...  # noqa: D102

    def advance(self, params: Array, first: Array, second: Array, mean: Array) -> None:
        """Move a piece of the model and of its moments by that piece of the mean update, all float64, in
        place; `mean` is used as memory. Moments are not looked at by an algorithm without any."""

    def start(self, params: Array) -> ServerState:
        """Return the state before the first round. `params` is copied."""

    def step(self, state: ServerState, mean: Array, *, spend: bool = False) -> ServerState:
        """Return the state after one round whose mean update is `mean`, of the model's shape.

        With `spend` the array `mean` may become part of the new state: models are large.
        """

    def final(self, state: ServerState) -> Array:
        """Return the model to release after the last round."""


@dataclass(frozen=True)
class FedAvg:
    """Federated averaging; see the module's docstring.

    Args:
        rounds: steps in all.
        rate: the server's learning rate; 1 replaces the model by the mean of the sites'.
        average_last: how many of the last global models are averaged at the end; 0 and 1 mean the last one.
    """

    rounds: int
    rate: float = 1.0
    average_last: int = 0

    @property
    def second_start(self) -> float | None:
        """None: there are no moments."""
        return None

    def advance(self, params: Array, first: Array, second: Array, mean: Array) -> None:
        """Add the scaled mean to `params`, in place."""
        mean *= self.rate
        params += mean

    def start(self, params: Array) -> ServerState:
        """Return the state before the first round. `params` is copied."""
        none = np.zeros(params.shape)
        return ServerState(np.array(params, dtype=np.float64, order="C"), none, none, none)

    def step(self, state: ServerState, mean: Array, *, spend: bool = False) -> ServerState:
        """Return the state after one round.

        Raises:
            InputError: all rounds are done, or `mean` has another shape or is not finite.
        """
        _check_step(self, state, mean)
        params = np.multiply(mean, self.rate, out=mean if spend else None)
        params += state.params  # in place: one vector less, and the bits of `advance`
        return _moved(self, state, params)

    def final(self, state: ServerState) -> Array:
        """Return the model to release after the last round. Raises InputError before it."""
        return _final(self, state)


@dataclass(frozen=True)
class FedAdam:
    """FedAvg with Adam at the server; see the module's docstring."""

    rounds: int
    rate: float = 0.01
    average_last: int = 0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def second_start(self) -> float | None:
        """tau^2."""
        return self.tau * self.tau

    def advance(self, params: Array, first: Array, second: Array, mean: Array) -> None:
        """Move the moments, then `params`, in place."""
        first[...] = self.beta1 * first + (1.0 - self.beta1) * mean
        second[...] = self.beta2 * second + (1.0 - self.beta2) * (mean * mean)
        params[...] = params + self.rate * (first / (np.sqrt(second) + self.tau))

    def start(self, params: Array) -> ServerState:
        """Return the state before the first round. `params` is copied."""
        state = FedAvg(self.rounds).start(params)
        return replace(state, second=np.full(params.shape, self.tau * self.tau))

    def step(self, state: ServerState, mean: Array, *, spend: bool = False) -> ServerState:
        """Return the state after one round. Raises as `FedAvg.step`."""
        _check_step(self, state, mean)
        params, first, second = state.params.copy(), state.first.copy(), state.second.copy()
        self.advance(params, first, second, mean)
        return _moved(self, replace(state, first=first, second=second), params)

    def final(self, state: ServerState) -> Array:
        """Return the model to release after the last round. Raises InputError before it."""
        return _final(self, state)


def build_algorithm(training: TrainingSection) -> Algorithm:
    """Return the algorithm that `[training]` names."""
    kind = FedAvg if training.algorithm == "fedavg" else FedAdam
    return kind(training.rounds, rate=training.server_rate, average_last=training.average_last)


def site_weights(rows: Sequence[int], weights: Literal["rows", "equal"]) -> list[float]:
    """Return each roster member's weight, at most 1, in roster order.

    Args:
        rows: every member's row count, from its signed manifest.
        weights: `[training] weights`.

    Raises:
        InputError: a count is below 1.
    """
    if not rows or min(rows) < 1:
        raise InputError(
            "a site states fewer than one row", fix="Leave the site out of the plan, or give it rows"
        )
    if weights == "equal":
        return [1.0] * len(rows)
    largest = max(rows)
    return [count / largest for count in rows]


def client_update(local: Array, global_: Array, weight: float) -> Array:
    """Return what a site adds to the sum: weight * (local - global)."""
    return weight * (local - global_)


def mean_update(total: Array, weights: Iterable[float], *, spend: bool = False) -> Array:
    """Return the sum of updates divided by the survivors' summed weights; with `spend`, in the place of
    `total`."""
    return np.divide(total, math.fsum(weights), out=total if spend else None)


def _check_step(algorithm: FedAvg | FedAdam, state: ServerState, mean: Array) -> None:
    if state.rounds >= algorithm.rounds:
        raise InputError("all rounds of the plan are done", fix="Take the final model")
    if mean.shape != state.params.shape or not np.isfinite(mean).all():
        raise InputError(
            "the mean update does not fit the model, or is not finite", fix="Leave the round out"
        )


def _moved(algorithm: FedAvg | FedAdam, state: ServerState, params: Array) -> ServerState:
    done = state.rounds + 1
    tail = state.tail + params if done > algorithm.rounds - algorithm.average_last else state.tail
    return replace(state, params=params, tail=tail, rounds=done)


def _final(algorithm: FedAvg | FedAdam, state: ServerState) -> Array:
    if state.rounds != algorithm.rounds:
        raise InputError(
            f"{state.rounds} of {algorithm.rounds} rounds are done",
            fix="Finish the study before releasing its model",
        )
    return state.tail / algorithm.average_last if algorithm.average_last else state.params
