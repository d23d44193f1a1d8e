"""Error bars of counts, sums, means and variances hold the truth as often as they say, and not for nothing.

Noise is drawn here by another route than the product's, from a fixed seed; the product turns noisy sums into
bars. A trial is one cell of one answer; 0.9 is stated, so that failures are frequent enough to be counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.privacy.statistics.tables import declarations, gaussian_noise, laplace_noise, table
from tests.privacy.statistics.test_moments import of, rows_of

from cloister.privacy.statistics import GaussianNoise, LaplaceNoise, Query, Rows
from cloister.privacy.statistics.moments import Moments

CONFIDENCE = 0.9
TRUTH = {"sum": np.sum, "mean": np.mean, "variance": np.var}

CASES = [
    ({"statistic": "count"}, 1.0),
    ({"statistic": "count", "by": ("ward",)}, 0.2),
    ({"statistic": "sum", "column": "income"}, 0.5),
    ({"statistic": "sum", "column": "pressure", "by": ("sex",)}, 0.5),
    ({"statistic": "mean", "column": "age"}, 0.2),
    ({"statistic": "mean", "column": "pressure", "by": ("ward", "ill")}, 2.0),
    ({"statistic": "mean", "column": "pressure", "by": ("ward", "ill")}, 0.2),
    ({"statistic": "variance", "column": "income"}, 0.5),
    ({"statistic": "variance", "column": "pressure", "by": ("sex",)}, 2.0),
]


def simulate(
    fields: dict[str, Any], epsilon: float, kind: str, trials: int, *, shrink: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (whether each bar held the truth, errors of the estimates, half widths of the bars)."""
    data = table(400, seed=11)
    declared = declarations(400)
    statistic = Moments.of(Query(**fields, confidence=CONFIDENCE), declared)
    grid = 1 if statistic.whole and kind == "laplace" else 2**20
    vector = statistic.vector(Rows(data, declared, statistic.columns), grid)
    scale = statistic.sensitivity(grid, 1 if kind == "laplace" else 2) / epsilon
    noise = LaplaceNoise(scale * shrink) if kind == "laplace" else GaussianNoise(scale * shrink)
    draw = laplace_noise if kind == "laplace" else gaussian_noise
    random = np.random.default_rng(12)
    true = None
    held, errors, widths = [], [], []
    for _ in range(trials):
        cells = statistic.answer(vector + draw(random, scale, vector.shape), grid, noise, 400)
        if true is None:
            true = [truth(data, fields, cell.group) for cell in cells]
        for cell, real in zip(cells, true, strict=True):
            assert cell.low <= cell.value <= cell.high
            if real is not None:
                held.append(cell.low <= real <= cell.high)
                errors.append(cell.value - real)
                widths.append((cell.high - cell.low) / 2)
    return np.array(held), np.array(errors), np.array(widths)


def truth(data: Any, fields: dict[str, Any], group: dict[str, Any]) -> float | None:
    rows = rows_of(data, group)
    if fields["statistic"] == "count":
        return len(rows)
    values = of(rows, fields["column"])
    return float(TRUTH[fields["statistic"]](values)) if len(values) else None


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize(("fields", "epsilon"), CASES, ids=lambda case: str(case))
def test_bars_hold_the_truth_as_often_as_stated(fields: dict[str, Any], epsilon: float, kind: str) -> None:
    held, errors, widths = simulate(fields, epsilon, kind, 120)
    least = CONFIDENCE - 4 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / len(held))
    assert held.mean() >= least
    if "by" not in fields or epsilon >= 2.0:
        # not wide for the sake of it: 90 % of the errors reach a third of the bar at least
        assert np.median(widths) < 3.0 * np.quantile(np.abs(errors), CONFIDENCE)


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_the_check_would_see_a_bar_that_is_too_short(kind: str) -> None:
    held, _, _ = simulate({"statistic": "mean", "column": "age"}, 0.2, kind, 300, shrink=0.6)
    assert held.mean() < CONFIDENCE - 4 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / len(held))


def test_an_empty_group_has_the_bounds_for_a_bar() -> None:
    data, declared = table(400, seed=11), declarations(400)
    statistic = Moments.of(Query(statistic="mean", column="age", by=("ward",)), declared)
    vector = statistic.vector(Rows(data, declared, statistic.columns), 2**20)
    scale = statistic.sensitivity(2**20, 1) / 0.5
    random = np.random.default_rng(1)
    for _ in range(50):
        cells = statistic.answer(
            vector + laplace_noise(random, scale, vector.shape), 2**20, LaplaceNoise(scale), 400
        )
        (empty,) = [cell for cell in cells if cell.group["ward"] == "empty"]
        assert 0.0 <= empty.low <= empty.value <= empty.high <= 120.0
        assert empty.high - empty.low > 60.0
