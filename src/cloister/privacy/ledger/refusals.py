"""Words for a budget that does not suffice: what is left, and what it would need."""

from __future__ import annotations

import math

from cloister.errors import PolicyRefused
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.units import DELTA_BITS, RDP_BITS, shown_at_least, shown_at_most
from cloister.privacy.ledger.worth import gaussian_worth

__all__ = ["overdraft"]


def overdraft(
    population: str, cap: Cap, need: tuple[int, int], left: tuple[int, int], *, blocks: int
) -> PolicyRefused:
    """Return the refusal of a cost in units, (RDP, delta'), where less than that is left of a cap.

    Args:
        population: whose budget it is.
        cap: the budget.
        need: what is asked for in all.
        left: what is left.
        blocks: in how many parts it is asked for; a single one is a query, and has no steps to save on.
    """
    needed, has = shown_at_least(need[0], RDP_BITS), max(0.0, shown_at_most(left[0], RDP_BITS))
    if need[0] > left[0]:
        return PolicyRefused(
            f"the budget of {population!r} does not suffice: it would need {needed:.4g} of RDP at order "
            f"{cap.order} (epsilon about {_about(needed, cap)} alone), and {has:.4g} of {cap.rdp:.4g} is left"
            + (f" (epsilon about {_about(has, cap)} alone)" if has else ""),
            fix=_fix(has / needed if needed else 0.0, blocks),
        )
    asked, spare = shown_at_least(need[1], DELTA_BITS), max(0.0, shown_at_most(left[1], DELTA_BITS))
    return PolicyRefused(
        f"the budget of {population!r} does not suffice: it would charge {asked:.3g} of delta besides, and "
        f"{spare:.3g} of {cap.delta_terms:.3g} is left",
        fix="Ask with a smaller delta",
    )


def _about(rdp: float, cap: Cap) -> str:
    return f"{gaussian_worth(rdp, cap.order, cap.delta)[1]:.3g}"


def _fix(share: float, blocks: int) -> str:
    """Say what would fit; figures are rounded so that it does."""
    if share <= 0:
        return "Nothing more can be released from these rows"
    percent = math.floor(100 * share)
    if blocks == 1:  # the cost of any noise falls at least as fast as epsilon, so this much of it fits
        return f"Ask for {percent}% of its epsilon or less" if percent else "Ask for much less epsilon"
    more = math.ceil(100 / share**0.5) / 100
    steps = f", or take {percent}% of the steps or fewer" if percent else ""
    return f"Multiply the noise by {more:g} or more{steps}"
