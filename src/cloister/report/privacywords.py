"""Figures of differential privacy in words; no bound looks better in words than it is.

An epsilon that was claimed or spent is rounded up, one that is left or was shown by an attack rounded down.
"""

from __future__ import annotations

import math

from cloister.report.model import Report
from cloister.report.privacy import Budget, Privacy
from cloister.report.texts import Language, say

__all__ = [
    "delta_in_words",
    "epsilon_down",
    "epsilon_up",
    "guess_bound",
    "least_left",
    "one_unit",
    "percent_up",
    "privacy_note",
    "privacy_values",
    "same_everywhere",
    "told_privacy",
]

_TINY = 1e-9  # of a last digit: what binary fractions are off by


def epsilon_up(value: float) -> str:
    """Return an upper bound on epsilon with two digits behind the point, rounded up: `2.36`."""
    return f"{math.ceil(value * 100 - _TINY) / 100:.2f}"


def epsilon_down(value: float) -> str:
    """Return a lower bound on epsilon, or what is left of one, rounded down: `4.24`."""
    return f"{math.floor(value * 100 + _TINY) / 100:.2f}"


def guess_bound(epsilon: float, delta: float) -> float:
    """Return how often, at most, a guess at even odds is right about whether one unit took part.

    For any (epsilon, delta) private result, true positives minus false positives of every test are at most
    (e**epsilon - 1 + 2 delta) / (e**epsilon + 1) (Kairouz, Oh and Viswanath 2015, Theorem 2.1 at even odds),
    so that a guess is right with at most (e**epsilon + delta) / (e**epsilon + 1).
    """
    small = math.exp(-epsilon)
    return min(1.0, (1 + delta * small) / (1 + small))


def percent_up(value: float, lang: Language) -> str:
    """Return a fraction as a percentage with one decimal, rounded up."""
    return f"{math.ceil(value * 1000 - _TINY) / 10:.1f}" + ("%" if lang == "zh" else "\u00a0%")


def delta_in_words(delta: float) -> str:
    """Return delta without an exponent where that can be read: `0.0001`, `0.00002`, `1e-09`."""
    if delta < 1e-7:
        return f"{delta:g}"
    return f"{delta:.12f}".rstrip("0")


def one_unit(report: Report) -> str:
    """Return what epsilon speaks of, in words that follow "any": `one of the patients`, `one “device”`."""
    privacy = report.privacy
    if privacy is None or privacy.unit == "record":
        return say(report.lang, "one_record", rows=report.subject.rows)
    return say(report.lang, "one_unit", unit=privacy.unit)


def privacy_values(report: Report, privacy: Privacy) -> dict[str, str]:
    """Return what sentences on privacy take: epsilons, delta, who colludes, how people are called."""
    return {
        "site": report.subject.site,
        "sites": report.subject.sites,
        "rows": report.subject.rows,
        "one": one_unit(report),
        "hub": epsilon_up(privacy.epsilon_hub),
        "colluders": epsilon_up(privacy.epsilon_colluders),
        "epsilon": epsilon_up(privacy.claimed),
        "delta": delta_in_words(privacy.delta),
        "count": str(privacy.colluders),
        "parties": str(report.aggregation.parties),
    }


def privacy_note(report: Report) -> str:
    """Return the claim as one clause, or that there is none."""
    privacy = report.privacy
    if privacy is None:
        return say(report.lang, "privacy_note")
    key = "privacy_note_local" if privacy.mode == "local" else "privacy_note_private"
    return say(report.lang, key, **privacy_values(report, privacy))


def same_everywhere(budgets: tuple[Budget, ...]) -> bool:
    """Whether all owners' budgets read the same."""
    return len({_in_figures(budget) for budget in budgets}) == 1


def least_left(budgets: tuple[Budget, ...]) -> Budget:
    """Return the budget with the least left."""
    return min(budgets, key=lambda budget: (budget.left_epsilon, -budget.spent_share))


def told_privacy(report: Report) -> list[str]:
    """Return the claim and the budgets as a line each, for a terminal; nothing without a claim."""
    privacy, lang = report.privacy, report.lang
    if privacy is None:
        return []
    key = "told_privacy_local" if privacy.mode == "local" else "told_privacy"
    lines = [say(lang, key, **privacy_values(report, privacy))]
    if privacy.budgets:
        least = least_left(privacy.budgets)
        cap, spent, left = _in_figures(least)
        key = "told_budget" if same_everywhere(privacy.budgets) else "told_budget_least"
        lines.append(
            say(lang, key, site=report.subject.site, name=least.site, cap=cap, spent=spent, left=left)
        )
    return lines


def _in_figures(budget: Budget) -> tuple[str, str, str]:
    return f"{budget.cap_epsilon:g}", epsilon_up(budget.spent_epsilon), epsilon_down(budget.left_epsilon)
