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

__all__ = ["Optimiser", "local_steps", "memory_errors", "order_of"]

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


def order_of(count: int, training: TrainingSection, random: StreamRandom) -> NDArray[np.int64]:
    """Return the rows of each local step, int64[steps, b], of `count` rows.

    Raises:
        InputError: there are none.
    """
    if count == 0:
        raise InputError("there are no rows to train on", fix="Give at least one")
    batches = Batches(
        np.zeros(1, np.int64),
        np.array([count]),
        batch=training.batch,
        steps=training.local_steps,
        random=random,
    )
    return np.concatenate([index.copy() for index in batches])


def local_steps(
    vector: ParameterVector,
    passes: Passes,
    examples: Examples,
    training: TrainingSection,
    window: Window,
    order: NDArray[np.int64],
    *,
    rows_per_pass: int,
) -> None:
    """Move the window of the vector by all local steps of a round.

    Args:
        vector: the parameters, set.
        passes: what computes losses.
        examples: the rows.
        training: `[training]` of the plan.
        window: what may move.
        order: the rows of each step, int64[steps, b], as `order_of` draws them.
        rows_per_pass: rows that go through the model at once, in each process; 0 for a whole batch.

    Raises:
        PlanError: training diverged.
        InputError: a label is no class.
    """
    team = passes.team
    gradient = vector.gradients(window)
    part = vector.flat[window[0] : window[1]]
    optimiser = Optimiser(training, part, gradient, vector.penalised[window[0] : window[1]])
    shares = passes.shares(examples)
    lengths = examples.lengths
    for rows in order:
        share = 1.0 / max(1, int(shares[rows].sum()))
        if rows_per_pass or team.size > 1:  # rows of like lengths together: little is padding
            rows = rows[np.argsort(lengths[rows], kind="stable")]
        mine, most = team.part(rows), team.most(len(rows))
        for at in range(0, most, rows_per_pass or most):
            some = mine[at : at + (rows_per_pass or most)]
            counts = share if len(some) else 0.0
            loss = passes.losses(examples, some if len(some) else rows[:1]).sum()
            torch.autograd.backward(loss * counts)
        team.sum(gradient)
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
