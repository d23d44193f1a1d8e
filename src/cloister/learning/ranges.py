"""Checks of one value of a plan; each raises a PlanError that names the field and what to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cloister.errors import InputError, PlanError
from cloister.types import check_name

__all__ = [
    "check_between",
    "check_digest",
    "check_distinct",
    "check_identifier",
    "check_positive",
    "check_python_name",
    "check_text",
]

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)


def check_identifier(value: str, where: str) -> None:
    """Refuse what is not safe as an identifier and a file name."""
    try:
        check_name(value)
    except InputError as error:
        raise PlanError(error.what, where=where, fix=error.fix) from error


def check_python_name(value: str, where: str) -> None:
    """Refuse what cannot be the name of a function, or is meant to be private."""
    if not (value.isascii() and value.isidentifier() and len(value) <= 100) or value.startswith("_"):
        raise PlanError("not the name of a function", where=where, fix="Write a name such as build")


def check_text(value: str, where: str) -> None:
    """Refuse text that is empty, longer than 200 characters, or not printable."""
    if not 1 <= len(value) <= 200 or not value.isprintable() or value != value.strip():
        raise PlanError(
            "the text is empty, too long or not printable",
            where=where,
            fix="Write 1 to 200 printable characters",
        )


def check_digest(value: str, where: str) -> None:
    """Refuse what is not 64 hex digits in lower case."""
    if not _HEX_DIGEST.match(value):
        raise PlanError("not a SHA-256 in hex", where=where, fix="Write 64 digits of 0-9 and a-f")


def check_between(value: int, low: int, high: int, where: str) -> None:
    """Refuse an integer outside [low, high]."""
    if not low <= value <= high:
        raise PlanError(f"{value} is out of range", where=where, fix=f"Choose from {low} to {high}")


def check_positive(value: float, high: float, where: str) -> None:
    """Refuse what is not a finite number in (0, high]."""
    if not (math.isfinite(value) and 0.0 < value <= high):
        raise PlanError(
            f"{value} is out of range", where=where, fix=f"Choose a number above 0 and up to {high:g}"
        )


def check_distinct(values: Sequence[str], where: str) -> None:
    """Refuse a repeated entry."""
    if len(set(values)) != len(values):
        raise PlanError("an entry stands there twice", where=where, fix="Write each once")
