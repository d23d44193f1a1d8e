"""What a case computes from rows in the open, and that it does not where rows are not public."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cloister.cases import Case, CaseData, find_case
from cloister.cases.privacy import _claimed_variance, _Comparisons, privacy_of_case
from cloister.learning import (
    DataSection,
    HubEntry,
    Plan,
    SiteEntry,
    StudySection,
    pin_initial,
    plan_model,
)
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.report import Budget
from cloister.vault import Schema, load_schema

CASE: Case = find_case("diagnosis")
BUDGETS = tuple(Budget(site, 6.0, 2e-4, 3.0, 4.0, 0.3) for site in CASE.sites)


@dataclasses.dataclass(frozen=True)
class World:
    """A private study of few rounds, as it is before it ran."""

    plan: Plan
    schema: Schema
    data: CaseData
    terms: PrivacyTerms

    def privacy(self, plan: Plan | None = None, terms: PrivacyTerms | None = None) -> Any:
        result: Any = SimpleNamespace(privacy=terms or self.terms, members=CASE.sites)
        return privacy_of_case(plan or self.plan, result, self.data, self.schema, BUDGETS)


@pytest.fixture(scope="module")
def world() -> World:
    schema = load_schema(CASE.schema_toml.encode())
    private = msgspec.structs.replace(CASE.private.privacy, epsilon=None, noise_multiplier=5.0)
    plan = Plan(
        study=StudySection(name=CASE.name, purpose=CASE.purpose),
        hub=HubEntry(name="hub", identity="ab" * 32),
        sites=tuple(
            SiteEntry(name=name, identity=f"{place:02x}" * 32, dataset="train")
            for place, name in enumerate(CASE.sites, start=1)
        ),
        data=DataSection(
            schema=schema.digest().hex(), features=schema.features, label=CASE.label, public_rows=True
        ),
        model=CASE.model,
        training=msgspec.structs.replace(CASE.private.training, rounds=12, average_last=4),
        aggregation=CASE.aggregation,
        privacy=private,
    )
    plan = pin_initial(plan, schema)
    _, model = plan_model(plan, schema)
    terms = PrivacyTerms.of(plan, plan.params(len(CASE.sites)), private_model(model))
    return World(plan, schema, CASE.load(None), terms)


def test_curve_and_baselines_are_there_for_public_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.cases.privacy._RUNS", 3)
    privacy = world.privacy()
    assert privacy.epsilon is None
    epsilons = [point.epsilon for point in privacy.curve]
    assert epsilons == sorted(epsilons)
    assert privacy.epsilon_colluders in epsilons
    assert {point.runs for point in privacy.curve} == {privacy.baselines.runs} == {3}
    assert set(privacy.baselines.local) == set(CASE.sites)
    assert privacy.budgets == BUDGETS
    assert privacy.audit is None


def test_nothing_is_computed_from_rows_that_are_not_public(world: World) -> None:
    closed = msgspec.structs.replace(
        world.plan, data=msgspec.structs.replace(world.plan.data, public_rows=False)
    )
    blind = dataclasses.replace(world, data=CaseData({}))  # any look at the rows would fail
    privacy = blind.privacy(plan=closed)
    assert privacy.curve == ()
    assert privacy.baselines is None
    assert privacy.epsilon_hub < privacy.epsilon_colluders


@pytest.mark.parametrize(("mode", "by_record"), [("local", True), ("distributed", False)])
def test_another_mechanism_is_not_simulated_by_this_one(world: World, mode: str, by_record: bool) -> None:
    terms: Any = SimpleNamespace(section=SimpleNamespace(mode=mode, by_record=by_record))
    assert _Comparisons.of(world.plan, terms, world.data, world.schema) is None


def test_who_is_alone_adds_the_noise_that_the_claim_counts(world: World) -> None:
    terms, minimum = world.terms, world.plan.params(len(CASE.sites)).minimum
    assert _claimed_variance(terms) == pytest.approx(terms.share_variance * (minimum - 1))
    hub = dataclasses.replace(terms, section=msgspec.structs.replace(terms.section, adversary="hub"))
    assert _claimed_variance(hub) == pytest.approx(terms.share_variance * minimum)


def test_a_study_without_a_claim_has_no_privacy_to_report(world: World) -> None:
    result: Any = SimpleNamespace(privacy=None, members=CASE.sites)
    with pytest.raises(TypeError, match="claims no privacy"):
        privacy_of_case(world.plan, result, world.data, world.schema, ())
