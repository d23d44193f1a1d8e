"""The server's half: scores of encrypted rows, from constants and ciphertexts alone.

    linear    s_k = sum_j w_jk x_j + b_k: one product with a constant for each weight, one rescaling
    hidden    u_h = sum_j w_jh x_j + b_h, in [-1, 1];  T_n = 2 T_a T_b - T_(a-b) with a + b = n;
              s_k = sum over h and n of c_nhk T_n(u_h) + b_k

Each product of ciphertexts and each sum of products with constants uses up one modulus. A ciphertext of l
moduli has exactly the scale `Parameters.scales[l - 1]`; where the terms of a sum come at different levels,
their constants are scaled so that the products agree.

Which T_n are computed follows from the activation alone (odd ones, or even ones), never from a weight. A
weight below 2**-40 is left out: SEAL refuses a product with 0. Where all of them are, the first stands at
2**-38, or there would be nothing encrypted to answer with. Time therefore depends on which weights are 0,
which the client learns from the scores anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.inference.encrypted.network import Network
from cloister.inference.encrypted.scheme import Scheme

__all__ = ["Evaluation", "chebyshev_steps"]

Array = NDArray[np.float64]

_TINY: Final = 2.0**-40


class _Sum:
    """A sum of products with constants, not yet rescaled."""

    def __init__(self, evaluation: Evaluation, level: int) -> None:
        self._of, self.level, self._total = evaluation, level, None

    def add(self, ciphertext: Any, weight: float) -> None:
        """Add `weight` times a ciphertext of at least the sum's level."""
        if abs(weight) < _TINY:
            return
        scheme, scales = self._of.scheme, self._of.scheme.parameters.scales
        own = scales[scheme.level(ciphertext) - 1]
        target = scales[self.level - 2] * scheme.parameters.primes[self.level - 1]
        constant = scheme.encode(weight, self.level, target / own)
        product = scheme.api.Ciphertext()
        scheme.evaluator.multiply_plain(self._of.lowered(ciphertext, self.level), constant, product)
        product.scale = target
        if self._total is None:
            self._total = product
        else:
            scheme.evaluator.add_inplace(self._total, product)

    def done(self, constant: float, spare: Any) -> Any:
        """Return the sum plus a constant, one level down; `spare` is taken where every weight was 0."""
        if self._total is None:
            self.add(spare, 4 * _TINY)
        return self._of.plus(self._of.rescaled(self._total), constant)


class Evaluation:
    """Computes a network on ciphertexts.

    Args:
        network: what to compute.
        scheme: of the network's circuit.
        relinearisation: keys that products of ciphertexts need; None for the linear circuit.
    """

    def __init__(self, network: Network, scheme: Scheme, relinearisation: Any = None) -> None:
        self.network, self.scheme, self._keys = network, scheme, relinearisation

    def scores(self, features: Sequence[Any]) -> list[Any]:
        """Return one ciphertext of one modulus for each score.

        Args:
            features: one fresh ciphertext for each column of X.
        """
        top = len(self.scheme.parameters.data)
        if self.network.circuit == "linear":
            columns = zip(self.network.weights.T, self.network.offset, strict=True)
            return [self._weighted(features, weights, offset, top) for weights, offset in columns]
        totals = [_Sum(self, 2) for _ in range(self.network.outputs)]
        constants = self.network.offset + self.network.basis[0].sum(axis=0)
        for unit in range(self.network.weights.shape[1]):
            entry = self._weighted(
                features, self.network.weights[:, unit], float(self.network.biases[unit]), top
            )
            members = self._chebyshev(entry, self._wanted())
            for number, member in members.items():
                for total, weight in zip(totals, self.network.basis[number, unit], strict=True):
                    total.add(member, float(weight))
        return [
            total.done(float(constant), features[0])
            for total, constant in zip(totals, constants, strict=True)
        ]

    def _wanted(self) -> list[int]:
        """Return which T_n, n > 0, any unit uses."""
        used = np.abs(self.network.basis).max(axis=(1, 2), initial=0.0) > 0.0
        return [int(number) for number in np.flatnonzero(used) if number]

    def _weighted(self, features: Sequence[Any], weights: Array, constant: float, level: int) -> Any:
        total = _Sum(self, level)
        for feature, weight in zip(features, weights, strict=True):
            total.add(feature, float(weight))
        return total.done(float(constant), features[0])

    def _chebyshev(self, first: Any, wanted: Iterable[int]) -> dict[int, Any]:
        members = {1: first}
        for number, large, small in chebyshev_steps(wanted):
            members[number] = self._step(members, large, small)
        return members

    def _step(self, members: dict[int, Any], large: int, small: int) -> Any:
        """Return T_(large + small)."""
        scheme, evaluator = self.scheme, self.scheme.evaluator
        level = min(scheme.level(members[large]), scheme.level(members[small]))
        product = scheme.api.Ciphertext()
        if large == small:
            evaluator.square(members[large], product)
        else:
            a, b = (self._carried(members[each], level) for each in (large, small))
            evaluator.multiply(a, b, product)
        evaluator.relinearize_inplace(product, self._keys)
        product = self.rescaled(product)
        evaluator.add_inplace(product, product)
        if large == small:
            return self.plus(product, -1.0)
        evaluator.sub_inplace(product, self._carried(members[large - small], level - 1))
        return product

    def _carried(self, ciphertext: Any, level: int) -> Any:
        """Return the ciphertext at a level, with that level's own scale."""
        if self.scheme.level(ciphertext) == level:
            return ciphertext
        total = _Sum(self, level + 1)
        total.add(ciphertext, 1.0)
        return total.done(0.0, ciphertext)

    def lowered(self, ciphertext: Any, level: int) -> Any:
        """Return the ciphertext with fewer moduli; its scale is as it was."""
        if self.scheme.level(ciphertext) == level:
            return ciphertext
        lower = self.scheme.api.Ciphertext()
        self.scheme.evaluator.mod_switch_to(ciphertext, self.scheme.parms_ids[level - 1], lower)
        return lower

    def rescaled(self, ciphertext: Any) -> Any:
        """Divide by the last modulus."""
        self.scheme.evaluator.rescale_to_next_inplace(ciphertext)
        ciphertext.scale = self.scheme.parameters.scales[self.scheme.level(ciphertext) - 1]
        return ciphertext

    def plus(self, ciphertext: Any, constant: float) -> Any:
        """Add a constant to every slot."""
        level = self.scheme.level(ciphertext)
        scale = self.scheme.parameters.scales[level - 1]
        if abs(constant) >= _TINY:
            self.scheme.evaluator.add_plain_inplace(ciphertext, self.scheme.encode(constant, level, scale))
        return ciphertext


def chebyshev_steps(wanted: Iterable[int]) -> list[tuple[int, int, int]]:
    """Return (n, a, b) with n = a + b, in an order in which T_a, T_b and T_(a-b) come before T_n.

    a is the largest power of two below n, or half of n where n is one: so the depth is that of log2 n, and of
    even members only even ones are needed.
    """
    steps: dict[int, tuple[int, int]] = {}
    open_ = list(wanted)
    while open_:
        number = open_.pop()
        if number <= 1 or number in steps:
            continue
        large = 1 << (number - 1).bit_length() - 1
        steps[number] = (large, number - large)
        open_ += [large, number - large, 2 * large - number]
    return [(number, *steps[number]) for number in sorted(steps)]
