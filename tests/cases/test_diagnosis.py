from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cloister.cases import CaseData, find_case
from cloister.errors import InputError
from cloister.vault import load_schema

CASE = find_case("diagnosis")


@pytest.fixture(scope="module")
def data() -> CaseData:
    return CASE.load(None)


def _all(data: CaseData) -> pa.Table:
    return pa.concat_tables([part for rows in data.sites.values() for part in (rows.train, rows.test)])


def test_sizes_are_uneven_and_complete(data: CaseData) -> None:
    sizes = {name: rows.train.num_rows + rows.test.num_rows for name, rows in data.sites.items()}
    assert sizes == {"harbour": 256, "lakeside": 154, "hillcrest": 102, "meadow": 57}
    assert sum(sizes.values()) == 569


def test_every_row_is_somewhere_once(data: CaseData) -> None:
    numbers = _all(data).column("biopsy").to_pylist()
    assert sorted(numbers) == [f"wdbc-{number:03d}" for number in range(569)]


def test_hospitals_see_different_patients(data: CaseData) -> None:
    def malignant(name: str) -> float:
        rows = pa.concat_tables([data.sites[name].train, data.sites[name].test])
        return float(pc.mean(pc.equal(rows.column("diagnosis"), "malignant").cast(pa.float64())).as_py())

    assert {name: round(malignant(name), 2) for name in CASE.sites} == {
        "harbour": 0.34,
        "lakeside": 0.39,
        "hillcrest": 0.55,
        "meadow": 0.14,
    }


def test_test_rows_hold_both_classes_at_every_hospital(data: CaseData) -> None:
    for rows in data.sites.values():
        assert set(rows.test.column("diagnosis").to_pylist()) == {"benign", "malignant"}
        assert 0.29 < rows.test.num_rows / (rows.test.num_rows + rows.train.num_rows) < 0.31


def test_the_division_never_changes(data: CaseData) -> None:
    """A stored vector: published figures of the case rest on this division."""
    digest = hashlib.sha256()
    for name, rows in data.sites.items():
        for part in (rows.train, rows.test):
            digest.update(f"{name}:{','.join(part.column('biopsy').to_pylist())};".encode())
    assert digest.hexdigest() == "c60293089e2d30da22188a5147346a047d8fca4e889bdc69abd134c5470ca790"


def test_rows_are_scikit_learns(data: CaseData) -> None:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    table = _all(data).sort_by("biopsy")
    assert len(bunch.feature_names) == 30
    for place, name in enumerate(bunch.feature_names):
        np.testing.assert_array_equal(table.column(name.replace(" ", "_")).to_numpy(), bunch.data[:, place])


def test_every_value_is_within_the_hand_written_bounds_and_no_bound_is_a_rows_extreme(data: CaseData) -> None:
    schema = load_schema(CASE.schema_toml.encode())
    table = _all(data)
    assert set(table.column_names) == set(schema.columns)
    for name in schema.features:
        bounds = schema.columns[name].bounds
        assert bounds is not None
        low, high = pc.min(table.column(name)).as_py(), pc.max(table.column(name)).as_py()
        assert bounds[0] <= low < high <= bounds[1]
        assert bounds[1] != high
        assert bounds[0] != low or low == 0.0


def test_identifiers_become_pseudonyms() -> None:
    column = load_schema(CASE.schema_toml.encode()).columns["biopsy"]
    assert (column.role, column.pseudonym) == ("id", True)


def test_the_folder_of_files_is_not_needed(tmp_path: Path) -> None:
    assert CASE.load(tmp_path).sites.keys() == CASE.load(None).sites.keys()


def test_other_rows_than_the_known_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(
        target_names=np.array(["malignant", "benign"]), target=np.zeros(9, int), data=np.zeros((9, 1))
    )
    monkeypatch.setattr("sklearn.datasets.load_breast_cancer", lambda: other)
    with pytest.raises(InputError, match="not the 569 known ones"):
        CASE.load(None)
