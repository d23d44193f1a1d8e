"""Mechanisms whose epsilon is known, played many times: the truth that bounds are held to. Not collected."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta(epsilon) of N(0, 1) against N(mu, 1) (Balle and Wang 2018, theorem 8)."""
    if mu == 0.0:
        return 0.0
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, 100.0))


def randomised_response(rng: np.random.Generator, canaries: int, epsilon: float) -> tuple[int, int]:
    """Each bit told truly with probability e^eps / (1 + e^eps); the guess is what was told. (guesses, right)."""
    right = rng.random(canaries) < 1.0 / (1.0 + math.exp(-epsilon))
    return canaries, int(right.sum())


def gaussian_game(rng: np.random.Generator, canaries: int, mu: float, fraction: float) -> tuple[int, int]:
    """Each bit noised; the surest are guessed, half of them as in and half as out. (guesses, right)."""
    included = rng.random(canaries) < 0.5
    order = np.argsort(rng.normal(size=canaries) + mu * included)
    side = int(canaries * fraction / 2)
    right = (~included[order[:side]]).sum() + included[order[canaries - side :]].sum()
    return 2 * side, int(right)


def gaussian_shares(rng: np.random.Generator, runs: int, canaries: int, mu: float) -> NDArray[np.float64]:
    """The share of right guesses in each of many runs, all canaries guessed."""
    included = rng.random((runs, canaries)) < 0.5
    guessed = rng.normal(size=included.shape) + mu * included > mu / 2
    return (guessed == included).mean(axis=1)
