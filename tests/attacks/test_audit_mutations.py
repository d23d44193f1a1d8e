"""Mechanisms that are not what was accounted for: each mistake is made in the product's own code, and found.

Structural checks find them by name. The bound, which sees sums and model alone, must find those that leak by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.governance.audits import PRIVACY, audit_of, mechanism_to_audit, plan_to_audit

from cloister.governance.audit import CONSISTENT, VIOLATES
from cloister.learning import PrivacySection
from cloister.learning.attacks import Mechanism, make_canaries, structural_checks
from cloister.learning.attacks import local as local_module
from cloister.learning.private import closed_form, sums
from cloister.learning.private.sums import RowSums
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.privacy.mechanisms.sampling import IntegerNoise
from cloister.runtime import globalmodel

Mutation = Callable[[pytest.MonkeyPatch], None]
LOCAL = PrivacySection(mode="local", epsilon=2.0, delta=1e-4, clip=1.0, rate=0.2)
TWO_SHARES = 2


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(closed_form, "deflated", lambda model, clip: 2.0**60)


def twice_the_clip(patch: pytest.MonkeyPatch) -> None:
    right = closed_form.deflated
    patch.setattr(closed_form, "deflated", lambda model, clip: 2.0 * right(model, clip))


def clipped_sums_instead_of_rows(patch: pytest.MonkeyPatch) -> None:
    right = RowSums._vectors

    def vectors(self: RowSums, params: Any, index: Any, starts: Any, clip: float) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as inner:
            no_clipping(inner)
            for vector in list(right(self, params, index, starts, clip)):
                yield vector * min(1.0, clip / np.linalg.norm(vector))

    patch.setattr(RowSums, "_vectors", vectors)


def _noise(patch: pytest.MonkeyPatch, change: Callable[[Any, Any], Any]) -> None:
    right = IntegerNoise._blocks

    def blocks(self: IntegerNoise, count: int, random: Any) -> Iterator[Any]:
        for piece, values in right(self, count, random):
            yield piece, change(self, values)

    patch.setattr(IntegerNoise, "_blocks", blocks)


def a_quarter_of_the_noise(patch: pytest.MonkeyPatch) -> None:
    _noise(patch, lambda noise, values: np.rint(values / 4).astype(np.int64))


def flat_noise(patch: pytest.MonkeyPatch) -> None:
    """Of the right variance, but uniform: its tails hide nothing."""
    rng = np.random.default_rng(0)

    def change(noise: Any, values: Any) -> Any:
        width = np.sqrt(3.0 * noise.variance)
        return np.rint(rng.uniform(-width, width, len(values))).astype(np.int64)

    _noise(patch, change)


def a_share_is_missing(patch: pytest.MonkeyPatch) -> None:
    """One of two counted sites adds nothing, in every step."""
    right, calls = IntegerNoise.add_into, iter(range(10**9))

    def add_into(self: Any, target: Any, *, insecure_test_random: Any = None) -> None:
        if next(calls) % TWO_SHARES:
            right(self, target, insecure_test_random=insecure_test_random)

    patch.setattr(DiscreteGaussian, "add_into", add_into, raising=False)


def the_same_noise_everywhere(patch: pytest.MonkeyPatch) -> None:
    right = IntegerNoise.add_into

    def add_into(self: Any, target: Any, *, insecure_test_random: Any = None) -> None:
        right(self, target, insecure_test_random=bytes)

    patch.setattr(DiscreteGaussian, "add_into", add_into, raising=False)


def everyone_sampled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sums, "poisson_rows", lambda count, rate, random: np.arange(count))


def a_fixed_number_sampled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        sums,
        "poisson_rows",
        lambda count, rate, random: np.sort(random.permutation(count)[: round(rate * count)]),
    )


def half_a_rate_more(patch: pytest.MonkeyPatch) -> None:
    right = sums.poisson_rows
    patch.setattr(
        sums, "poisson_rows", lambda count, rate, random: right(count, min(1.0, 1.5 * rate), random)
    )


def another_divisor(patch: pytest.MonkeyPatch) -> None:
    right = globalmodel.server_mean

    def mean(*arguments: Any, divisor: float, **more: Any) -> Any:
        return right(*arguments, divisor=divisor / 4, **more)

    for module in (globalmodel, local_module):
        patch.setattr(module, "server_mean", mean)


CAUGHT_BY = {
    no_clipping: "contribution",
    twice_the_clip: "contribution",
    clipped_sums_instead_of_rows: "sample sizes",
    a_quarter_of_the_noise: "noise shares",
    flat_noise: "noise shares",
    a_share_is_missing: "noise shares",
    the_same_noise_everywhere: "summed noise",
    everyone_sampled: "sample sizes",
    a_fixed_number_sampled: "sample sizes",
    half_a_rate_more: "sample sizes",
    another_divisor: "divisor",
}


def mechanism(privacy: PrivacySection | None = None, **changes: Any) -> tuple[Mechanism, Any]:
    return mechanism_to_audit(plan_to_audit(privacy or PRIVACY, **changes))


def failing(made: Mechanism, start: Any) -> set[str]:
    canaries = make_canaries(made, start, features=2, classes=0)
    return {check.name for check in structural_checks(made, start, canaries) if not check.holds}


@pytest.mark.parametrize("mutation", CAUGHT_BY, ids=lambda mutation: mutation.__name__)
def test_a_mistake_is_found_by_name(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    made, start = mechanism()
    assert made.claim.shares == TWO_SHARES
    mutation(monkeypatch)
    assert CAUGHT_BY[mutation] in failing(made, start)


@pytest.mark.parametrize(
    "mutation",
    [no_clipping, a_quarter_of_the_noise, everyone_sampled, another_divisor],
    ids=lambda mutation: mutation.__name__,
)
@pytest.mark.parametrize("kind", ["local", "mlp"])
def test_so_it_is_in_other_modes(mutation: Mutation, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"model": {"kind": "mlp", "hidden": (4,), "classes": 2}} if kind == "mlp" else {}
    made, start = mechanism(LOCAL if kind == "local" else None, **changes)
    mutation(monkeypatch)
    assert CAUGHT_BY[mutation] in failing(made, start)


@pytest.mark.parametrize("privacy", [None, LOCAL], ids=["distributed", "local"])
def test_the_mechanism_as_it_is_passes(privacy: PrivacySection | None) -> None:
    assert failing(*mechanism(privacy)) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutation",
    [no_clipping, a_quarter_of_the_noise, everyone_sampled],
    ids=lambda mutation: mutation.__name__,
)
def test_what_leaks_much_is_found_by_guessing_alone(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guesses, without any structural check, put the bound above the claim."""
    plan = plan_to_audit(training={"rounds": 20})
    mutation(monkeypatch)
    report = audit_of(plan, canaries=900, confidence=0.95)
    assert report.claimed is not None
    assert report.bound is not None
    assert report.bound > report.claimed
    assert report.verdict == VIOLATES


@pytest.mark.slow
def test_the_mechanism_as_it_is_is_consistent() -> None:
    report = audit_of(plan_to_audit(training={"rounds": 20}), canaries=900)
    assert report.claimed == pytest.approx(2.0, abs=2e-3)
    assert report.bound is not None
    assert report.bound < report.claimed
    assert report.verdict == CONSISTENT


def test_a_failed_check_is_a_violation_though_the_bound_is_low(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_to_audit()
    another_divisor(monkeypatch)
    report = audit_of(plan, canaries=30)
    assert report.verdict == VIOLATES
    assert [check.name for check in report.failed] == ["divisor"]
    assert "divisor" in report.explanation
