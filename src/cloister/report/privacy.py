"""What a report says of differential privacy: frozen facts, and what must hold between them.

Invariants, checked on construction and so on every read:
1. Epsilon against the hub is never above epsilon against a hub with colluding sites, and the one that the
   plan speaks of is not above what the plan claims.
2. Nobody has spent more than the cap, or could be given more than it.
3. The curve rises in epsilon; an attack that found more than was claimed is never called consistent with it.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal

import msgspec

from cloister.report.kinds import Count, Fraction, NotNegative, Positive

__all__ = ["Audit", "Baselines", "Budget", "EpsilonPoint", "Privacy"]

Runs = Annotated[int, msgspec.Meta(ge=1)]
_CLOSE = 1 + 1e-6  # ledgers round what is spent upwards


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one owner's ledger says of its rows: its cap, what this and everything before spent, what is left.

    Spent and left do not add up to the cap: epsilons never add. What adds is the ledger's Renyi divergence,
    and `spent_share` is its share.

    Args:
        site: whose.
        cap_epsilon: what the owner allows over everything ever released from its rows, at `cap_delta`.
        cap_delta: likewise.
        spent_epsilon: what was spent so far, as the ledger's filter counts it.
        left_epsilon: what one more release could be claimed with.
        spent_share: spent part of what the ledger adds up.
    """

    site: str
    cap_epsilon: Positive
    cap_delta: Fraction
    spent_epsilon: NotNegative
    left_epsilon: NotNegative
    spent_share: Fraction

    def __post_init__(self) -> None:
        if not 0 < self.cap_delta < 1:
            raise ValueError("a cap's delta must be above 0 and below 1")
        if not max(self.spent_epsilon, self.left_epsilon) <= self.cap_epsilon * _CLOSE:
            raise ValueError("a budget's spent or left epsilon is above its cap")


class EpsilonPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same study at another epsilon: accuracy, the mean of `runs` runs, with its standard deviation."""

    epsilon: Positive
    accuracy: Fraction
    deviation: NotNegative
    runs: Runs


class Baselines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accuracy of others at the study's own epsilon, each the mean of `runs` runs.

    Args:
        centralised: one collector with all rows.
        local: by site, that site's rows alone.
        runs: of each.
    """

    centralised: Fraction
    local: dict[str, Fraction]
    runs: Runs


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an attack that was run on the claim showed: a lower bound on epsilon, never a proof of privacy."""

    claimed: Positive
    bound: NotNegative
    confidence: Fraction
    canaries: Count
    verdict: Literal["consistent with the claim", "violates the claim", "memorised"]

    def __post_init__(self) -> None:
        if self.verdict == "consistent with the claim" and not self.bound <= self.claimed:
            raise ValueError("an audit whose bound is above the claim violates the claim")


class Privacy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Differential privacy: the claim, and what it rests on. See the module's invariants.

    Args:
        epsilon: what the plan claims at `delta`, None where it fixes the noise instead.
        epsilon_hub: against the hub and every reader of the model.
        epsilon_colluders: against a hub with `colluders` colluding sites.
        delta: of both.
        adversary: which of the two the plan's epsilon speaks of.
        colluders: how many sites are assumed to tell the hub their noise.
        unit: "record", or the column that names whose row it is.
        mode: who adds the noise: all sites together, or each for itself.
        clip, rate, noise_multiplier: of the mechanism.
        budgets: every owner's ledger.
        curve: accuracy against epsilon, on rows declared public; empty elsewhere.
        baselines: who would get how far at the same epsilon, on rows declared public; None elsewhere.
        audit: an attack on the claim, None where none was run.
    """

    epsilon: Positive | None
    epsilon_hub: Positive
    epsilon_colluders: Positive
    delta: Fraction
    adversary: Literal["colluders", "hub"]
    colluders: Count
    unit: str
    mode: Literal["distributed", "local"]
    clip: Positive
    rate: Fraction
    noise_multiplier: Positive
    budgets: tuple[Budget, ...]
    curve: tuple[EpsilonPoint, ...] = ()
    baselines: Baselines | None = None
    audit: Audit | None = None

    @property
    def claimed(self) -> float:
        """The epsilon that the plan speaks of, as it was calculated."""
        return self.epsilon_hub if self.adversary == "hub" else self.epsilon_colluders

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError("delta must be above 0 and below 1")
        if not 0 < self.rate <= 1:
            raise ValueError("the sampling rate must be above 0 and at most 1")
        if not 0 < self.epsilon_hub <= self.epsilon_colluders * (1 + 1e-9) < math.inf:
            raise ValueError("epsilon against the hub must not be above epsilon with colluding sites")
        if self.epsilon is not None and not self.claimed <= self.epsilon * (1 + 1e-9):
            raise ValueError("epsilon as calculated is above what the plan claims")
        owners = [budget.site for budget in self.budgets]
        if len(set(owners)) != len(owners):
            raise ValueError("budgets name a site twice")
        steps = [point.epsilon for point in self.curve]
        if any(not low < high for low, high in itertools.pairwise(steps)):
            raise ValueError("the curve must rise in epsilon")

    def names(self) -> set[str]:
        """Return the sites that budgets and baselines name."""
        alone = set() if self.baselines is None else set(self.baselines.local)
        return alone | {budget.site for budget in self.budgets}
