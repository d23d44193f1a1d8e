"""Four facts released with noise: a credit score, a treatment, a vehicle's position, a device's reading.

Whoever gets one released value learns little about that person; whoever gets many learns about all of them
together. The rows are invented. What was released about each person is kept in a file; when a person's budget
is spent, nothing more is said about them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from cloister.crypto import StreamRandom
from cloister.errors import PolicyRefused
from cloister.privacy.local import (
    BoundedLaplace,
    PersonalBudget,
    PlanarLaplace,
    Predictions,
    Region,
    Response,
    ValueGrid,
    estimate_counts,
    estimate_mean,
    estimate_position,
    release,
)

PEOPLE = 3000
IDS = [f"person-{number}" for number in range(PEOPLE)]
invented = StreamRandom.from_seed(2026, "rows of the example")


def credit_score(budget: PersonalBudget) -> None:
    scores = 560 + invented.integers(200, PEOPLE)
    laplace = BoundedLaplace(ValueGrid.of(300, 850, whole=True), epsilon=1.0)
    released = release(laplace, scores, IDS, budget)
    mean = estimate_mean(laplace, released)
    shown = laplace.shown(released)[0]
    print(f"score of {IDS[0]}: {scores[0]}, released as {released[0]:.0f}, shown as {shown:.0f}")
    print(f"mean score: {scores.mean():.1f}, estimated {mean.low:.1f} to {mean.high:.1f}")
    model = Predictions(lambda rows: rows < 600, Response(("repays", "defaults"), 1.0), budget)
    says = ("repays", "defaults")[model.answer(scores[1:2], IDS[1:2])[0]]
    print(f"a model's noisy prediction for {IDS[1]}: {says} (wrong in 27 of 100 cases, and so tells little)")


def treatment(budget: PersonalBudget) -> None:
    response = Response(("surgery", "drug", "none"), epsilon=1.0)
    treatments = invented.integers(10, PEOPLE) // 4  # 0, 1 and, more rarely, 2
    answers = release(response, treatments, IDS, budget)
    truth = np.bincount(treatments, minlength=3)
    estimates = estimate_counts(response, answers)
    for name, true, count in zip(response.categories, truth, estimates, strict=True):
        print(f"treatment {name}: {true} people, estimated {count.low:.0f} to {count.high:.0f}")


def position(budget: PersonalBudget) -> None:
    town = Region(latitude=(48.0, 48.3), longitude=(11.4, 11.8))
    places = np.array([48.1, 11.5]) + 0.05 * invented.uniform((PEOPLE, 2))
    planar = PlanarLaplace.of(town, epsilon=0.01, truncated=False)  # a factor of e for every 100 metres
    released = release(planar, places, IDS, budget)
    moved = town.to_plane(released) - town.to_plane(places)
    print(
        f"vehicle {IDS[0]}: released {np.hypot(*moved[0]):.0f} m away; half are within {median(moved):.0f} m"
    )
    latitude, _ = estimate_position(planar, released)
    print(f"mean latitude: {places[:, 0].mean():.5f}, estimated {latitude.low:.5f} to {latitude.high:.5f}")


def median(moved: np.ndarray) -> float:
    return float(np.median(np.hypot(moved[:, 0], moved[:, 1])))


def reading(budget: PersonalBudget) -> None:
    degrees = 60.0 + 15.0 * invented.uniform(PEOPLE)
    laplace = BoundedLaplace(ValueGrid.of(0.0, 120.0, step=0.5), epsilon=1.0)
    mean = estimate_mean(laplace, release(laplace, degrees, IDS, budget))
    print(f"mean reading: {degrees.mean():.2f} degrees, estimated {mean.low:.1f} to {mean.high:.1f}")


def ask_again_and_again(budget: PersonalBudget) -> None:
    laplace = BoundedLaplace(ValueGrid.of(300, 850, whole=True), epsilon=1.0)
    answers = 0
    try:
        while True:
            release(laplace, np.array([700]), IDS[:1], budget)
            answers += 1
    except PolicyRefused as refusal:
        print(f"asked about {IDS[0]} again: {answers} more answers, then: {refusal.what}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, key = Path(folder) / "budget.sqlite", os.urandom(32)  # an owner keeps both for good
        budget = PersonalBudget.create(path, key)
        budget.declare(epsilon=5.0, per_metre=0.01)
        for case in (credit_score, treatment, position, reading, ask_again_and_again):
            case(budget)
        budget.close()


if __name__ == "__main__":
    main()
