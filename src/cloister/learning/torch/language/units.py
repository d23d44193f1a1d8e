"""A site's contribution where a unit of many rows is protected, for language models.

As `learning.private.units` says: each unit is sampled whole by its own coin, trains `local_steps` plain steps
on its own rows, and its update of the round's window is clipped, rounded and added by itself. Units train one
after the other from the same global model, so that nothing of one's passes follows from another: neither
which units were sampled nor what their rows hold.

A unit whose training diverges counts as zero, above the clip, and stops nobody. Rows of no token are left
out; a unit that has no others does not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning.heads import Array
from cloister.learning.private import poisson_rows, sum_of_updates
from cloister.learning.sections import TrainingSection
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.private import check_rows
from cloister.privacy.mechanisms import IntegerGrid

if TYPE_CHECKING:
    from cloister.learning.language.layout import Window
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["language_unit_sum"]


def language_unit_sum(
    learner: LanguageLearner,
    params: NDArray[np.floating],
    examples: Examples,
    units: Sequence[NDArray[np.int64]],
    window: Window | None = None,
    *,
    training: TrainingSection,
    clip: float,
    grid: IntegerGrid,
    rate: float,
    random: StreamRandom,
    norm_bit: bool,
) -> NDArray[np.int64]:
    """Return one round's sum of a site's units in units of the grid, without noise.

    Args:
        learner: the model.
        params: float[d], the global model, all of it.
        examples: the site's rows.
        units: for each unit the numbers of its rows (`learning.units.unit_rows`).
        window: what of the vector the round moves; None for the learner's first.
        training: `[training]` of the plan: local steps, batch, optimiser, learning rate, l2.
        clip: L2 norm a unit's update may have.
        grid: the integers.
        rate: each unit's probability to enter the round.
        random: the source of samples and of the order of rows; `StreamRandom.system()` but in tests.
        norm_bit: whether to append the centred bit.

    Returns:
        int64[w], w the window's length, or int64[w + 1] with the bit.

    Raises:
        InputError: rows do not fit the model, a unit has no rows, or a number is out of range.
        StorageError: there is not enough memory.
    """
    check_rows(learner, examples)
    if any(len(rows) == 0 for rows in units):
        raise InputError("a unit has no rows to train on", fix="Leave it out, or give it rows")
    moved = learner.windows[0] if window is None else window
    chosen = poisson_rows(len(units), rate, random)
    rows_of = [units[number] for number in chosen.tolist()]
    updates = _updates(learner, params, examples, rows_of, moved, training, random)
    return sum_of_updates(updates, moved[1] - moved[0], clip=clip, grid=grid, norm_bit=norm_bit)


def _updates(
    learner: LanguageLearner,
    params: NDArray[np.floating],
    examples: Examples,
    units: Sequence[NDArray[np.int64]],
    window: Window,
    training: TrainingSection,
    random: StreamRandom,
) -> Iterator[Array]:
    """Yield the units' updates of the window, float64[1, w]; NaN where training diverged."""
    start, stop = window
    before = params[start:stop].astype(np.float32).astype(np.float64)  # as the module holds it
    lengths = examples.lengths
    for unit in units:
        rows = unit[lengths[unit] > 0]
        if len(rows) == 0:
            yield np.zeros((1, stop - start))
            continue
        try:
            after = learner.train(
                params, examples.select(rows), training, window, insecure_test_random=random
            )
        except PlanError:  # training diverged, which nobody else may see
            yield np.full((1, stop - start), np.nan)
            continue
        yield (after[start:stop] - before)[None]
