"""The industry cases: real rows and a question, run through all seven stages by `cloister demo`."""

from __future__ import annotations

import difflib

from cloister.cases import diagnosis, heart
from cloister.cases.base import Case, CaseData, Origin, Progress, SiteRows, Words
from cloister.errors import InputError

__all__ = ["CASES", "Case", "CaseData", "Origin", "Progress", "SiteRows", "Words", "find_case"]

CASES: tuple[Case, ...] = (diagnosis.CASE, heart.CASE)


def find_case(name: str) -> Case:
    """Return the case called `name`.

    Raises:
        InputError: there is none; the message lists those there are, and the nearest.
    """
    by_name = {case.name: case for case in CASES}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name.lower(), by_name, n=1)
    known = ", ".join(by_name)
    raise InputError(
        f"there is no case {name[:40]!r}",
        fix=f"Did you mean {near[0]!r}? The cases are: {known}" if near else f"The cases are: {known}",
    )
