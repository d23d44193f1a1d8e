"""Which range of values each element of a language model's vector has, by the name of its tensor."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from cloister.errors import PlanError
from cloister.learning.language.layout import Tensor, Window
from cloister.learning.sections import TensorRange

__all__ = ["ranges_within"]


def ranges_within(
    written: Sequence[TensorRange], default: float, tensors: Sequence[Tensor], window: Window | None = None
) -> tuple[tuple[int, float], ...]:
    """Return (stop, value_range) of the stretches of a window, in order and counted from its start.

    Args:
        written: the plan's; for each tensor the first whose pattern its name fits counts.
        default: the range of tensors that fit none.
        tensors: of the whole vector, in its order.
        window: elements [start, stop) of it; all of them by default.

    Returns:
        One entry for each stretch of equal range; () where nothing is written.

    Raises:
        PlanError: a pattern fits no tensor, or none that an earlier one has left.
    """
    if not written:
        return ()
    first, last = window or (0, sum(tensor.size for tensor in tensors))
    found: list[tuple[int, float]] = []
    used: set[str] = set()
    stop = 0
    for tensor in tensors:
        entry = next((each for each in written if fnmatchcase(tensor.name, each.tensor)), None)
        if entry is not None:
            used.add(entry.tensor)
        start, stop = stop, stop + tensor.size
        if start >= last or stop <= first:
            continue
        own = default if entry is None else entry.value_range
        if found and found[-1][1] == own:
            found.pop()
        found.append((min(stop, last) - first, own))
    _check_used(written, tensors, used)
    return tuple(found)


def _check_used(written: Sequence[TensorRange], tensors: Sequence[Tensor], used: set[str]) -> None:
    for entry in written:
        if entry.tensor in used:
            continue
        fits = any(fnmatchcase(tensor.name, entry.tensor) for tensor in tensors)
        raise PlanError(
            f"{entry.tensor!r} fits no tensor"
            + (" that an earlier pattern does not fit" if fits else f"; the first is {tensors[0].name!r}"),
            where="[[aggregation.ranges]] tensor",
            fix="Put it before the wider pattern" if fits else "Correct the pattern, or take it out",
        )
