"""Gradient inversion: rows read back from what the hub sees, if it saw it.

The first layer of a fully connected network takes rows themselves, so the gradient of one of its units is

    d loss / d weights = sum over rows of r_i x_i,    d loss / d bias = sum over rows of r_i

and their quotient is a weighted mean of the rows that the unit reacts to (Phong et al. 2017): with one such
row, the row itself, exactly. Units of a hidden layer react to some rows and not to others, so a larger update
gives several candidates (Fowl et al. 2022). An update of several local steps is read as if it were one. No
optimisation is needed, and none does better where it matters, at one row.

Looked at are, of the same rows and model:

    one row       the update of a site that has a single row
    one site      the update of one site, as it is before anything protects it
    sum           the sum over all sites, as the secure sum shows it
    noised sum    that sum with the noise that the claim counts
    masked        one site's vector as it travels: uniform in the ring

Similarity of a candidate and a row is 1 - mean |difference| / 2 over the scaled features, 1 for equal rows;
what counts is the best pair. Chance is the same for as many rows of other people as there are candidates. A
candidate is held to the schema's range, as an attacker would.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from cloister.crypto import apply_masks
from cloister.errors import InputError
from cloister.learning.algorithms import client_update, site_weights
from cloister.learning.attacks.mechanism import Integers, Mechanism, Rows, Run, deal
from cloister.learning.heads import Array
from cloister.learning.models import Model
from cloister.learning.sections import TrainingSection
from cloister.learning.training import ClientRows, train
from cloister.secagg import Encoding, RingVector

__all__ = ["VIEWS", "Inversion", "View", "candidates", "invert", "plain_views", "private_views", "similarity"]

View = Literal["one row", "one site", "sum", "noised sum", "masked"]
VIEWS: tuple[View, ...] = ("one row", "one site", "sum", "noised sum", "masked")

See = Callable[[Sequence[Rows]], Array]
"""From the sites' rows to what the attacker sees, float64[d], of any scale."""

_EXACT = 0.995
"""A similarity above which a row counts as read back: half a per cent of a feature's range off on average."""


class Inversion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How near the best candidate came, over several trials.

    Attributes:
        view: what the attacker saw.
        trials: how often, each with other rows.
        similarity: mean similarity of the best pair of candidate and row.
        chance: the same for rows of other people in the candidates' place.
        exact: share of trials in which a row was read back within half a per cent of its range.
        exact_by_chance: the same for rows of other people: few features are easily guessed.
    """

    view: View
    trials: int
    similarity: float
    chance: float
    exact: float
    exact_by_chance: float


def candidates(model: Model, update: Array) -> Array:
    """Return the rows that an update gives away, float64[k, f]; an update may be of any scale and sign.

    Args:
        model: what the update means.
        update: float64[d], a gradient or a sum of gradients.

    Returns:
        One row for each unit of the first layer that moved, held to [-1, 1].
    """
    inputs, units = model.widths[0], model.widths[1]
    weights = update[: inputs * units].reshape(inputs, units)
    biases = update[inputs * units : (inputs + 1) * units]
    moved = np.abs(biases) > 1e-12 * max(float(np.abs(update).max()), 1e-300)
    rows: Array = (weights[:, moved] / biases[moved]).T
    return np.clip(rows, -1.0, 1.0)


def similarity(guesses: Array, rows: Array) -> float:
    """Return the similarity of the best pair of guesses float64[k, f] and rows float64[n, f]; 0 for none."""
    if not len(guesses) or not len(rows):
        return 0.0
    return max(float(1.0 - np.abs(rows - guess).mean(axis=1).min() / 2.0) for guess in guesses)


def invert(
    views: Mapping[View, See],
    model: Model,
    draw: Callable[[], Sequence[Rows]],
    strangers: Callable[[int], Array],
    *,
    trials: int = 24,
) -> tuple[Inversion, ...]:
    """Attack each view.

    Args:
        views: from `plain_views` or `private_views`; "one row" is given one site with one row.
        model: what is trained.
        draw: rows of all sites, anew for each trial.
        strangers: rows of other people, float64[k, f], anew each time.
        trials: how often.

    Raises:
        InputError: there is no trial.
    """
    if trials < 1:
        raise InputError("an inversion needs at least one trial", fix="Give a positive number")
    found = []
    for view, see in views.items():
        best, chance = np.zeros(trials), np.zeros(trials)
        for trial in range(trials):
            parts = draw()
            if view == "one row":
                parts = [(parts[0][0][:1], parts[0][1][:1])]
            target = parts[0][0] if view in ("one row", "one site", "masked") else _all(parts)
            guesses = candidates(model, see(parts))
            best[trial] = similarity(guesses, target)
            chance[trial] = similarity(strangers(max(1, len(guesses))), target)
        found.append(
            Inversion(
                view,
                trials,
                similarity=float(best.mean()),
                chance=float(chance.mean()),
                exact=float((best > _EXACT).mean()),
                exact_by_chance=float((chance > _EXACT).mean()),
            )
        )
    return tuple(found)


def plain_views(model: Model, start: Array, training: TrainingSection, encoding: Encoding) -> dict[View, See]:
    """Return the views of a study without privacy: updates of a round of local steps from the start."""

    def update(part: Rows, weight: float = 1.0) -> Array:
        return client_update(train(model, start, ClientRows.stack([part]), training)[0], start, weight)

    def summed(parts: Sequence[Rows]) -> Array:
        weights = site_weights([len(y) for _, y in parts], training.weights)
        words = np.zeros(model.size, dtype=encoding.dtype)
        for part, weight in zip(parts, weights, strict=True):
            words += encoding.encode(update(part, weight))
        return encoding.decode_sum(words, len(parts))

    return {
        "one row": lambda parts: update(parts[0]),
        "one site": lambda parts: update(parts[0]),
        "sum": summed,
        "masked": lambda parts: _masked(encoding.encode(update(parts[0]))),
    }


def private_views(mechanism: Mechanism, start: Array) -> dict[View, See]:
    """Return the views of a study with privacy: sums of clipped gradients of the first step."""
    claim = mechanism.claim

    def begin(parts: Sequence[Rows]) -> Run:
        return mechanism.begin(start, deal(parts, claim.shares))

    def values(integers: Integers) -> Array:
        return integers[: mechanism.size].astype(np.float64)

    def summed(parts: Sequence[Rows]) -> Array:
        run = begin(parts)
        return values(np.sum([run.site_sum(site) for site in range(claim.shares)], axis=0))

    def masked(parts: Sequence[Rows]) -> Array:
        run = begin(parts)
        return _masked(claim.grid.to_ring(run.site_sum(0) + run.site_noise(0)))[: mechanism.size]

    return {
        "one row": lambda parts: mechanism.signals(start, parts[0], claim.clip)[0, : mechanism.size],
        "one site": lambda parts: values(begin(parts).site_sum(0)),
        "sum": summed,
        "noised sum": lambda parts: values(begin(parts).look()),
        "masked": masked,
    }


def _masked(words: RingVector) -> Array:
    """Return a vector as the hub gets it: masked with a fresh key, read as signed integers."""
    hidden = words.copy()
    apply_masks(hidden, [(os.urandom(32), 1)])
    return hidden.view(f"<i{hidden.itemsize}").astype(np.float64)


def _all(parts: Sequence[Rows]) -> Array:
    return np.concatenate([X for X, _ in parts])
