from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from cloister.cases.heart import FEATURES, HOSPITALS, LABEL, SCHEMA_TOML, load_hospitals, split
from cloister.errors import InputError
from cloister.learning import DataSection, FeatureMap, ModelSection
from cloister.vault import load_schema

SCHEMA = load_schema(SCHEMA_TOML.encode())
ROW = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"


@pytest.fixture
def data() -> Path:
    named = os.environ.get("CLOISTER_TEST_DATA")
    if not named or not (Path(named) / "disease").is_dir():
        pytest.skip("set CLOISTER_TEST_DATA to the folder of public data to run this test")
    return Path(named)


def feature_map(scaling: str = "bounds") -> FeatureMap:
    section = DataSection(schema=SCHEMA.digest().hex(), features=FEATURES, label=LABEL, scaling=scaling)  # type: ignore[arg-type]
    return FeatureMap.build(SCHEMA, section, ModelSection(kind="logistic"))


def write(folder: Path, text: str = ROW * 12) -> Path:
    for word in HOSPITALS.values():
        (folder / f"processed.{word}.data").write_text(text)
    return folder


def test_rows_and_split_are_those_of_the_benchmark(data: Path) -> None:
    tables = load_hospitals(data)
    assert {name: table.num_rows for name, table in tables.items()} == {
        "cleveland": 303,
        "hungary": 261,
        "switzerland": 46,
        "va": 130,
    }
    sizes = [tuple(part.num_rows for part in split(table)) for table in tables.values()]
    assert sizes == [(199, 104), (172, 89), (30, 16), (85, 45)]


def test_features_are_flamby_s_thirteen(data: Path) -> None:
    """Derived again from the raw file: z-scored by the train rows with ddof 1; the same up to order."""
    table = load_hospitals(data)["cleveland"]
    raw = np.genfromtxt(
        data / "disease" / "heart_processed.cleveland.data", delimiter=",", missing_values="?"
    )
    labels = (raw[:, 13] > 0).astype(int)
    train, test = train_test_split(
        np.arange(303), test_size=1.0 - 0.66, train_size=0.66, random_state=43, shuffle=True, stratify=labels
    )
    train, test = np.sort(train), np.sort(test)
    dummies = [(raw[:, 2] == level) for level in (2, 3, 4)] + [(raw[:, 6] == level) for level in (1, 2)]
    kept = [raw[:, i] for i in (0, 1, 3, 4, 5, 7, 8, 9)]
    theirs = np.column_stack([*kept, *dummies]).astype(float)
    theirs = (theirs - theirs[train].mean(axis=0)) / theirs[train].std(axis=0, ddof=1)
    own_train, own_test = split(table)
    features = feature_map("local").fit(own_train)
    X, y = features.transform(own_test)
    names = features.names
    order = ["age", "sex=male", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"]
    order += [name for name in names if name.startswith(("cp=", "restecg="))]
    np.testing.assert_allclose(
        X[:, [names.index(name) for name in order]], theirs[test], rtol=1e-9, atol=1e-12
    )
    assert y.tolist() == labels[test].tolist()


def test_all_rows_lie_within_the_schema(data: Path) -> None:
    features = feature_map()
    assert features.width == 13
    for table in load_hospitals(data).values():
        assert np.abs(features.transform_features(table)).max() <= 1


def test_rows_with_gaps_are_left_out_and_both_names_are_found(tmp_path: Path) -> None:
    gap = ROW.replace("150.0", "?")
    late = ROW.replace("3.0,0.0,6.0,0", "?,?,?,2")
    folder = tmp_path / "disease"
    folder.mkdir()
    for word in HOSPITALS.values():
        (folder / f"heart_processed.{word}.data").write_text(ROW + gap + late)
    table = load_hospitals(tmp_path)["va"]
    assert table.num_rows == 2
    assert table[LABEL].to_pylist() == [False, True]
    assert table["cp"].to_pylist() == ["typical angina"] * 2


def test_a_hospital_of_one_class_is_split_without_strata(tmp_path: Path) -> None:
    train, test = split(load_hospitals(write(tmp_path))["cleveland"])
    assert (train.num_rows, test.num_rows) == (7, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2,3\n",
        ROW.replace("63.0", "old"),
        ROW.replace("1.0,1.0", "1.0,9.0"),
        ROW.replace("1.0,1.0", "1.0,1.5"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_hospitals(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"processed\.cleveland\.data"):
        load_hospitals(tmp_path)
