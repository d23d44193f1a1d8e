"""Costs as whole numbers, so that sums are exact and never come out too small.

RDP is counted in 2**-50, delta in 2**-62. What is charged is rounded up to a whole unit, what may be spent is
rounded down, and what is shown is rounded in the direction that claims less. Rounding up costs at most
1e-15 a row in RDP and 3e-19 in delta.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["DELTA_BITS", "RDP_BITS", "charge", "grant", "shown_at_least", "shown_at_most"]

RDP_BITS: Final = 50
DELTA_BITS: Final = 62


def charge(value: float, bits: int) -> int:
    """Return the least whole number of units of 2**-bits that is not below `value`, which is finite."""
    return math.ceil(math.ldexp(value, bits))


def grant(value: float, bits: int) -> int:
    """Return the greatest whole number of units of 2**-bits that is not above `value`, which is finite."""
    return math.floor(math.ldexp(value, bits))


def shown_at_least(units: int, bits: int) -> float:
    """Return a float that is not below `units` of 2**-bits."""
    value = math.ldexp(float(units), -bits)
    return value if grant(value, bits) >= units else math.nextafter(value, math.inf)


def shown_at_most(units: int, bits: int) -> float:
    """Return a float that is not above `units` of 2**-bits."""
    value = math.ldexp(float(units), -bits)
    return value if charge(value, bits) <= units else math.nextafter(value, -math.inf)
