"""Answers: right against an independent computation, typed as the label, and refused with line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.inference.artifacts import make_artifact

from cloister.errors import InputError, SchemaError
from cloister.inference import ModelArtifact, Predictor, in_memory_file
from cloister.learning.sections import ModelSection

ROWS: dict[str, list[Any]] = {
    "age": [18, 59, 100],
    "pain": ["none", "typical", "atypical"],
    "fluid": [0.0, None, 2.0],
}
X = np.array([[-1.0, 0, 0, -1.0, 0], [0.0, 1, 0, 0.0, 1], [1.0, 0, 1, 1.0, 0]])
LOGISTIC = ModelSection(kind="logistic")


def by_hand(artifact: Any) -> Any:
    """Scores of a model without hidden layer: weights row by row of the inputs, then biases."""
    outputs = artifact.parameters.size // 6
    weights = artifact.parameters[: 5 * outputs].reshape(5, outputs)
    return X @ weights + artifact.parameters[5 * outputs :]


def test_two_classes() -> None:
    artifact = make_artifact("boolean", LOGISTIC)
    answer = Predictor.of(artifact).predict(pa.table(ROWS))
    probability = 1 / (1 + np.exp(-by_hand(artifact)[:, 0]))
    assert answer.column_names == ["prediction", "probability"]
    np.testing.assert_allclose(answer["probability"].to_numpy(), probability, rtol=1e-12)
    assert answer["prediction"].to_pylist() == (probability >= 0.5).tolist()
    assert answer.schema.field("prediction").type == pa.bool_()


def test_more_classes_are_named() -> None:
    artifact = make_artifact("category", ModelSection(kind="softmax", classes=3))
    answer = Predictor.of(artifact).predict(pa.table(ROWS))
    scores = np.exp(by_hand(artifact))
    expected = scores / scores.sum(axis=1, keepdims=True)
    names = ["mild", "severe", "none"]
    assert answer.column_names == ["prediction", *(f"probability={name}" for name in names)]
    for index, name in enumerate(names):
        np.testing.assert_allclose(answer[f"probability={name}"].to_numpy(), expected[:, index], rtol=1e-12)
    assert answer["prediction"].to_pylist() == [names[i] for i in expected.argmax(axis=1)]


def test_classes_that_are_numbers_come_back_as_numbers() -> None:
    artifact = make_artifact("integer", ModelSection(kind="softmax", classes=3))
    answer = Predictor.of(artifact).predict(pa.table(ROWS))
    assert answer.schema.field("prediction").type == pa.int64()
    assert set(answer["prediction"].to_pylist()) <= {3, 4, 5}
    assert answer.column_names[1:] == ["probability=3", "probability=4", "probability=5"]


def test_a_regression_answers_in_the_labels_unit() -> None:
    artifact = make_artifact("number", ModelSection(kind="linear"))
    answer = Predictor.of(artifact).predict(pa.table(ROWS))
    np.testing.assert_allclose(answer["value"].to_numpy(), (by_hand(artifact)[:, 0] + 1) * 25.0, rtol=1e-12)


def test_a_network_answers_one_row_as_it_answers_many() -> None:
    artifact = make_artifact("category", ModelSection(kind="mlp", hidden=(7, 3), classes=3))
    predictor = Predictor.of(artifact)
    table = pa.table(ROWS)
    together = predictor.predict(table)
    for row in range(3):
        alone = predictor.predict(table.slice(row, 1))
        assert alone["prediction"][0] == together["prediction"][row]
        np.testing.assert_allclose(
            alone["probability=none"].to_numpy(), together["probability=none"].to_numpy()[row : row + 1]
        )


def test_columns_that_the_model_does_not_read_do_not_matter() -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC))
    plain = predictor.predict(pa.table(ROWS))
    more = pa.table({"y": ["nonsense"] * 3, **ROWS, "patient": [None] * 3, "note": [[1], [], None]})
    assert predictor.predict(more).equals(plain)
    reordered = more.select(["fluid", "note", "pain", "age", "y"])
    assert predictor.predict(reordered).equals(plain)


def test_a_model_read_back_answers_the_same() -> None:
    artifact = make_artifact("category", ModelSection(kind="mlp", hidden=(3,), classes=3))
    again = ModelArtifact.from_bytes(artifact.to_bytes())
    assert Predictor.of(again).predict(pa.table(ROWS)).equals(Predictor.of(artifact).predict(pa.table(ROWS)))


def test_no_rows_give_no_answers() -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC))
    empty = pa.table(
        {
            "age": pa.array([], pa.int64()),
            "pain": pa.array([], pa.string()),
            "fluid": pa.array([], pa.float64()),
        }
    )
    assert predictor.predict(empty).num_rows == 0


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("age", 17, "bounds"),
        ("age", 101, "bounds"),
        ("age", 50.5, "whole number"),
        ("age", None, "missing"),
        ("age", "old", "number"),
        ("pain", "severe", "categories"),
        ("pain", None, "missing"),
        ("fluid", float("nan"), "finite"),
        ("fluid", float("inf"), "finite"),
        ("fluid", -0.1, "bounds"),
    ],
)
def test_a_row_that_breaks_the_schema_is_refused_by_place(column: str, value: Any, reason: str) -> None:
    rows = {name: list(values) for name, values in ROWS.items()}
    rows[column][1] = value
    if isinstance(value, str) and column == "age":
        rows[column] = [str(each) for each in rows[column]]
    with pytest.raises(SchemaError, match=reason) as caught:
        Predictor.of(make_artifact("boolean", LOGISTIC)).predict(pa.table(rows))
    assert (caught.value.line, caught.value.column) == (2, column)
    assert str(value) not in caught.value.what or value is None


def test_the_first_bad_row_is_named_whatever_the_column() -> None:
    rows = {"age": [18, 59, 7], "pain": ["none", "never", "none"], "fluid": [0.0, 0.0, 9.0]}
    with pytest.raises(SchemaError) as caught:
        Predictor.of(make_artifact("boolean", LOGISTIC)).predict(pa.table(rows))
    assert (caught.value.line, caught.value.column) == (2, "pain")


def test_an_absent_column_is_named() -> None:
    with pytest.raises(SchemaError, match="absent") as caught:
        Predictor.of(make_artifact("boolean", LOGISTIC)).predict(pa.table({"age": [20]}))
    assert caught.value.column == "pain"


def test_files_are_read_with_their_lines(tmp_path: Path) -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC))
    expected = predictor.predict(pa.table(ROWS))
    csv = tmp_path / "rows.csv"
    csv.write_bytes(b'note,age,pain,fluid\n"two\nlines",18,none,0\n,59,typical,\n,100,atypical,2\n')
    assert predictor.predict_file(csv).equals(expected)
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table(ROWS), parquet)
    assert predictor.predict_file(parquet).equals(expected)
    csv.write_bytes(b'note,age,pain,fluid\n"two\nlines",18,none,0\n,59,typical,7\n')
    with pytest.raises(SchemaError) as caught:
        predictor.predict_file(csv)
    assert (caught.value.line, caught.value.column) == (4, "fluid")
    csv.write_bytes(b"age,pain,fluid\n18,none,0\n59,typical\n")
    with pytest.raises(SchemaError) as caught:
        predictor.predict_file(csv)
    assert caught.value.line == 3


def test_bytes_in_memory_read_as_a_file() -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC))
    with in_memory_file(b"age,pain,fluid\n18,none,0\n59,typical,\n100,atypical,2\n") as path:
        assert predictor.predict_file(path).equals(predictor.predict(pa.table(ROWS)))
        assert path.exists()
    assert not path.exists()


def test_local_scaling_needs_rows_to_scale_by() -> None:
    artifact = make_artifact("boolean", LOGISTIC, scaling="local")
    predictor = Predictor.of(artifact)
    table = pa.table({**ROWS, "fluid": [0.0, 1.0, 2.0]})
    with pytest.raises(InputError, match="local"):
        predictor.predict(table)
    fitted = predictor.fit(table)
    raw = np.array([[18.0, 0, 0, 0.0, 0], [59.0, 1, 0, 1.0, 0], [100.0, 0, 1, 2.0, 0]])
    deviation = raw.std(axis=0, ddof=1)
    deviation[deviation == 0] = 1.0
    scaled = (raw - raw.mean(axis=0)) / deviation
    scores = scaled @ artifact.parameters[:5] + artifact.parameters[5]
    np.testing.assert_allclose(
        fitted.predict(table)["probability"].to_numpy(), 1 / (1 + np.exp(-scores)), rtol=1e-12
    )
    with pytest.raises(SchemaError):
        predictor.fit(pa.table({**ROWS, "age": [1, 2, 3]}))


def test_fitting_on_a_file_is_fitting_on_its_rows(tmp_path: Path) -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC, scaling="local"))
    table = pa.table({**ROWS, "fluid": [0.0, 1.0, 2.0]})
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    assert predictor.fit_file(tmp_path / "rows.csv").features == predictor.fit(table).features
