"""Checks of one number, and the base of all frozen data here. Refusals never repeat a value."""

from __future__ import annotations

import math

import msgspec

from cloister.errors import InputError

__all__ = ["Data", "check_between", "check_positive", "check_whole"]


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen data, written under its own name in the field "kind"."""


def check_positive(value: float, what: str) -> None:
    """Refuse what is not a finite number above 0."""
    check_between(value, 0.0, math.inf, what)


def check_between(value: float, low: float, high: float, what: str, *, include_low: bool = False) -> None:
    """Refuse a number outside (low, high], or [low, high], and NaN and infinity always."""
    if not math.isfinite(value) or value > high or value < low or (value == low and not include_low):
        least = f"at least {low:g}" if include_low else f"above {low:g}"
        raise InputError(f"{what} is out of range", fix=f"It is {least} and at most {high:g}")


def check_whole(value: int, low: int, high: int, what: str) -> None:
    """Refuse what is not a whole number in [low, high]; True and 3.0 are none."""
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{what} is out of range", fix=f"It is a whole number from {low} to {high}")
