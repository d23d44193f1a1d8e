"""What events cost a Renyi filter, as frozen data."""

from __future__ import annotations

import math

import msgspec

from cloister.privacy.accounting.ranges import check_between, check_whole

__all__ = ["MOST_EPSILON", "MOST_ORDER", "Cost"]

MOST_EPSILON = 20.0
"""The largest epsilon of a cap that a `Cost` may be charged to; its `delta` is multiplied by 1 + e^20."""

MOST_ORDER = 4096
"""The largest Renyi order that is computed."""


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What events cost a Renyi filter at one integer order; costs at one order add.

    Args:
        rdp: Renyi divergence at the order, in nats: the larger of both directions.
        delta: what is charged for being close to the mechanism with that divergence, not equal to it: enough
            for every cap of epsilon up to `MOST_EPSILON`.
        order: the order; None where the maker does not say.
    """

    rdp: float
    delta: float
    order: int | None = None

    def __post_init__(self) -> None:
        check_between(self.rdp, 0.0, math.inf, "a Renyi divergence", include_low=True)
        check_between(self.delta, 0.0, math.inf, "a delta", include_low=True)
        if self.order is not None:
            check_whole(self.order, 2, MOST_ORDER, "a Renyi order")
