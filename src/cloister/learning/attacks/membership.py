"""Membership inference with shadow models: LiRA, the likelihood-ratio attack (Carlini et al. 2022), online,
over models that are cheap to train.

Each of S models is trained on a random half of the rows; every row is then in about half of the models. One
model after the other is the target, the rest are its shadows. For a row, phi = log(p / (1 - p)) of the
probability p that a model gives its label is near a Gaussian among models that had the row, and among those
that had not; the score of a membership is the log-likelihood ratio of the target's phi between the two. The
two means are the row's own, the variance is pooled over rows, as the paper advises for few shadows.

Without privacy the shadows train as the study does, each site its local steps and then the server's, all
sites of all shadows at once. With privacy the mechanism itself is run for each.

Scores of many rows of one model depend on each other, so no epsilon is drawn from them; the error given is
over models. The result depends on the rows: of an owner's rows it stays with the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.algorithms import build_algorithm, site_weights
from cloister.learning.attacks.canarygame import Progress
from cloister.learning.attacks.mechanism import Mechanism, Rows, deal
from cloister.learning.evaluation import area_under_curve
from cloister.learning.heads import Array, SquaredHead
from cloister.learning.models import Model
from cloister.learning.sections import TrainingSection
from cloister.learning.training import ClientRows, train

__all__ = ["Membership", "Trainer", "confidences", "lira", "plain_trainer", "private_trainer"]

Trainer = Callable[[list[list[Rows]]], Array]
"""Trains S models, each given as the rows of every site; returns float64[S, d]."""

_ALARMS = (0.01, 0.1)
_TOGETHER = 64


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well membership is told.

    Attributes:
        rows: rows attacked.
        models: models, each in turn the target.
        auc: chance that a member scores above another row; 0.5 is guessing.
        auc_error: standard error of it over models.
        accuracy: share of right answers when a ratio above 1 says member; 0.5 is guessing.
        hits_at_1: share of members found where 1 % of the others raise a false alarm; 0.01 is guessing.
        hits_at_10: likewise at 10 %.
    """

    rows: int
    models: int
    auc: float
    auc_error: float
    accuracy: float
    hits_at_1: float
    hits_at_10: float


def lira(
    trainer: Trainer,
    model: Model,
    parts: Sequence[Rows],
    *,
    models: int = 32,
    progress: Progress | None = None,
    insecure_test_random: StreamRandom | None = None,
) -> Membership:
    """Attack `models` models over halves of the rows.

    Args:
        trainer: `plain_trainer` or `private_trainer`.
        model: what the parameters mean; gives losses.
        parts: all rows, by site.
        models: S, at least 8 and even.
        progress: told as models are trained.
        insecure_test_random: which rows go into which model, in tests.

    Raises:
        InputError: too few models or rows.
    """
    X, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if models < 8 or models % 2 or len(y) < 8:
        raise InputError("membership inference needs 8 models and 8 rows at least", fix="Give more")
    random = insecure_test_random or StreamRandom.system()
    member = _halves(models, len(y), random)
    sites = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
    scores = []
    for at in range(0, models, _TOGETHER):
        some = [
            [(X[inside & (sites == site)], y[inside & (sites == site)]) for site in range(len(parts))]
            for inside in member[at : at + _TOGETHER]
        ]
        scores += [confidences(model, params, X, y) for params in trainer(some)]
        if progress is not None:
            progress(min(at + _TOGETHER, models), models)
    return _measure(_ratios(np.array(scores), member), member)


