"""What a population may spend: (epsilon, delta) over everything that is ever released from it.

The cap is enforced by a Renyi filter at one integer order a, fixed when the cap is declared:

    delta is split: 7/8 for the conversion (d), 1/8 for what rows charge as delta' besides;
    rdp  =  epsilon - log(1 - 1/a) + log(d a) / (a - 1)       (Canonne, Kamath and Steinke 2020, Prop. 12)

and a release is admitted while the sum of RDP at order a stays within `rdp` and the sum of delta' within
`delta_terms`. Why that gives (epsilon, delta), also for studies and queries that are chosen adaptively and
run at the same time, is in docs/proofs/filter.md. The share 7/8 costs log(8/7) / (a - 1) of epsilon; a half
would cost five times as much, and rows draw little: the remainders of integer noise are far below 1e-9.

A cap above epsilon 20 is refused, because a charged delta' holds a factor 1 + e**epsilon up to that.

Not here: what a mechanism costs at an order. That is the accountant's.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from cloister.errors import InputError
from cloister.privacy.accounting.cost import MOST_EPSILON, Cost

__all__ = ["MAX_ORDER", "Cap", "check_cost"]

MAX_ORDER: Final = 4096
_CONVERSION: Final = 7 / 8
_MOST_RDP: Final = 1e6
_ROUNDING: Final = 1e-12  # far above what a handful of logarithms in float64 can be off by


def check_cost(cost: Cost) -> int:
    """Return the order of a cost that a ledger may charge.

    Raises:
        InputError: its RDP is above 10**6, its delta is not below 1, or it does not say its order.
    """
    if cost.order is None:
        raise InputError("a cost does not say its order", fix="Take it from `renyi`, or give the order")
    if not (cost.rdp <= _MOST_RDP and cost.delta < 1):
        raise InputError(
            "a cost has an RDP above 10**6 or a delta of 1 or more, which hides nothing",
            fix="Raise the noise",
        )
    return cost.order


class Cap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A population's cap: (epsilon, delta), and the integer order of its filter.

    Raises:
        InputError: epsilon is not in (0, 20], delta not in (0, 1), the order not in 2 ... 4096, or nothing
            could ever be released at that order.
    """

    epsilon: float
    delta: float
    order: Annotated[int, msgspec.Meta(ge=2, le=MAX_ORDER)]

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        if not 2 <= self.order <= MAX_ORDER:
            raise InputError(
                f"the order of a filter must be a whole number in 2 ... {MAX_ORDER}", fix="Leave it out"
            )
        if self.rdp <= 0:
            raise InputError(
                f"nothing could be released within epsilon {self.epsilon:g} and delta {self.delta:g} at "
                f"order {self.order}",
                fix="Raise epsilon or delta, or leave the order out",
            )

    @classmethod
    def of(cls, epsilon: float, delta: float, order: int | None = None) -> Cap:
        """Return a cap; without `order`, at the order that leaves the most Gaussian releases.

        The Gaussian of noise multiplier s has RDP a / (2 s**2), so that order maximises rdp / a.

        Raises:
            InputError: as the class.
        """
        check_target(epsilon, delta)
        if order is None:
            order = max(range(2, MAX_ORDER + 1), key=lambda a: _budget(epsilon, delta, a) / a)
        return cls(float(epsilon), float(delta), order)

    @property
    def rdp(self) -> float:
        """How much RDP at `order` all releases may have together; rounded down."""
        return _budget(self.epsilon, self.delta, self.order)

    @property
    def delta_terms(self) -> float:
        """How much delta' all releases may charge together."""
        return self.delta * (1 - _CONVERSION)

    def epsilon_of(self, rdp: float) -> float:
        """Return the epsilon, at this cap's delta, that a total of `rdp` at this cap's order implies."""
        return 0.0 if rdp <= 0 else max(0.0, rdp + _offset(self.delta, self.order))


def check_target(epsilon: float, delta: float) -> None:
    """Raise InputError unless epsilon is in (0, 20] and delta in (0, 1)."""
    if not 0 < epsilon <= MOST_EPSILON:
        raise InputError(
            f"epsilon must be above 0 and at most {MOST_EPSILON:g}",
            fix="Between 0.1 and 10 is usual; more protects little",
        )
    if not 0 < delta < 1:
        raise InputError("delta must be above 0 and below 1", fix="Take less than 1 / (number of rows)")


def _offset(delta: float, order: int) -> float:
    """Return epsilon - rdp in the conversion, with the share of delta that it may use; rounded up."""
    a = float(order)
    return math.log1p(-1 / a) - math.log(delta * _CONVERSION * a) / (a - 1) + _ROUNDING


def _budget(epsilon: float, delta: float, order: int) -> float:
    return epsilon - _offset(delta, order) - _ROUNDING
