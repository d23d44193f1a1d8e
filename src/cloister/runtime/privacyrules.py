"""`[privacy]` of a site policy: what a plan must claim about its privacy.

What cannot be judged is refused: an epsilon that the plan does not write, or writes against the hub alone,
unless what the claim amounts to is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cloister.learning import Plan, PrivacySection
from cloister.learning.privacy import PrivacyFacts

__all__ = ["PrivacyRules"]


class PrivacyRules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[privacy]`: what a plan must claim. Each rule that is written asks for a claim.

    Attributes:
        required: refuse a plan that claims no privacy.
        maximum_epsilon: of one study, for the larger of both epsilons; the ledger bounds them together.
        maximum_delta: of the claim.
        adversary: "colluders" refuses a plan whose epsilon is only against the hub.
        unit: whose rows must be protected together: "record", or the unit column.
    """

    required: bool = False
    maximum_epsilon: Annotated[float, Meta(gt=0)] | None = None
    maximum_delta: Annotated[float, Meta(gt=0, lt=1)] | None = None
    adversary: Literal["hub", "colluders"] = "hub"
    unit: Annotated[str, Meta(min_length=1, max_length=200)] | None = None

    def check(self, plan: Plan, claim: PrivacyFacts | None) -> list[str]:
        """Return every rule that refuses, as a sentence part.

        Args:
            plan: the plan.
            claim: what its `[privacy]` amounts to, where model and schema are known.
        """
        section = plan.privacy
        asked = {
            "required": self.required,
            "maximum_epsilon": self.maximum_epsilon is not None,
            "maximum_delta": self.maximum_delta is not None,
            "adversary": self.adversary == "colluders",
            "unit": self.unit is not None,
        }
        if section is None:
            return [f"privacy {rule}: the plan claims no privacy" for rule, wanted in asked.items() if wanted]
        reasons = []
        if self.maximum_epsilon is not None:
            reasons += _epsilon(self.maximum_epsilon, section, claim)
        if self.maximum_delta is not None and section.delta > self.maximum_delta:
            reasons.append(f"privacy maximum_delta: {section.delta:g}, at most {self.maximum_delta:g} may be")
        if self.adversary == "colluders" and section.adversary != "colluders":
            reasons.append("privacy adversary: the plan's epsilon leaves colluding sites out")
        if self.unit is not None and section.unit != self.unit:
            reasons.append(f"privacy unit: the plan protects {section.unit}, {self.unit} must be")
        return reasons


def _epsilon(most: float, section: PrivacySection, claim: PrivacyFacts | None) -> list[str]:
    """Return why the larger of both epsilons is too large, or is not known."""
    known: tuple[float, ...]
    if claim is not None:
        known = (claim.epsilon_hub, claim.epsilon_colluders)
    elif section.epsilon is None:
        return ["privacy maximum_epsilon: the plan writes no epsilon"]
    elif section.adversary == "hub" and section.mode == "distributed":
        return ["privacy maximum_epsilon: the plan writes its epsilon against the hub, not against colluders"]
    else:
        known = (section.epsilon,)
    if all(each <= most for each in known):  # what cannot be compared refuses
        return []
    return [f"privacy maximum_epsilon: {max(known):.3f}, at most {most:g} may be"]
