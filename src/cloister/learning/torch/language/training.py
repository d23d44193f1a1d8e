"""Local steps of a language model, without privacy: SGD or Adam on one flat vector.

A step's batch goes through the model in passes of `rows_per_pass` rows, each padded to its own longest row;
their gradients add up in one vector, which moves the parameters once. Only rounding tells how many passes
there were.

The loss of a step is the mean over its rows for a classifier, and over its counted tokens for next tokens.
Adam is that of `learning.training`, elementwise in float32; its moments start at zero in each round. An l2
penalty adds l2 times the parameter to its gradient, for those with two axes or more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError, StorageError
from cloister.learning.language.layout import Window
from cloister.learning.sampling import Batches
from cloister.learning.sections import TrainingSection
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.passing import Passes
from cloister.learning.torch.language.vector import ParameterVector

__all__ = ["Optimiser", "local_steps", "memory_errors"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Optimiser:
    """Moves a flat vector by its gradient, which it uses up.

    Args:
        training: optimiser, learning rate, l2.
        params: float32[w], changed in place.
        gradient: float32[w].
        penalised: bool[w].
    """

    def __init__(
        self,
        training: TrainingSection,
        params: torch.Tensor,
        gradient: torch.Tensor,
        penalised: NDArray[np.bool_],
    ) -> None:
        self._params, self._gradient = params, gradient
        self._rate, self._l2, self._step = training.learning_rate, training.l2, 0
        self._penalised = torch.from_numpy(penalised).to(params) if training.l2 else None
        self._moments = (
            (torch.zeros_like(params), torch.zeros_like(params)) if training.optimiser == "adam" else None
        )

    @torch.no_grad()
    def step(self) -> None:
        """Move once; the gradient is zero afterwards."""
        gradient, self._step = self._gradient, self._step + 1
        if self._penalised is not None:
            gradient.addcmul_(self._penalised, self._params, value=self._l2)
        if self._moments is None:
            self._params.add_(gradient, alpha=-self._rate)
        else:
            first, second = self._moments
            first.lerp_(gradient, 1.0 - _BETA1)
            second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
            torch.mul(second, 1.0 / (1.0 - _BETA2**self._step), out=gradient)
            gradient.sqrt_().add_(_EPSILON)
            self._params.addcdiv_(first, gradient, value=-self._rate / (1.0 - _BETA1**self._step))
        gradient.zero_()


def local_steps(
    vector: ParameterVector,
    passes: Passes,
    examples: Examples,
    training: TrainingSection,
    window: Window,
    *,
    rows_per_pass: int,
    random: StreamRandom,
) -> None:
    """Move the window of the vector by all local steps of a round.

    Args:
        vector: the parameters, set.
        passes: what computes losses.
        examples: the rows.
        training: `[training]` of the plan.
        window: what may move.
        rows_per_pass: rows that go through the model at once; 0 for a whole batch.
        random: the order of rows.

    Raises:
        PlanError: training diverged.
        InputError: there are no rows, or nothing of a step's rows counts.
    """
    if len(examples) == 0:
        raise InputError("there are no rows to train on", fix="Give at least one")
    gradient = vector.gradients(window)
    part = vector.flat[window[0] : window[1]]
    optimiser = Optimiser(training, part, gradient, vector.penalised[window[0] : window[1]])
    shares = passes.shares(examples)
    count = np.array([len(examples)])
    order = Batches(
        np.zeros(1, np.int64), count, batch=training.batch, steps=training.local_steps, random=random
    )
    for index in order:
        rows = index[0]
        share = 1.0 / max(1, int(shares[rows].sum()))
        if rows_per_pass:  # rows of like lengths together: little is padding
            rows = rows[np.argsort(examples.lengths[rows], kind="stable")]
        for at in range(0, len(rows), rows_per_pass or len(rows)):
            some = rows[at : at + (rows_per_pass or len(rows))]
            torch.autograd.backward(passes.losses(examples, some).sum() * share)
        optimiser.step()
    vector.select((0, 0))
    if not bool(torch.isfinite(part).all()):
        raise PlanError(
            "training diverged: the update is not finite",
            where="[training] learning_rate",
            fix="Choose a smaller learning rate",
        )


@contextlib.contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn what torch says where memory runs out into one sentence, for the length of a `with`.

    Args:
        advice: what to do about it.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(advice) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _too_large(advice) from error


def _too_large(advice: str) -> StorageError:
    return StorageError("there is not enough memory for this model and its rows", fix=advice)
