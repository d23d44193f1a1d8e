"""Words for a budget that does not suffice: what is left, and what it would need."""

from __future__ import annotations

from cloister.errors import PolicyRefused
from cloister.privacy.ledger.cap import Cap
from cloister.privacy.ledger.units import DELTA_BITS, RDP_BITS, shown_at_least, shown_at_most
from cloister.privacy.ledger.worth import gaussian_worth

__all__ = ["overdraft"]


def overdraft(population: str, cap: Cap, need: tuple[int, int], left: tuple[int, int]) -> PolicyRefused:
    """Return the refusal of a cost in units, (RDP, delta'), where less than that is left of a cap."""
    needed, has = shown_at_least(need[0], RDP_BITS), max(0.0, shown_at_most(left[0], RDP_BITS))
    if need[0] > left[0]:
        return PolicyRefused(
            f"the budget of {population!r} does not suffice: it would need {needed:.4g} of RDP at order "
            f"{cap.order} (epsilon about {_about(needed, cap)} alone), and {has:.4g} of {cap.rdp:.4g} is left"
            + (f" (epsilon about {_about(has, cap)} alone)" if has else ""),
            fix=_fix(has / needed if needed else 0.0),
        )
    asked, spare = shown_at_least(need[1], DELTA_BITS), max(0.0, shown_at_most(left[1], DELTA_BITS))
    return PolicyRefused(
        f"the budget of {population!r} does not suffice: it would charge {asked:.3g} of delta besides, and "
        f"{spare:.3g} of {cap.delta_terms:.3g} is left",
        fix="Ask with a smaller delta",
    )


def _about(rdp: float, cap: Cap) -> str:
    return f"{gaussian_worth(rdp, cap.order, cap.delta)[1]:.3g}"


def _fix(share: float) -> str:
    if share <= 0:
        return "Nothing more can be released from these rows"
    more = 1 / share**0.5
    steps = f", or take {share:.0%} of the steps or fewer" if share >= 0.01 else ""
    return f"Multiply the noise by {more:.3g} or more{steps}"
