"""What every local mechanism is: frozen data that says its cost, and turns true values into released ones.

The guarantee is local: for any two true values of the declared domain, and not only for neighbouring tables,
the chances of every output differ by a factor of at most exp(epsilon), up to delta. Whoever receives the
output, and the one who collects it, are both outside. A value outside the domain is moved to its nearest end
first.
"""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.types import RandomBytes

__all__ = ["MAX_EPSILON", "MIN_EPSILON", "Charge", "LocalMechanism", "check_epsilon", "private_random"]

MIN_EPSILON: Final = 1e-3
MAX_EPSILON: Final = 32.0


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one release of one value takes from a person's budget; charges add.

    Attributes:
        epsilon: of the local guarantee.
        delta: its slack, with what the noise's tables add.
        per_metre: epsilon for each metre between two positions; a budget of its own.
    """

    epsilon: float = 0.0
    delta: float = 0.0
    per_metre: float = 0.0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            _plus(self.epsilon, other.epsilon),
            _plus(self.delta, other.delta),
            _plus(self.per_metre, other.per_metre),
        )


class LocalMechanism(Protocol):
    """Turns values into noisy ones; it keeps nothing, so that the same value twice gives two answers."""

    @property
    def cost(self) -> Charge:
        """What each value costs the person it belongs to."""

    def accept(self, values: Any) -> NDArray[Any]:
        """Return values as `perturb` takes them. Raises InputError for one without meaning, such as NaN."""

    def perturb(
        self, values: NDArray[Any], *, insecure_test_random: RandomBytes | None = None
    ) -> NDArray[Any]:
        """Return one noisy value for each true one. Raises as `accept`."""


def check_epsilon(epsilon: float, *, where: str = "") -> None:
    """Raise InputError unless epsilon is within 0.001 to 32: beyond, it protects nothing or says nothing."""
    if not MIN_EPSILON <= epsilon <= MAX_EPSILON:
        raise InputError(
            f"a local epsilon must be {MIN_EPSILON:g} to {MAX_EPSILON:g}",
            where=where,
            fix="Choose one, say 1",
        )


def _plus(left: float, right: float) -> float:
    """Add as the numbers are written, so that 0.1 and 0.2 make 0.3 and fit a budget of 0.3."""
    return float(Decimal(repr(left)) + Decimal(repr(right)))


def private_random(insecure_test_random: RandomBytes | None) -> StreamRandom:
    """Return numbers under a key of the operating system's, fresh for this call."""
    return StreamRandom((insecure_test_random or os.urandom)(32))
