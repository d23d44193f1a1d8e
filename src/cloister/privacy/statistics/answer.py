"""What comes back: values with error bars, what they cost, and the events that say so."""

from __future__ import annotations

from typing import Any

import msgspec

from cloister.privacy.accounting import Event
from cloister.privacy.statistics.axes import Key
from cloister.privacy.statistics.query import Query

__all__ = ["Answer", "Cell"]


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One number of an answer.

    Attributes:
        group: what it is about, by column: a declared value, a bin's ends, None for missing values.
        level: of a quantile; None for everything else.
        value: the estimate.
        low: lower end of the error bar.
        high: upper end; the true value lies between the two with the answer's confidence.
    """

    group: dict[str, Key]
    value: float
    low: float
    high: float
    level: float | None = None

    @property
    def error(self) -> float:
        """How far the true value may be from `value`, at the answer's confidence."""
        return max(self.high - self.value, self.value - self.low)


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The answer to one query.

    Attributes:
        query: what was asked.
        cells: one number, or one for each group, bin or level.
        confidence: of each error bar, on its own.
        epsilon: spent on this query.
        delta: spent on this query.
        noise: "discrete Laplace" or "discrete Gaussian".
        protects: whose presence is hidden, and how its rows were limited, in words.
        events: what an accountant interprets.
    """

    query: Query
    cells: tuple[Cell, ...]
    confidence: float
    epsilon: float
    delta: float
    noise: str
    protects: str
    events: tuple[Event, ...]

    @property
    def value(self) -> float:
        """The number, where there is one; ValueError where there are several cells."""
        (cell,) = self.cells
        return cell.value

    def to_builtins(self) -> dict[str, Any]:
        """Return JSON types: the query's title, and of each cell its error as well."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        cells = [{**cell, "error": own.error} for cell, own in zip(fields["cells"], self.cells, strict=True)]
        return {**fields, "title": self.query.title, "cells": cells}
