"""Probabilities to 72 digits, their rounding to integer weights, and how far that moves a distribution.

A mass is a probability before it is divided by their sum. All masses here are symmetric and given for x >= 0.
Decimal's operations and its exp are correctly rounded, so each multiplies a value by 1 + e, |e| <= _UNIT / 2;
the bounds on what adds up from there are derived in docs/proofs/sampler.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from fractions import Fraction
from typing import Final

from cloister.privacy.mechanisms.alias import WEIGHT_BITS, AliasTable

__all__ = ["Masses", "gaussian", "laplace", "laplace_digit", "make_table"]

_DIGITS: Final = 72
_CONTEXT: Final = Context(
    _DIGITS, ROUND_HALF_EVEN, -999_999, 999_999, traps=[InvalidOperation, DivisionByZero, Overflow]
)
_UNIT: Final = Decimal(10) ** (1 - _DIGITS)
_NOTHING: Final = Decimal(10) ** -48  # below it no mass is computed: about 2**-159, and a weight is 2**-128


@dataclass(frozen=True)
class Masses:
    """Masses of 0, 1, 2, ...: the same for -1, -2, ...; `mass[0]` is 1 or near it.

    Attributes:
        mass: to within a factor 1 +- relative_error each.
        tail: bound on the sum of the masses left out, both sides.
        relative_error: bound.
    """

    mass: Sequence[Decimal]
    tail: Decimal
    relative_error: Decimal


def gaussian(variance: Fraction) -> Masses:
    """Return exp(-x**2 / (2 variance)), by the ratios of neighbours, which fall by one constant factor."""
    with localcontext(_CONTEXT):
        inverse = Decimal(variance.denominator) / Decimal(variance.numerator)
        ratio, fall = (-inverse / 2).exp(), (-inverse).exp()  # exp(-(2x + 1) / (2 variance)) at x = 0
        mass = [Decimal(1)]
        while mass[-1] > _NOTHING:
            mass.append(mass[-1] * ratio)
            ratio *= fall
        error = 4 * (inverse + 2) * Decimal(len(mass) + 1) ** 2 * _UNIT
        return Masses(mass, 2 * mass[-1] * ratio / (1 - ratio), error)


def laplace(scale: Fraction) -> Masses:
    """Return exp(-|x| / scale)."""
    with localcontext(_CONTEXT):
        inverse = Decimal(scale.denominator) / Decimal(scale.numerator)
        ratio = (-inverse).exp()
        mass = [Decimal(1)]
        while mass[-1] > _NOTHING:
            mass.append(mass[-1] * ratio)
        error = 4 * (inverse + 2) * Decimal(len(mass) + 1) * _UNIT
        return Masses(mass, 2 * mass[-1] * ratio / (1 - ratio), error)


def laplace_digit(scale: Fraction, base: int) -> Masses:
    """Return the masses of R - R', where R, R' have P(r) ~ exp(-r / scale) on 0 to base - 1.

    Summed over r the differences of d have exp(-d / scale) - exp(-(2 base - d) / scale), up to a constant.
    """
    with localcontext(_CONTEXT):
        inverse = Decimal(scale.denominator) / Decimal(scale.numerator)
        ratio = (-inverse).exp()
        power = [Decimal(1)]
        for _ in range(2 * base):
            power.append(power[-1] * ratio)
        mass = [power[d] - power[2 * base - d] for d in range(base)]
        error = 4 * (inverse + 2) * (1 + 1 / inverse) * Decimal(2 * base + 2) * _UNIT
        return Masses([value / mass[0] for value in mass], Decimal(0), error)


def make_table(masses: Masses) -> tuple[AliasTable, float]:
    """Return a table of the masses, and a bound on the total variation distance of one draw from them.

    Every weight is the probability rounded to a multiple of 2**-128, but that of 0, which gets the rest: the
    table stays symmetric. What rounds to 0 is left out.
    """
    one = 1 << WEIGHT_BITS
    with localcontext(_CONTEXT):
        total = masses.mass[0] + 2 * sum(masses.mass[1:])
        exact = [value / total * one for value in masses.mass]
        weight = [int(value.to_integral_value()) for value in exact]
        weight[0] = one - 2 * sum(weight[1:])
        moved = [abs(w - e) for w, e in zip(weight, exact, strict=True)]
        distance = (moved[0] + 2 * sum(moved[1:])) / (2 * one)
        distance += masses.tail / total + 2 * masses.relative_error + len(exact) * _UNIT
        bound = math.nextafter(float(distance), math.inf)
    last = max(x for x, value in enumerate(weight) if value)
    side = weight[1 : last + 1]
    return AliasTable([*reversed(side), *weight[: last + 1]], -last), bound
