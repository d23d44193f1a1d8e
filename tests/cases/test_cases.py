from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.cases import CASES, Case, find_case
from cloister.errors import InputError
from cloister.learning import DataSection, FeatureMap, build_model
from cloister.types import check_name
from cloister.vault import load_schema


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_complete(case: Case) -> None:
    check_name(case.name)
    assert len(case.sites) >= 3
    assert all(check_name(site) for site in case.sites)
    assert len(set(case.sites)) == len(case.sites)
    assert case.public_rows is True
    for lang in ("en", "zh"):
        assert case.title.to(lang)
        assert case.question.to(lang)
        assert case.source(lang).licence
        assert case.source(lang).public_rows
        assert case.subject(lang).sites


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_schema_and_model_fit(case: Case) -> None:
    schema = load_schema(case.schema_toml.encode())
    schema.require_complete()
    assert schema.label == case.label
    data = DataSection(schema=schema.digest().hex(), features=schema.features, label=case.label)
    features = FeatureMap.build(schema, data, case.model)
    assert features.class_names[1] == case.positive
    assert build_model(case.model, features.width).size > 0


def test_find_case() -> None:
    assert find_case("diagnosis").name == "diagnosis"


@pytest.mark.parametrize(("name", "near"), [("diagnosys", "'diagnosis'"), ("DIAGNOSIS", "'diagnosis'")])
def test_a_typo_names_the_nearest_case(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        find_case(name)
    assert near in str(caught.value)
    assert all(case.name in str(caught.value) for case in CASES)


def test_an_unknown_case_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=re.escape("The cases are: diagnosis")):
        find_case("zzz" * 100)


def test_a_case_whose_loader_gives_other_sites_is_refused() -> None:
    import dataclasses

    case = dataclasses.replace(CASES[0], sites=("a", "b", "c"))
    with pytest.raises(InputError, match="not those of its sites"):
        case.load(None)


def test_a_site_without_rows_is_refused() -> None:
    import dataclasses

    from cloister.cases import CaseData, SiteRows

    def loader(data_dir: Path | None) -> CaseData:
        sites = dict(CASES[0].loader(data_dir).sites)
        first = next(iter(sites))
        sites[first] = SiteRows(sites[first].train, sites[first].test.slice(0, 0))
        return CaseData(sites)

    with pytest.raises(InputError, match="harbour has no rows"):
        dataclasses.replace(CASES[0], loader=loader).load(None)
