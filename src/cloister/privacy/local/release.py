"""Releasing: the price is paid and on the disk, then noise is drawn, then the value is shown.

`Predictions` puts this around a model. A score or a class is computed from somebody's record, so it is that
person's budget that pays, each time they are asked about; a model that was trained privately does not change
that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.local.bounded import BoundedGaussian, BoundedLaplace
from cloister.privacy.local.budget import PersonalBudget
from cloister.privacy.local.mechanism import LocalMechanism
from cloister.privacy.local.response import Response
from cloister.types import RandomBytes

__all__ = ["Predictions", "release"]


def release(
    mechanism: LocalMechanism,
    values: Any,
    people: Sequence[str],
    budget: PersonalBudget,
    *,
    insecure_test_random: RandomBytes | None = None,
) -> NDArray[Any]:
    """Return one noisy value for each row, paid for.

    Args:
        mechanism: what is done to each value.
        values: n rows, as the mechanism takes them.
        people: n ids: whose each row is.
        budget: who pays.
        insecure_test_random: for tests.

    Raises:
        InputError: rows and people differ in number, or a value does not fit; nothing is paid.
        PolicyRefused: somebody has too little left; nothing is paid, nothing shown.
    """
    rows = mechanism.accept(values)
    if len(rows) != len(people):
        raise InputError("there must be one person for each row", fix="Give whose each row is")
    budget.charge(people, mechanism.cost)
    return mechanism.perturb(rows, insecure_test_random=insecure_test_random)


class Predictions:
    """A model's answers about people, noisy, within each person's budget.

    Args:
        predict: takes rows, returns float64[n] (a score within the mechanism's bounds, or the probability of
            the second class) or float64[n, k] (a probability for each class).
        mechanism: `BoundedLaplace` or `BoundedGaussian` for scores, `Response` over the classes for classes.
        budget: of the people who are asked about.
    """

    def __init__(
        self,
        predict: Callable[[Any], NDArray[np.float64]],
        mechanism: BoundedLaplace | BoundedGaussian | Response,
        budget: PersonalBudget,
    ) -> None:
        self._predict = predict
        self._mechanism = mechanism
        self._budget = budget

    def answer(
        self, rows: Any, people: Sequence[str], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[Any]:
        """Return noisy answers: float64[n] scores, or int64[n] numbers of classes.

        Args:
            rows: n rows, as the model takes them.
            people: n ids: whom each row is about.
            insecure_test_random: for tests.

        Raises:
            InputError: the model's answers do not fit the mechanism; nothing is paid.
            PolicyRefused: somebody has too little left; nothing is shown.
        """
        said = np.asarray(self._predict(rows), np.float64)
        answers = (
            _classes(said, len(self._mechanism.categories)) if isinstance(self._mechanism, Response) else said
        )
        if answers.ndim != 1:
            raise InputError("a score is one number for each row", fix="Use a Response for classes")
        return release(
            self._mechanism, answers, people, self._budget, insecure_test_random=insecure_test_random
        )


def _classes(said: NDArray[np.float64], classes: int) -> NDArray[np.int64]:
    if (
        not np.isfinite(said).all()
        or said.shape[1:] not in ((), (classes,))
        or (said.ndim == 1 and classes != 2)
    ):
        raise InputError(
            "the model's answers are not probabilities of these classes",
            fix="Declare as many classes as it has",
        )
    chosen = said.argmax(axis=1) if said.ndim == 2 else said >= 0.5
    return chosen.astype(np.int64)
