"""Randomised response over k categories (Warner 1965; k-ary: Kairouz, Bonawitz, Ramage 2016).

The true category is told with probability p, and each of the others with q = (1 - p) / (k - 1), where p / q
<= exp(epsilon). p is a multiple of 2**-64, rounded down from exp(epsilon) / (exp(epsilon) + k - 1), and a
lie is drawn exactly uniformly, so that the claim is pure: there is no delta, and nothing is charged for
arithmetic.

For many categories (k above exp(epsilon) + 2) the answers are mostly lies; count coarser categories then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.privacy.accounting import Event, Everyone, RandomisedResponse
from cloister.privacy.local.mechanism import Charge, check_epsilon, private_random
from cloister.types import RandomBytes

__all__ = ["WEIGHT", "Response"]

WEIGHT: Final = 2**64
_MAX_CATEGORIES: Final = 10_000


class Response(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="response"):
    """k-ary randomised response.

    Attributes:
        categories: all that may be true, declared and not taken from rows; 2 to 10,000.
        epsilon: pure, between any two categories.
    """

    categories: tuple[str, ...]
    epsilon: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if not 2 <= len(self.categories) <= _MAX_CATEGORIES:
            raise InputError(
                f"randomised response needs 2 to {_MAX_CATEGORIES} categories",
                fix="Declare every value allowed",
            )
        if len(set(self.categories)) < len(self.categories):
            raise InputError("a category is listed twice", fix="List each once")

    @property
    def cost(self) -> Charge:
        """What each answer costs."""
        return Charge(epsilon=self.epsilon)

    @property
    def event(self) -> Event:
        """One answer, for the accountant: any category against any other."""
        return Event(RandomisedResponse(self.epsilon, len(self.categories)), Everyone(), "replace-one", 1)

    @property
    def truthful(self) -> int:
        """The chance of the truth, out of 2**64."""
        return _truthful(self.epsilon, len(self.categories))

    @property
    def chances(self) -> tuple[float, float]:
        """(p, q): the chance of the truth, and of each lie."""
        p = self.truthful / WEIGHT
        return p, (WEIGHT - self.truthful) / WEIGHT / (len(self.categories) - 1)

    def encode(self, values: Sequence[str]) -> NDArray[np.int64]:
        """Return int64[n], the number of each category. Raises InputError where one is not declared."""
        known = {name: number for number, name in enumerate(self.categories)}
        numbers = [known.get(value, -1) for value in values]
        if -1 in numbers:
            raise InputError("a value is none of the declared categories", fix="Declare every value allowed")
        return np.array(numbers, np.int64)

    def decode(self, numbers: NDArray[np.int64]) -> list[str]:
        """Return the names of n categories."""
        return [self.categories[number] for number in self.accept(numbers).tolist()]

    def perturb(
        self, values: NDArray[Any], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[np.int64]:
        """Return int64[n], the answers, for int64[n], the numbers of the true categories.

        Raises:
            InputError: a number is not that of a category.
        """
        true = self.accept(values)
        random = private_random(insecure_test_random)
        tell = random.words(len(true)) < np.uint64(self.truthful)
        lie = random.integers(len(self.categories) - 1, len(true))  # drawn for everybody: time tells nothing
        answers: NDArray[np.int64] = np.where(tell, true, lie + (lie >= true))
        return answers

    def accept(self, values: Any) -> NDArray[np.int64]:
        """Return int64[n], numbers of categories. Raises InputError where one is none."""
        numbers = np.asarray(values)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iub"):
            raise InputError("categories are given as whole numbers", fix="Use encode")
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self.categories):
            raise InputError("a number is not that of a declared category", fix="Use encode")
        return numbers.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _truthful(epsilon: float, count: int) -> int:
    """Return floor(2**64 exp(epsilon) / (exp(epsilon) + count - 1)), or one less."""
    with localcontext() as context:
        context.prec = 60
        power = Decimal(epsilon).exp()  # within 1e-59, relatively
        return int(WEIGHT * power / (power + count - 1) * (1 - Decimal("1e-50")))
