"""How much of the noise each site adds, so that enough of it is nobody's whom the adversary controls."""

from __future__ import annotations

from typing import Literal

from cloister.errors import PlanError
from cloister.privacy.accounting import MIN_SHARE_VARIANCE as MINIMUM_SHARE_VARIANCE

__all__ = ["MINIMUM_SHARE_VARIANCE", "share_variance"]


def share_variance(
    variance: float, *, minimum: int, colluders: int, adversary: Literal["hub", "colluders"]
) -> float:
    """Return the variance of each site's discrete Gaussian share.

    Args:
        variance: the summed variance that the claim is calibrated for, in squared units.
        minimum: the shortest list of survivors, m: so many shares are in every sum.
        colluders: sites that may tell the hub their share, c. At least one is assumed: every site knows its
            own.
        adversary: "colluders": the claim holds against the hub with c sites, so m - max(c, 1) shares count;
            "hub": against the hub and outsiders alone, all m count.

    Raises:
        PlanError: no share is left to count, an unknown adversary, or a share of variance below 8.
    """
    if adversary not in ("hub", "colluders"):
        raise PlanError(f"an adversary {adversary!r} is unknown", fix='Write "colluders" or "hub"')
    counted = minimum - (max(colluders, 1) if adversary == "colluders" else 0)
    if counted < 1 or colluders < 0:
        raise PlanError(
            f"of {minimum} noise shares none is left beside {max(colluders, 1)} colluding",
            fix="Raise the minimum of survivors, or assume fewer colluders",
        )
    share = variance / counted
    if not share >= MINIMUM_SHARE_VARIANCE:
        raise PlanError(
            f"a noise share's variance of {share:.3g} squared units is less than {MINIMUM_SHARE_VARIANCE:g}",
            fix="Widen the ring to 32 bits or shrink the batch, so that a clip is worth more units",
        )
    return share
