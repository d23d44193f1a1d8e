"""Rows in JSON to predictions: as the predictor gives them, by whichever way; refused by place."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.artifacts import make_artifact
from tests.inference.openai.engine import get, post

from cloister.errors import InputError, SchemaError
from cloister.inference import ModelArtifact, ModelCard, Predictor
from cloister.inference.openai import TableApp
from cloister.inference.openai.arrowrows import arrow_table
from cloister.inference.openai.plainrows import PlainRows
from cloister.inference.openai.table import LONG
from cloister.inference.rows import read_rows
from cloister.learning import DataSection, FeatureMap
from cloister.learning.sections import ModelSection
from cloister.vault import load_schema
from cloister.vault.sources import TableSource

LOGISTIC = ModelSection(kind="logistic")
ROWS: list[dict[str, Any]] = [
    {"age": 18, "pain": "none", "fluid": 0.0},
    {"age": 59.0, "pain": "typical", "fluid": None, "patient": "SECRET", "note": [1]},
    {"age": 100, "pain": "atypical"},
]


def score(app: TableApp, body: object) -> tuple[int, Any]:
    reply = asyncio.run(app(post("/v1/score", body)))
    assert isinstance(reply.body, bytes)
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize(
    ("label", "model"),
    [
        ("boolean", LOGISTIC),
        ("category", ModelSection(kind="softmax", classes=3)),
        ("integer", ModelSection(kind="mlp", hidden=(4,), classes=3)),
        ("number", ModelSection(kind="linear")),
    ],
)
def test_every_kind_of_model_answers_as_its_predictor(label: str, model: ModelSection) -> None:
    predictor = Predictor.of(make_artifact(label, model))
    expected = predictor.predict(arrow_table(ROWS, ["age", "pain", "fluid"]))
    app = TableApp(predictor, "heart")
    status, answer = score(app, {"rows": ROWS})
    assert status == 200
    assert (answer["model"], answer["columns"]) == ("heart", expected.column_names)
    assert answer["predictions"] == expected.to_pylist()
    texts = [{"age": str(each["age"]), "pain": f" {each['pain']}"} for each in ROWS]  # the longer way
    texts = [each | {"fluid": row.get("fluid")} for each, row in zip(texts, ROWS, strict=True)]
    assert score(app, {"rows": texts})[1]["predictions"] == expected.to_pylist()


def test_columns_are_rows_the_other_way_round() -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    columns = {name: [row.get(name) for row in ROWS] for name in ("fluid", "age", "pain")}
    assert score(app, {"columns": columns | {"note": [1]}, "model": "heart"}) == score(app, {"rows": ROWS})


def test_no_rows_give_no_predictions() -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    for body in ({"rows": []}, {"columns": {"age": [], "pain": [], "fluid": []}}):
        assert score(app, body)[1]["predictions"] == []


def test_many_rows_are_answered_beside_others() -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    single = [score(app, {"rows": [{"fluid": None} | row]})[1]["predictions"][0] for row in ROWS]
    _, answer = score(app, {"rows": ROWS * LONG})
    for given_, expected in zip(answer["predictions"], single * LONG, strict=True):
        assert given_["prediction"] == expected["prediction"]
        assert given_["probability"] == pytest.approx(expected["probability"], rel=1e-12)


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("age", 17, "bounds"),
        ("age", 1e300, "whole number"),
        ("age", 10**30, "whole number"),
        ("age", 50.5, "whole number"),
        ("age", None, "missing"),
        ("age", "SECRET", "number"),
        ("age", True, "number"),
        ("age", [50], "neither"),
        ("age", {"SECRET": 1}, "neither"),
        ("pain", "SECRET", "categories"),
        ("pain", 3, "categories"),
        ("pain", "", "missing"),
        ("fluid", -0.125, "bounds"),
        ("fluid", "nan", "finite"),
        ("fluid", "SECRET", "number"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_bad_value_is_refused_by_place_and_not_shown(
    column: str, value: Any, word: str, many: bool
) -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    rows = [dict(row) for row in ROWS] * (LONG if many else 1)
    rows[1][column] = value
    status, answer = score(app, {"rows": rows})
    error = answer["error"]
    assert (status, error["param"]) == (400, f"rows[1].{column}")
    assert word in error["message"]
    assert f"line 2, column {column}" in error["message"]
    for told in ("SECRET", "50.5", "0.125", "17"):
        assert told not in error["message"]
    columns = {name: [row.get(name) for row in rows] for name in ("age", "pain", "fluid")}
    status, answer = score(app, {"columns": columns})
    assert (status, answer["error"]["param"]) == (400, f"columns.{column}[1]")


def test_a_column_that_no_row_has() -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    for body in (
        {"rows": [{"age": 20, "fluid": 1}]},
        {"columns": {"age": [20], "fluid": [1]}},
        {"rows": [{}]},
        {"rows": [{"age": 20, "pain": "none", "Fluid": 1}]},  # though its values may be missing
        {"columns": {"age": [20], "pain": ["none"], "Fluid": [1]}},
    ):
        status, answer = score(app, body)
        assert status == 400
        assert "absent" in answer["error"]["message"]
        assert answer["error"]["param"].endswith(("pain", "age", "fluid"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"rows": [1]},
        {"rows": {}},
        {"rows": [], "columns": {}},
        {"columns": {"age": 1}},
        {"columns": {"age": [1], "pain": []}},
        {"rows": [], "explain": True},
        {"rows": None},
        b"{",
    ],
)
def test_requests_that_are_none(body: Any) -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    status, answer = score(app, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


def test_other_models_and_paths() -> None:
    app = TableApp(Predictor.of(make_artifact("boolean", LOGISTIC)), "heart")
    assert score(app, {"rows": [], "model": "lung"})[0] == 404
    assert json.loads(asyncio.run(app(get("/v1/models"))).body)["data"][0]["id"] == "heart"  # type: ignore[arg-type]
    assert asyncio.run(app(get("/v1/score"))).status == 405
    assert asyncio.run(app(post("/v1/chat/completions", {}))).status == 404


def test_a_model_with_local_scaling_must_be_fitted() -> None:
    predictor = Predictor.of(make_artifact("boolean", LOGISTIC, scaling="local"))
    with pytest.raises(InputError, match="scale"):
        TableApp(predictor, "heart")
    table = pa.table({"age": [20, 60, 80], "pain": ["none", "typical", "none"], "fluid": [1.0, None, 0.5]})
    fitted = predictor.fit(table)
    _, answer = score(TableApp(fitted, "heart"), {"rows": table.to_pylist()})
    assert answer["predictions"] == fitted.predict(table).to_pylist()


SCHEMA = load_schema(b"""
[columns.a]
type = "number"
bounds = [-1.5, 1e300]
[columns.b]
type = "integer"
bounds = [0, 100]
missing = "allow"
[columns.c]
type = "category"
categories = ["x", "y", "1", "z"]
missing = "allow"
[columns.d]
type = "boolean"
missing = "allow"
[columns.e]
type = "integer"
bounds = [-9007199254740992, 9007199254740992]
[columns.y]
type = "boolean"
role = "label"
""")
DATA = DataSection(
    schema=SCHEMA.digest().hex(), features=("c", "a", "b", "d", "e"), label="y", scaling="bounds"
)
MAP = FeatureMap.build(SCHEMA, DATA, LOGISTIC)
LOCAL = FeatureMap.build(
    SCHEMA,
    DataSection(schema=DATA.schema, features=DATA.features, label="y", scaling="local"),
    LOGISTIC,
).fit(
    pa.table(
        {
            "a": [0.1, 0.7],
            "b": [3, None],
            "c": pa.array(["x", "y"]),
            "d": [True, False],
            "e": pa.array([5, 2**52]),
        }
    )
)
_ODD = st.sampled_from(
    [
        "",
        " x",
        "x ",
        "1",
        "true",
        "5",
        "nan",
        1,
        0,
        True,
        False,
        2**53,
        2**53 - 1,
        2**60,
        -1.5,
        -0.0,
        100.5,
        [1],
    ]
)
_VALUES = {
    "a": st.floats(-1.5, 10) | st.integers(-1, 10) | _ODD | st.floats(allow_nan=False),
    "b": st.none() | st.integers(0, 100) | st.integers(0, 100).map(float) | _ODD,
    "c": st.none() | st.sampled_from(["x", "y", "1", " z", "z"]) | _ODD,
    "d": st.none() | st.booleans() | _ODD,
    "e": st.integers(-(2**53), 2**53) | st.integers() | _ODD,
}


@given(st.lists(st.fixed_dictionaries(_VALUES), min_size=1, max_size=4), st.sampled_from([MAP, LOCAL]))
@settings(max_examples=400, deadline=None)
def test_the_short_way_gives_the_long_ways_numbers_or_none(
    rows: list[dict[str, Any]], features: FeatureMap
) -> None:
    quick = PlainRows(features).matrix(rows)
    if quick is None:
        return
    table = read_rows(TableSource(arrow_table(rows, features.columns)), features.columns)
    np.testing.assert_array_equal(quick, features.transform_features(table))


@pytest.mark.parametrize("features", [MAP, LOCAL])
def test_plain_rows_take_the_short_way(features: FeatureMap) -> None:
    rows = [
        {"a": 1, "b": 2.0, "c": "1", "d": True, "e": 0},
        {"a": 10.0, "b": None, "c": None, "e": -(2**53) + 1, "more": []},
    ]
    assert PlainRows(features).matrix(rows) is not None


CARD = ModelCard("cloister-model/1", "m", "a" * 64, 5, LOGISTIC, DATA.features, MAP)
APP = TableApp(Predictor.of(ModelArtifact(CARD, np.zeros(MAP.width + 1))), "m")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcde"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(["rows", "columns"]), _JSON | st.lists(st.dictionaries(st.sampled_from("abcde"), _JSON))
)
@settings(max_examples=150, deadline=None)
def test_no_json_makes_it_raise(form: str, value: Any) -> None:
    status, answer = score(APP, {form: value})
    assert status == 200 or set(answer["error"]) == {"message", "type", "param", "code"}


def test_columns_of_mixed_kinds_become_text() -> None:
    table = arrow_table([{"a": 1}, {"a": True}, {"a": "x"}, {"a": None}, {"a": 0.5}], ["a"])
    assert table["a"].to_pylist() == ["1", "true", "x", None, "0.5"]
    assert arrow_table([{"a": 1}, {"a": 2**70}], ["a"])["a"].to_pylist() == ["1", str(2**70)]
    assert arrow_table([{"a": 1}, {"a": 0.5}], ["a"])["a"].type == pa.float64()
    with pytest.raises(SchemaError) as caught:
        arrow_table([{"a": 1}, {"a": b"x"}], ["a"])
    assert (caught.value.line, caught.value.column) == (2, "a")
