"""Audit bounds: what the guesses of an attack say about epsilon. Pure functions; nothing is attacked here.

Order of use: an attack of `cloister.learning.attacks` guesses which canaries were in; `refutes` says whether
a claimed trade-off function allows so many right guesses, `tradeoff_bound` and `epsilon_bound` how large
epsilon is at least. `curve_of` is the trade-off function of a plan's events, `scaled` those events with less
noise. `mean_lower` does so from many independent runs, where a run is cheap, and
`membership_bound` for plain tests of one thing over independent runs.

A bound is a lower bound on what a mechanism leaks. It can show that a claim is false, never that it is true.
"""

from cloister.privacy.auditing.curves import curve_of, distance_of, scaled
from cloister.privacy.auditing.onerun import (
    epsilon_bound,
    p_value,
    refutes,
    tradeoff_bound,
    tradeoff_epsilon_bound,
    tradeoff_p_value,
)
from cloister.privacy.auditing.rates import membership_bound, rate_interval, rate_lower, rate_upper
from cloister.privacy.auditing.runs import distance_epsilon, mean_lower, mean_p_value
from cloister.privacy.auditing.tradeoff import GaussianTradeOff, PrivacyCurve, TradeOff

__all__ = [
    "GaussianTradeOff",
    "PrivacyCurve",
    "TradeOff",
    "curve_of",
    "distance_epsilon",
    "distance_of",
    "epsilon_bound",
    "mean_lower",
    "mean_p_value",
    "membership_bound",
    "p_value",
    "rate_interval",
    "rate_lower",
    "rate_upper",
    "refutes",
    "scaled",
    "tradeoff_bound",
    "tradeoff_epsilon_bound",
    "tradeoff_p_value",
]
