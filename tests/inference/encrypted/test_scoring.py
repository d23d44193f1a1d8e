"""Rows in, answers out, under encryption: the same answers as in the clear, within what is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.encrypted.rows import encrypted, in_the_clear, make_rows

from cloister.errors import InputError, SchemaError
from cloister.inference import ModelArtifact
from cloister.inference.encrypted import Card, compare, encrypt_rows, score_rows
from cloister.inference.encrypted.answers import rounded
from cloister.learning.sections import ModelSection
from cloister.vault.sources import TableSource

pytest.importorskip("tenseal")

EXACT = [
    ("number", ModelSection(kind="linear")),
    ("boolean", ModelSection(kind="logistic")),
    ("category", ModelSection(kind="softmax", classes=3)),
    ("integer", ModelSection(kind="softmax", classes=3)),
]
HIDDEN = [
    ("number", ModelSection(kind="mlp", hidden=(2,), activation="tanh")),
    ("boolean", ModelSection(kind="mlp", hidden=(2,), classes=2, activation="tanh")),
    ("category", ModelSection(kind="mlp", hidden=(2,), classes=3, activation="relu")),
]


def same(answers: pa.Table, plain: pa.Table, error: float) -> None:
    assert answers.schema == plain.schema
    for name in plain.column_names:
        if name == "prediction":
            assert answers[name].equals(plain[name])
        else:
            np.testing.assert_allclose(answers[name].to_numpy(), plain[name].to_numpy(), rtol=0, atol=error)


@pytest.mark.parametrize(("label", "section"), EXACT)
def test_a_linear_model_scores_as_in_the_clear(label: str, section: ModelSection) -> None:
    artifact, rows = make_artifact(label, section), make_rows(50)
    request, key = encrypted(artifact, rows)
    opened = key.open(score_rows(artifact, request))
    same(opened.answers, in_the_clear(artifact, rows), 25 * opened.error)  # a value is in units of 25
    assert opened.error < 2e-6
    assert opened.noise < 1e-6
    assert opened.doubtful == 0


@pytest.mark.parametrize(("label", "section"), HIDDEN)
def test_a_hidden_layer_scores_within_its_bound(label: str, section: ModelSection) -> None:
    artifact, rows = make_artifact(label, section), make_rows(200)
    request, key = encrypted(artifact, rows)
    opened = key.open(score_rows(artifact, request))
    plain = in_the_clear(artifact, rows)
    if opened.doubtful:
        plain, answers = (table.drop_columns(["prediction"]) for table in (plain, opened.answers))
    else:
        answers = opened.answers
    same(answers, plain, 25 * opened.error if label == "number" else opened.error)
    assert opened.error < 0.2


def test_rows_beyond_one_ciphertext_stay_in_order() -> None:
    artifact, rows = make_artifact("number", ModelSection(kind="linear")), make_rows(4096 + 3)
    request, key = encrypted(artifact, rows)
    same(key.open(score_rows(artifact, request)).answers, in_the_clear(artifact, rows), 2e-5)


def test_local_scaling_stays_with_the_client() -> None:
    artifact = make_artifact("boolean", ModelSection(kind="logistic"), scaling="local")
    rows, reference = make_rows(20), make_rows(100, seed=1)
    request, key = encrypted(artifact, rows, reference)
    same(key.open(score_rows(artifact, request)).answers, in_the_clear(artifact, rows, reference), 1e-5)
    with pytest.raises(InputError, match="needs rows to scale by"):
        encrypted(artifact, rows)


def test_a_value_too_many_deviations_away_is_refused_by_name() -> None:
    artifact = make_artifact("boolean", ModelSection(kind="logistic"), scaling="local")
    reference = make_rows(100).set_column(2, "fluid", pa.array([1.0, 1.0001] * 50))
    with pytest.raises(InputError, match="'fluid' lies more than 64 deviations"):
        encrypted(artifact, make_rows(20), reference)


def test_rows_are_checked_before_anything_is_encrypted() -> None:
    card = Card.of(make_artifact("number", ModelSection(kind="linear")))
    rows = make_rows(3).set_column(0, "age", pa.array([20, 30, 17]))
    with pytest.raises(SchemaError) as caught:
        encrypt_rows(card, TableSource(rows))
    assert (caught.value.line, caught.value.column) == (3, "age")
    assert "17" not in str(caught.value)
    with pytest.raises(SchemaError, match="absent"):
        encrypt_rows(card, TableSource(make_rows(3).drop_columns(["pain"])))
    with pytest.raises(InputError, match="no row"):
        encrypt_rows(card, TableSource(make_rows(0)))


def test_weights_of_zero_are_no_special_case() -> None:
    artifact = make_artifact("number", ModelSection(kind="linear"))
    for parameters in (np.array([0, 0, 0, 0, 0, 0.25]), np.array([0, 0.5, 0, 0, 0, 0.0])):
        still = dataclasses.replace(artifact, parameters=parameters)
        request, key = encrypted(still, make_rows(5))
        same(key.open(score_rows(still, request)).answers, in_the_clear(still, make_rows(5)), 2e-5)


def test_a_dead_hidden_layer_is_no_special_case() -> None:
    artifact = make_artifact("number", ModelSection(kind="mlp", hidden=(2,), activation="tanh"))
    dead = ModelArtifact(artifact.card, np.zeros_like(artifact.parameters))
    request, key = encrypted(dead, make_rows(5))
    same(key.open(score_rows(dead, request)).answers, in_the_clear(dead, make_rows(5)), 2e-5)


def test_answers_do_not_depend_on_the_key() -> None:
    """Noise does; it is rounded away."""
    artifact, rows = make_artifact("number", ModelSection(kind="linear")), make_rows(5)
    tables = []
    for _ in range(2):
        request, key = encrypted(artifact, rows)
        tables.append(key.open(score_rows(artifact, request)).answers)
    same(*tables, 25 * 2.0**-19)
    assert rounded(np.array([2.0**-22, 0.5])).tolist() == [0.0, 0.5]


def test_a_report_has_cost_and_accuracy() -> None:
    report = compare(make_artifact("boolean", ModelSection(kind="logistic")), TableSource(make_rows(100)))
    assert (report.rows, report.features, report.circuit) == (100, 5, "linear")
    assert report.label_flips == 0
    assert 0.0 <= report.max_error <= report.bound < 2e-6
    assert report.up_bytes * 100 > 5 * 96 * 1024  # 8192 residues of 12 bytes
    assert report.plain_bytes == 40.0
    assert min(report.encrypt_ms, report.score_ms, report.open_ms, report.plain_ms) > 0.0
    regression = compare(make_artifact("number", ModelSection(kind="linear")), TableSource(make_rows(10)))
    assert regression.max_error <= 25 * regression.bound