def plain_trainer(model: Model, start: Array, training: TrainingSection) -> Trainer:
    """Return a trainer that trains each model as a study without privacy does, all of them at once."""

    def trained(models: list[list[Rows]]) -> Array:
        algorithm = build_algorithm(training)
        clients = [(number, part) for number, parts in enumerate(models) for part in parts if len(part[1])]
        owner = np.array([number for number, _ in clients])
        rows = ClientRows.stack([part for _, part in clients])
        weights = np.concatenate(
            [site_weights([len(p[1]) for p in parts if len(p[1])], training.weights) for parts in models]
        )
        totals = np.bincount(owner, weights, len(models))[:, None]
        state = algorithm.start(np.broadcast_to(start, (len(models), model.size)))
        for _ in range(training.rounds):
            updates = (train(model, state.params[owner], rows, training) - state.params[owner]) * weights[
                :, None
            ]
            summed = np.zeros((len(models), model.size))
            np.add.at(summed, owner, updates)
            state = algorithm.step(state, summed / totals)
        return algorithm.final(state)

    return trained


def private_trainer(mechanism: Mechanism, start: Array) -> Trainer:
    """Return a trainer that runs the mechanism for each model.

    Rows of sites beyond the counted ones are put to the counted ones: the mechanism has as much noise as the
    claim counts, whoever is present.
    """
    shares = mechanism.claim.shares

    def trained(models: list[list[Rows]]) -> Array:
        return np.array([_run(mechanism, start, deal(parts, shares)) for parts in models])

    return trained


def confidences(model: Model, params: Array, X: Array, y: Array) -> Array:
    """Return phi of each row, float64[n]: log(p / (1 - p)) of its label, or minus a regression's error."""
    losses = np.maximum(model.losses(params, X, y), 1e-30)
    if isinstance(model.head, SquaredHead):
        return -np.sqrt(2.0 * losses)
    odds: Array = -losses - np.log(-np.expm1(-losses))
    return odds


def _run(mechanism: Mechanism, start: Array, parts: list[Rows]) -> Array:
    run = mechanism.begin(start, parts)
    for _ in range(mechanism.claim.rounds):
        run.look()
    return run.finish()


def _halves(models: int, rows: int, random: StreamRandom) -> NDArray[np.bool_]:
    """Return who is in which model, bool[S, n]: in pairs of complements, so that each row is in half."""
    first = random.integers(2, (models // 2, rows)).astype(np.bool_)
    first[:, :2] = [True, False]  # no model is without rows
    return np.stack([first, ~first], axis=1).reshape(models, rows)


def _ratios(scores: Array, member: NDArray[np.bool_]) -> Array:
    """Return the log-likelihood ratio of each row in each model, the model itself left out; float64[S, n]."""
    means, squares = [], []
    for inside in (member, ~member):
        count = inside.sum(axis=0)
        total = np.where(inside, scores, 0.0).sum(axis=0)
        others = count - inside  # without the target
        mean = (total - np.where(inside, scores, 0.0)) / np.maximum(others, 1)
        whole = total / np.maximum(count, 1)
        spread = np.where(inside, np.square(scores - whole), 0.0).sum() / max(1, inside.sum() - len(whole))
        means.append(mean)
        squares.append(max(float(spread), 1e-12))
    (of_in, of_out), (var_in, var_out) = means, squares
    ratios: Array = (
        np.square(scores - of_out) / (2.0 * var_out)
        - np.square(scores - of_in) / (2.0 * var_in)
        + 0.5 * np.log(var_out / var_in)
    )
    return ratios


def _measure(ratios: Array, member: NDArray[np.bool_]) -> Membership:
    each = [
        area_under_curve(row, inside.astype(np.float64)) for row, inside in zip(ratios, member, strict=True)
    ]
    accuracy = float(((ratios > 0.0) == member).mean())
    others = np.sort(ratios[~member])
    hits = []
    for alarm in _ALARMS:
        bar = others[min(len(others) - 1, int(np.ceil((1.0 - alarm) * len(others))))]
        hits.append(float((ratios[member] > bar).mean()))
    return Membership(
        rows=ratios.shape[1],
        models=len(ratios),
        auc=area_under_curve(ratios.reshape(-1), member.reshape(-1).astype(np.float64)),
        auc_error=float(np.std(each, ddof=1) / np.sqrt(len(each))),
        accuracy=accuracy,
        hits_at_1=hits[0],
        hits_at_10=hits[1],
    )
