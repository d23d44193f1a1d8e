"""Training of a module without privacy, on rows that are all in one place: what baselines are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning.heads import Array
from cloister.learning.sampling import Batches
from cloister.learning.sections import TrainingSection
from cloister.learning.torch.private import TorchPrivate

__all__ = ["plain_sgd"]


def plain_sgd(
    model: TorchPrivate,
    params: Array,
    X: NDArray[Any],
    y: Array,
    training: TrainingSection,
    *,
    insecure_test_random: StreamRandom | None = None,
) -> Array:
    """Return the parameters after `rounds` times `local_steps` steps of SGD, float64[d]. Nothing is clipped.

    Args:
        model: the module.
        params: float64[d], the start.
        X: [n, *shape].
        y: float64[n].
        training: batch, steps, learning rate, l2 and `average_last` (rounds whose mean is returned).
        insecure_test_random: the order of rows in tests and benchmarks; otherwise from the operating system.

    Raises:
        PlanError: another optimiser is asked for, or training diverged.
        InputError: there are no rows, or shapes do not fit.
    """
    if training.optimiser != "sgd":
        raise PlanError("modules train by SGD alone", where="[training] optimiser", fix="Write 'sgd'")
    if len(X) == 0:
        raise InputError("there are no rows to train on", fix="Give at least one")
    random = insecure_test_random or StreamRandom.system()
    batches = Batches(
        np.zeros(1, np.int64),
        np.array([len(X)]),
        batch=training.batch,
        steps=training.rounds * training.local_steps,
        random=random,
    )
    current, decay = params.copy(), training.l2 * model.penalised
    mean, averaged = np.zeros_like(current), training.average_last or 1
    first = (training.rounds - averaged + 1) * training.local_steps
    for step, index in enumerate(batches, start=1):
        some = index[0]
        with np.errstate(over="ignore", invalid="ignore"):
            current -= training.learning_rate * (model.gradient(current, X[some], y[some]) + decay * current)
        if step >= first and step % training.local_steps == 0:
            mean += current / averaged
    if not np.isfinite(mean).all():
        raise PlanError(
            "training diverged: the parameters are not finite",
            where="[training] learning_rate",
            fix="Choose a smaller learning rate",
        )
    return mean
