"""Answers of `cloister query` as people read them: small tables, what they cost, what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.privacy.statistics import Answer, Cell, Key
    from cloister.runtime.query import QueryResult

__all__ = ["federated_in_words", "in_words"]


def in_words(
    answers: Sequence[Answer], epsilon: float, delta: float, left: Sequence[Mapping[str, Any]]
) -> str:
    """Return the answers of one owner's dataset, what they cost, and what each population has left."""
    noises = " and ".join(dict.fromkeys(answer.noise for answer in answers))
    rest = (
        f"Paid by {each['population']}: {100 * each['share_left']:.1f} % of its budget is left, about "
        f"{each['queries_left']} queries of epsilon 0.1."
        for each in left
    )
    price = f"Noise: {noises}, epsilon {epsilon:.6g}, delta {delta:g}."
    return "\n".join([*map(_table, answers), price, *rest])


def federated_in_words(result: QueryResult) -> str:
    """Return the answers of several sites, and what they cost against whom."""
    colluding = max(1, result.plan.params(len(result.plan.sites)).colluders)
    return "\n".join(
        [
            *map(_table, result.answers),
            f"{result.rows} rows of {', '.join(result.survivors)}, summed under masks in this one process.",
            f"Noise: {result.answers[0].noise}, delta {result.delta:g}.",
            f"Epsilon {result.epsilon_hub:.4g} against the hub, {result.epsilon_colluders:.4g} with "
            f"{colluding} of the sites helping it.",
            f"Each site paid for epsilon {max(result.epsilon_hub, result.epsilon_colluders):.4g}.",
        ]
    )


def _table(answer: Answer) -> str:
    names = list(answer.cells[0].group)
    levels = answer.cells[0].level is not None
    head = [*names, *(["quantile"] if levels else []), "value", f"{100 * answer.confidence:.4g} % error bar"]
    lines = [head]
    for cell in answer.cells:
        value, low, high = _numbers(cell)
        key = [_key(cell.group[name]) for name in names]
        lines.append([*key, *([f"{cell.level:g}"] if levels else []), value, f"{low} to {high}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([answer.query.title, *table, f"  It hides {answer.protects}.", ""])


def _key(key: Key) -> str:
    if key is None:
        return "missing"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, tuple):
        low, high = key
        return f"{low:g} to {high:g}" if low != high else f"{low:g}"
    return str(key)


def _numbers(cell: Cell) -> tuple[str, str, str]:
    """Return value and error bar, with as many decimals as the bar makes sense of."""
    numbers = (cell.value, cell.low, cell.high)
    places = 0
    if not all(number.is_integer() for number in numbers):
        places = 6 if cell.error <= 0 else min(6, max(0, 1 - math.floor(math.log10(cell.error))))
    value, low, high = (f"{number:.{places}f}" for number in numbers)
    return value, low, high
