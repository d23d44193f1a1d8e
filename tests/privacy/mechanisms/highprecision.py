"""The laws again, in integers: exp by Taylor's series in fixed point, each mass by itself."""

from __future__ import annotations

from fractions import Fraction

BITS = 400
ONE = 1 << BITS


def exp_minus(y: Fraction) -> int:
    """exp(-y) in units of 2**-400, within 2**-380 or so, for y >= 0."""
    halvings = max(0, (y.numerator // y.denominator).bit_length() + 8)
    x = (y.numerator << BITS) // (y.denominator << halvings)
    term, total, n = ONE, ONE, 0
    while term:
        n += 1
        term = term * x // (ONE * n)
        total += -term if n % 2 else term
    for _ in range(halvings):
        total = total * total >> BITS
    return total


def gaussian_law(variance: Fraction, reach: int) -> dict[int, Fraction]:
    """Probabilities of N_Z(0, variance) on |x| <= reach; the rest must be negligible."""
    return _normalised({x: exp_minus(x * x / (2 * variance)) for x in range(reach + 1)})


def laplace_law(scale: Fraction, reach: int) -> dict[int, Fraction]:
    return _normalised({x: exp_minus(x / scale) for x in range(reach + 1)})


def _normalised(side: dict[int, int]) -> dict[int, Fraction]:
    total = sum(side.values()) * 2 - side[0]
    return {sign * x: Fraction(mass, total) for x, mass in side.items() for sign in (1, -1)}


def convolve(upper: dict[int, int], multiplier: int, lower: dict[int, int]) -> dict[int, int]:
    """Weights of multiplier * a + b."""
    total: dict[int, int] = {}
    for a, weight in upper.items():
        for b, other in lower.items():
            x = multiplier * a + b
            total[x] = total.get(x, 0) + weight * other
    return total


def distance(weights: dict[int, int], law: dict[int, Fraction]) -> float:
    """Total variation distance, exactly, but for one rounding at the end."""
    one = sum(weights.values())
    scale = 1 << 500  # sums of fractions with unlike denominators would take for ever
    total = 0
    for x in weights.keys() | law.keys():
        p = law.get(x, Fraction(0))
        total += abs((weights.get(x, 0) * scale) // one - (p.numerator * scale) // p.denominator)
    return float(Fraction(total, 2 * scale))
