"""Plans between organisations: written from trusted identities and a schema, without anybody's home."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.parties import PURPOSE, SCHEMA

from cloister.crypto import Identity
from cloister.learning import load_plan

ALL = ("--partner", "ben", "--partner", "eve", "--partner", "kim")


@pytest.fixture
def people() -> dict[str, Identity]:
    return {name: Identity.generate(name) for name in ("ann", "ben", "eve", "kim")}


@pytest.fixture
def init(homes: Path, cloister: Callable[..., Any]) -> Callable[..., Any]:
    """`study init` in the home of ann, who is the hub and has nobody else's home or rows."""
    (homes / "work" / "schema.toml").write_bytes(SCHEMA)
    return lambda *options: cloister("study", "init", "loans", "--purpose", PURPOSE, *options)


def test_a_plan_names_partners_by_the_identities_trusted_here(
    init: Callable[..., Any], people: dict[str, Identity], homes: Path
) -> None:
    ending = init(*ALL, "--schema", "schema.toml", "--dataset", "loans", "--rounds", "3")
    assert ending.code == 0
    plan = load_plan(homes / "work" / "plan.toml")
    assert [(each.name, each.identity) for each in plan.sites] == [
        (name, people[name].fingerprint) for name in ("ben", "eve", "kim")
    ]
    assert {each.dataset for each in plan.sites} == {"loans"}
    assert plan.hub.identity == people["ann"].fingerprint
    assert plan.model.initial
    assert plan.privacy is None
    assert "study check plan.toml --schema schema.toml" in ending.out
    assert PURPOSE in ending.err


def test_each_partner_may_have_a_dataset_of_its_own_name(init: Callable[..., Any], homes: Path) -> None:
    names = ("--dataset", "loans", "--dataset", "credits", "--dataset", "kredite")
    assert init(*ALL, "--schema", "schema.toml", *names).code == 0
    plan = load_plan(homes / "work" / "plan.toml")
    assert [each.dataset for each in plan.sites] == ["loans", "credits", "kredite"]


def test_delta_follows_from_the_rows_of_all(
    init: Callable[..., Any], cloister: Callable[..., Any], homes: Path
) -> None:
    options = (*ALL, "--schema", "schema.toml", "--epsilon", "2", "--rounds", "4", "--rows", "5000")
    ending = init(*options)
    assert ending.code == 0
    plan = load_plan(homes / "work" / "plan.toml")
    assert plan.privacy is not None
    assert plan.privacy.delta == 2e-5
    checked = cloister("study", "check", "plan.toml", "--schema", "schema.toml", "--json")
    assert checked.json["privacy"]["epsilon_colluders"] <= 2.0
    assert init(*options, "--delta", "1e-3", "--out", "loose.toml").code == 2  # above 1 / rows


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nobody is named"),
        ((*ALL, "--site", "../ben"), "both homes and partners"),
        (ALL, "--schema"),
        (("--partner", "ben", "--partner", "nobody", "--schema", "schema.toml"), "nobody"),
        (("--partner", "ben", "--partner", "ben", "--schema", "schema.toml"), "named twice (ben)"),
        ((*ALL, "--schema", "schema.toml", "--dataset", "a", "--dataset", "b"), "2 datasets are named for 3"),
        ((*ALL, "--schema", "none.toml"), "none.toml"),
        ((*ALL, "--schema", "schema.toml", "--epsilon", "1"), "--rows"),
        ((*ALL, "--schema", "schema.toml", "--epsilon", "1", "--rows", "0"), "--rows"),
        ((*ALL, "--schema", "schema.toml", "--rows", "10"), "belong to --epsilon"),
        (("--site", "../ben", "--schema", "schema.toml"), "belong to --partner"),
        (("--site", "../ben", "--rows", "10"), "belong to --partner"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    init: Callable[..., Any], homes: Path, options: tuple[str, ...], words: str
) -> None:
    ending = init(*options)
    assert ending.code == 2
    assert words in ending.err
    assert ending.err.count("\n") == 1
    assert not (homes / "work" / "plan.toml").exists()
