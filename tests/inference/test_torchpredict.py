"""Predictions of a module in a Python file: the file's hash, its start and its size are the release's, or nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.modules import CODE, make_module
from tests.inference.test_predictor import ROWS, X

from cloister.errors import InputError, IntegrityError, PolicyRefused, SchemaError
from cloister.inference import ModelArtifact, Predictor
from cloister.inference.torchpredict import allowed_code, needs_code, torch_predictor
from cloister.learning.sections import ModelSection

pytest.importorskip("torch", reason="needs the extra torch")


def by_hand(artifact: ModelArtifact, outputs: int) -> np.ndarray:
    """The module of `modules.CODE`, in float64 and numpy; weights of torch are (out, in)."""
    params = artifact.parameters.astype(np.float32).astype(np.float64)
    first, bias = params[:20].reshape(4, 5), params[20:24]
    second, last = params[24 : 24 + 4 * outputs].reshape(outputs, 4), params[24 + 4 * outputs :]
    return np.tanh((X @ first.T + bias) * 2.0) @ second.T + last


def test_two_classes_against_a_computation_by_hand(tmp_path: Path) -> None:
    artifact = ModelArtifact.from_bytes(make_module(scratch=tmp_path).to_bytes())
    predictor = torch_predictor(artifact, CODE, scratch=tmp_path)
    answer = predictor.predict(pa.table(ROWS))
    scores = by_hand(artifact, 2)
    expected = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    assert predictor.columns == tuple(answer.column_names) == ("prediction", "probability")
    np.testing.assert_allclose(answer["probability"].to_numpy(), expected, rtol=1e-5)
    assert answer["prediction"].to_pylist() == (expected >= 0.5).tolist()


def test_more_classes_and_a_number(tmp_path: Path) -> None:
    three = make_module("category", 3, factory="build_three", scratch=tmp_path)
    answer = torch_predictor(three, CODE, scratch=tmp_path).predict(pa.table(ROWS))
    scores = np.exp(by_hand(three, 3))
    found = np.stack([answer[name].to_numpy() for name in answer.column_names[1:]], axis=1)
    np.testing.assert_allclose(found, scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    number = make_module("number", 0, factory="build_number", scratch=tmp_path)
    answer = torch_predictor(number, CODE, scratch=tmp_path).predict(pa.table(ROWS))
    np.testing.assert_allclose(answer["value"].to_numpy(), (by_hand(number, 1)[:, 0] + 1) * 25, rtol=1e-5)


def test_columns_are_known_without_the_code(tmp_path: Path) -> None:
    for label, classes, factory in (
        ("boolean", 2, "build"),
        ("category", 3, "build_three"),
        ("number", 0, "build_number"),
    ):
        artifact = make_module(label, classes, factory=factory, scratch=tmp_path)
        with_code = torch_predictor(artifact, CODE, scratch=tmp_path)
        assert needs_code(artifact)
        assert Predictor.of(artifact).columns == with_code.columns
        with pytest.raises(InputError, match="allow-user-code"):
            Predictor.of(artifact).predict(pa.table(ROWS))


def test_one_row_is_answered_as_in_company_and_bad_rows_by_place(tmp_path: Path) -> None:
    predictor = torch_predictor(make_module(scratch=tmp_path), CODE, scratch=tmp_path)
    table = pa.table(ROWS)
    alone = [predictor.predict(table.slice(row, 1))["probability"][0].as_py() for row in range(3)]
    np.testing.assert_allclose(alone, predictor.predict(table)["probability"].to_numpy(), rtol=1e-6)
    with pytest.raises(SchemaError) as caught:
        predictor.predict(pa.table({**ROWS, "age": [18, 7, 20]}))
    assert (caught.value.line, caught.value.column) == (2, "age")
    assert predictor.predict(table.slice(0, 0)).num_rows == 0


def test_other_code_than_the_plans_does_not_run(tmp_path: Path) -> None:
    artifact = make_module(scratch=tmp_path)
    mark = tmp_path / "ran"
    other = CODE + f"\nopen({str(mark)!r}, 'w').close()\n".encode()
    for act in (
        lambda: allowed_code(artifact, other),
        lambda: torch_predictor(artifact, other, scratch=tmp_path),
    ):
        with pytest.raises(IntegrityError, match="SHA-256"):
            act()
    with pytest.raises(PolicyRefused, match="allow-user-code"):
        allowed_code(artifact, None)
    assert not mark.exists()
    assert not (tmp_path / "model.py").exists()
    assert allowed_code(artifact, CODE) == CODE


def test_a_built_in_model_takes_no_code(tmp_path: Path) -> None:
    artifact = make_artifact("boolean", ModelSection(kind="logistic"))
    assert allowed_code(artifact, None) is None
    assert not needs_code(artifact)
    with pytest.raises(InputError, match="no code"):
        allowed_code(artifact, CODE)
    with pytest.raises(InputError, match="no code"):
        torch_predictor(artifact, CODE, scratch=tmp_path)


def test_a_frozen_part_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """The code reads a file that the hash does not cover; exchanged, its module is another."""
    kept = tmp_path / "scale"
    kept.write_text("2.0")
    read = f"float(__import__('pathlib').Path({str(kept)!r}).read_text()))"
    code = CODE.replace(b"2.0)", read.encode())
    artifact = make_module(code=code, scratch=tmp_path)
    assert torch_predictor(artifact, code, scratch=tmp_path).predict(pa.table(ROWS)).num_rows == 3
    kept.write_text("3.0")
    with pytest.raises(IntegrityError, match="pinned"):
        torch_predictor(artifact, code, scratch=tmp_path)


@pytest.mark.parametrize("pinned", ["", "b" * 64])
def test_a_start_that_is_not_pinned_is_refused(tmp_path: Path, pinned: str) -> None:
    with pytest.raises(IntegrityError, match="pinned"):
        torch_predictor(make_module(pinned=pinned, scratch=tmp_path), CODE, scratch=tmp_path)


def test_parameters_of_another_module_are_refused(tmp_path: Path) -> None:
    artifact = make_module(scratch=tmp_path)
    short = replace(artifact, parameters=artifact.parameters[:-1])
    with pytest.raises(IntegrityError, match="parameters"):
        torch_predictor(short, CODE, scratch=tmp_path)
