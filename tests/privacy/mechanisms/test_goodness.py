"""Samples against laws computed another way; and samplers with a mistake, which the same tests reject."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.privacy.mechanisms import wrong
from tests.privacy.mechanisms.goodness import ACCEPT, REJECT, Draw, Law, fixed_random, judge

from cloister.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, IntegerGrid
from cloister.privacy.mechanisms.gaussian import compose
from cloister.privacy.mechanisms.sampling import IntegerNoise

VARIANCES = (0.3, 1.0, 8.0, 100.5, 1e6, 1201.0**2, 2.0**40, 2.0**56)
SCALES = (0.5, 3.0, 100.0, 181.0, 1e5, 2.0**32)


def drawing(noise: IntegerNoise, label: str) -> Draw:
    random = fixed_random(label)
    return lambda count: noise.sample(count, insecure_test_random=random)


def gaussian(variance: float) -> Draw:
    return drawing(DiscreteGaussian(variance), f"gaussian {variance}")


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_discrete_gaussian_is_its_law(variance: float) -> None:
    noise = DiscreteGaussian(variance)
    multipliers = [k for k, _ in noise._levels[1:]]
    verdict = judge(gaussian(variance), Law(variance), moduli=(2, 3, 7, 16, *multipliers))
    assert min(verdict.values()) > ACCEPT, verdict


@pytest.mark.parametrize("scale", SCALES)
def test_the_discrete_laplace_is_its_law(scale: float) -> None:
    noise = DiscreteLaplace(scale)
    bases = [k for k, _ in noise._levels[1:]]
    verdict = judge(drawing(noise, f"laplace {scale}"), Law(scale, "laplace"), moduli=(2, 3, 7, 16, *bases))
    assert min(verdict.values()) > ACCEPT, verdict


def test_a_rare_value_is_as_rare_as_it_should_be() -> None:
    law = Law(0.05)
    samples = gaussian(0.05)(1_000_000)
    assert set(np.unique(samples)) <= {-1, 0, 1}  # 2 has a chance of 4e-18
    expected = float(law.pmf[law.support == 1][0]) * len(samples)
    for value in (-1, 1):
        assert abs(np.count_nonzero(samples == value) - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("shares", [1, 2, 7])
def test_shares_add_up_in_the_ring_to_the_summed_variance(bits: int, shares: int) -> None:
    grid, noise = IntegerGrid(bits, 100), DiscreteGaussian(8.3)  # type: ignore[arg-type]
    random = fixed_random(f"shares {bits} {shares}")

    def total(count: int) -> NDArray[np.int64]:
        vector = grid.to_ring(np.full(count, -(2 ** (bits - 1)), np.int64))  # it will wrap
        for _ in range(shares):
            noise.add_into(vector, insecure_test_random=random)
        return grid.from_ring(vector + vector.dtype.type(2 ** (bits - 1)))

    verdict = judge(total, Law(8.3 * shares))
    assert min(verdict.values()) > ACCEPT, verdict


MISTAKES = {
    "rounded continuous": (lambda: wrong.rounded_continuous(0.6), Law(0.6), "cells"),
    "rounded continuous, wider": (lambda: wrong.rounded_continuous(4.0), Law(4.0), "spread"),
    "2 % too narrow": (lambda: gaussian((0.98 * 50) ** 2), Law(2500.0), "spread"),
    "2 % too wide": (lambda: gaussian((1.02 * 2**20) ** 2), Law(2.0**40), "spread"),
    "rescaled by 2 %": (lambda: wrong.scaled(gaussian(2500.0), 0.98), Law(2500.0), "spread"),
    "off by one": (lambda: wrong.shifted(gaussian(900.0)), Law(900.0), "mean"),
    "no tail": (lambda: wrong.truncated(gaussian(900.0), 3.5 * 30), Law(900.0), "tail"),
    "no tail, composed": (lambda: wrong.truncated(gaussian(2.0**40), 3.5 * 2**20), Law(2.0**40), "tail"),
    "biased residue": (lambda: wrong.biased_residue(gaussian(2.0**40)), Law(2.0**40), "residues 2"),
    "Laplace": (lambda: drawing(DiscreteLaplace(20.0), "as gaussian"), Law(800.0), "shape"),
    "Gaussian as Laplace": (lambda: gaussian(2 * 1e10), Law(1e5, "laplace"), "shape"),
    "the same in every call": (lambda: wrong.repeated(gaussian(100.0)), Law(100.0), "repetition"),
    "every value twice": (lambda: wrong.short_period(gaussian(100.0)), Law(100.0), "repetition"),
    "composed of parts too narrow": (lambda: composed_narrowly(), Law(2.0**22), "residues 64"),
}


def composed_narrowly() -> Draw:
    """x = 64 a + b with a deviation of b of a third of the 64: gaps remain between the multiples."""
    noise = IntegerNoise(*compose(Fraction(2**22), [64], Fraction(1, 9)))
    assert noise.distance > 1e-3  # and it says so
    return drawing(noise, "narrow")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_sampler_with_a_mistake_is_rejected(name: str) -> None:
    make, law, reason = MISTAKES[name]
    verdict = judge(make(), law, moduli=(2, 3, 7, 64))
    assert verdict[reason] < REJECT, verdict


def test_opendp_passes_the_same_tests() -> None:
    dp = pytest.importorskip("opendp.prelude", reason="OpenDP is not installed")
    dp.enable_features("contrib")

    def draw(measurement: object, count: int) -> NDArray[np.int64]:
        return np.array(measurement([0] * count), dtype=np.int64)  # type: ignore[operator]

    vector = dp.vector_domain(dp.atom_domain(T="i64"))
    theirs = dp.m.make_gaussian(vector, dp.l2_distance(T="i64"), scale=3.0)
    verdict = judge(lambda count: draw(theirs, count), Law(9.0), count=20_000)
    assert min(verdict.values()) > REJECT, verdict  # its randomness cannot be fixed
    theirs = dp.m.make_laplace(vector, dp.l1_distance(T="i64"), scale=3.0)
    verdict = judge(lambda count: draw(theirs, count), Law(3.0, "laplace"), count=20_000)
    assert min(verdict.values()) > REJECT, verdict
