"""From a noisy sum to a step: at the server in distributed mode, at the site itself in local mode.

The divisor is a constant of the plan. Dividing by the sampled number of rows would publish it and change the
sensitivity. The l2 penalty is added here, on parameters that everybody knows already, so it costs nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning.heads import Array
from cloister.learning.private.ahead import NoiseAhead
from cloister.learning.private.base import PrivateModel
from cloister.learning.private.sums import RowSums
from cloister.learning.sections import TrainingSection
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid
from cloister.types import RandomBytes

__all__ = ["local_steps", "server_mean"]


def server_mean(
    total: Array,
    params: Array,
    *,
    training: TrainingSection,
    divisor: float,
    penalised: NDArray[np.bool_] | None = None,
) -> Array:
    """Return what `Algorithm.step` takes as the mean update: -rate (total / divisor + l2 * params).

    Elementwise + - * / in float64 alone, so every party gets the same bits however it cuts the vectors.

    Args:
        total: float64[d], values of the noisy sum (`IntegerGrid.values`).
        params: float64[d], the global model the sum was made at.
        training: `[training]` of the plan, of which learning_rate and l2 are used.
        divisor: a constant of the plan.
        penalised: bool[d], which parameters l2 touches; None is all.

    Raises:
        InputError: the divisor is not positive, or shapes differ.
    """
    if not divisor > 0.0 or total.shape != params.shape:
        raise InputError(
            "a noisy sum needs a positive divisor and parameters of its shape", fix="Take them from the plan"
        )
    mean = total / divisor
    if training.l2:
        decay = training.l2 * params
        mean += decay if penalised is None else decay * penalised
    mean *= -training.learning_rate
    return mean


def local_steps(
    private: PrivateModel,
    params: Array,
    X: NDArray[Any],
    y: Array,
    *,
    training: TrainingSection,
    clip: float,
    grid: IntegerGrid,
    rate: float,
    microbatch: int,
    noise: DiscreteGaussian,
    divisor: float,
    random: StreamRandom,
    sums: RowSums | None = None,
    insecure_test_random: RandomBytes | None = None,
) -> Array:
    """Return the parameters after `training.local_steps` steps of local DP-SGD, float64[d].

    Every step has a fresh Poisson sample and the full noise, so the parameters after each of them are
    private against everybody by themselves; what is then sent needs no further noise.

    Args:
        private: the model.
        params: float64[d], the global model.
        X: [n, ...], the site's rows.
        y: float64[n], labels.
        training: `[training]` of the plan; its optimiser must be "sgd".
        clip: L2 norm an example's gradient may have.
        grid: the integers on which sums and noise live.
        rate: each row's probability to enter a step.
        microbatch: rows of the dataset, by position, that are summed before rounding.
        noise: the full noise of one step, in units.
        divisor: what each sum is divided by, a constant of the plan.
        random: the source of samples; `StreamRandom.system()` but in tests.
        sums: the same model, rows, rate and microbatch as a `RowSums`, where it is kept between rounds.
        insecure_test_random: noise of a test; otherwise it comes from the operating system.

    Raises:
        PlanError: the optimiser is not "sgd", or training diverged.
        InputError: a shape or a number does not fit.
    """
    if training.optimiser != "sgd":
        raise PlanError(
            "local private steps are plain SGD",
            where="[training] optimiser",
            fix='Write "sgd", or leave it out',
        )
    if sums is None:
        sums = RowSums(private, [(X, y)], rate=rate, microbatch=microbatch)
    current = np.array(params, dtype=np.float64)
    penalised = private.penalised
    ahead = NoiseAhead(
        noise,
        shares=1,
        size=private.size,
        steps=training.local_steps,
        insecure_test_random=insecure_test_random,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(training.local_steps):
            integers = sums.integers(current, clip=clip, grid=grid, random=random)
            ahead.add_into(integers)
            values = grid.values(integers, clip)
            current += server_mean(values, current, training=training, divisor=divisor, penalised=penalised)
    if not np.isfinite(current).all():  # of values that are private already
        raise PlanError(
            "private training diverged: the update is not finite",
            where="[training] learning_rate",
            fix="Choose a smaller learning rate",
        )
    return current
