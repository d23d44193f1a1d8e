from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from cloister.errors import InputError, PlanError, SchemaError
from cloister.learning import DataSection, FeatureMap, ModelSection
from cloister.vault import Column, Schema, load_schema

SCHEMA = load_schema(
    b"""
[columns.age]
type = "integer"
bounds = [20, 80]
[columns.dose]
type = "number"
bounds = [0.0, 10.0]
missing = "allow"
[columns.kind]
type = "category"
categories = ["a", "b", "c"]
missing = "allow"
[columns.smoker]
type = "boolean"
[columns.note]
type = "text"
[columns.ill]
type = "boolean"
role = "label"
"""
)
FEATURES = ("age", "dose", "kind", "smoker")
TABLE = pa.table(
    {
        "age": [20, 50, 80],
        "dose": [2.5, None, 10.0],
        "kind": ["a", "c", None],
        "smoker": [True, False, True],
        "ill": [False, True, True],
    }
)


def data(schema: Schema = SCHEMA, **changes: object) -> DataSection:
    fields = {"schema": schema.digest().hex(), "features": FEATURES, "label": "ill"}
    return DataSection(**(fields | changes))  # type: ignore[arg-type]


def build(model: ModelSection | None = None, schema: Schema = SCHEMA, **changes: object) -> FeatureMap:
    return FeatureMap.build(schema, data(schema, **changes), model or ModelSection(kind="logistic"))


def labelled(declaration: str) -> Schema:
    return load_schema(
        f'[columns.x]\ntype = "number"\nbounds = [0, 1]\n[columns.y]\nrole = "label"\n{declaration}'.encode()
    )


def changed(column: str, values: list[object]) -> pa.Table:
    return TABLE.set_column(TABLE.column_names.index(column), column, pa.array(values))


def test_bounds_go_to_minus_one_and_one_and_categories_to_levels() -> None:
    features = build()
    assert features.names == ("age", "dose", "dose missing", "kind=b", "kind=c", "kind missing", "smoker")
    assert features.width == 7
    X, y = features.transform(TABLE)
    np.testing.assert_allclose(
        X,
        [
            [-1, -0.5, 0, 0, 0, 0, 1],
            [0, 0, 1, 0, 1, 0, 0],
            [1, 1, 0, 0, 0, 1, 1],
        ],
    )
    assert X.flags.c_contiguous
    assert y.tolist() == [0, 1, 1]
    assert features.class_names == ("false", "true")


def test_the_order_is_the_plan_s() -> None:
    assert build(features=("smoker", "age")).names == ("smoker", "age")


def test_dictionary_encoded_and_chunked_columns_read_the_same() -> None:
    encoded = TABLE.set_column(2, "kind", TABLE["kind"].dictionary_encode())
    np.testing.assert_array_equal(build().transform(encoded)[0], build().transform(TABLE)[0])
    chunks = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    np.testing.assert_array_equal(build().transform(chunks)[0], build().transform(TABLE)[0])


def test_local_scaling_is_the_z_score_with_ddof_one() -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "age": rng.integers(20, 80, 50),
            "dose": pa.array([None if i % 7 == 0 else float(i % 10) for i in range(50)]),
            "kind": rng.choice(["a", "b"], 50),
            "smoker": rng.integers(0, 2, 50).astype(bool),
            "ill": rng.integers(0, 2, 50).astype(bool),
        }
    )
    unfitted = build(scaling="local")
    with pytest.raises(InputError, match="fit"):
        unfitted.transform(table)
    features = unfitted.fit(table)
    X, _ = features.transform(table)
    age = table["age"].to_numpy()
    np.testing.assert_allclose(X[:, 0], (age - age.mean()) / age.std(ddof=1))
    dose = table["dose"].to_numpy()
    expected = (dose - np.nanmean(dose)) / np.nanstd(dose, ddof=1)
    np.testing.assert_allclose(X[:, 1], np.where(np.isnan(expected), 0.0, expected))
    # a level that never occurs is constant, and becomes 0
    assert not X[:, features.names.index("kind=c")].any()
    assert build().fit(table).means is None


def test_local_scaling_of_one_row_is_zero() -> None:
    features = build(scaling="local").fit(TABLE.slice(0, 1))
    assert not features.transform_features(TABLE.slice(0, 1)).any()


def test_a_map_is_plain_data() -> None:
    features = build(scaling="local").fit(TABLE)
    again = msgspec.json.decode(msgspec.json.encode(features), type=FeatureMap)
    assert again == features
    np.testing.assert_array_equal(again.transform(TABLE)[0], features.transform(TABLE)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"means": (0.0,) * 7},
        {"means": (0.0,) * 6, "deviations": (1.0,) * 6},
        {"means": (0.0,) * 7, "deviations": (1.0,) * 6 + (0.0,)},
        {"means": (0.0,) * 6 + (float("nan"),), "deviations": (1.0,) * 7},
        {"label": Column(type="boolean", missing="allow")},
    ],
)
def test_a_map_that_was_read_must_hold_together(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(build(scaling="local"), **changes)


def test_rows_to_predict_need_no_label() -> None:
    X = build().transform_features(TABLE.drop_columns(["ill"]))
    np.testing.assert_array_equal(X, build().transform(TABLE)[0])


def test_a_regression_s_label_is_scaled_by_its_bounds_and_comes_back() -> None:
    schema = labelled('type = "number"\nbounds = [100, 300]')
    features = build(ModelSection(kind="linear"), schema, features=("x",), label="y")
    _, y = features.transform(pa.table({"x": [0.0, 1.0, 0.5], "y": [100.0, 200.0, 300.0]}))
    assert y.tolist() == [-1, 0, 1]
    assert features.label_unit == 100.0
    assert features.label_values(y).tolist() == [100, 200, 300]
    assert features.class_names == ()


@pytest.mark.parametrize(
    ("declaration", "model", "values", "numbers", "names"),
    [
        (
            'type = "category"\ncategories = ["no", "yes"]',
            ModelSection(kind="logistic"),
            ["yes", "no"],
            [1, 0],
            ("no", "yes"),
        ),
        ('type = "integer"\nbounds = [0, 1]', ModelSection(kind="logistic"), [1, 0], [1, 0], ("0", "1")),
        (
            'type = "integer"\nbounds = [3, 5]',
            ModelSection(kind="softmax", classes=3),
            [5, 3],
            [2, 0],
            ("3", "4", "5"),
        ),
        (
            'type = "boolean"',
            ModelSection(kind="mlp", hidden=(2,), classes=2),
            [True, False],
            [1, 0],
            ("false", "true"),
        ),
    ],
)
def test_labels_of_classifiers(
    declaration: str, model: ModelSection, values: list[object], numbers: list[int], names: tuple[str, ...]
) -> None:
    schema = labelled(declaration)
    features = build(model, schema, features=("x",), label="y")
    _, y = features.transform(pa.table({"x": [0.0, 1.0], "y": values}))
    assert y.tolist() == numbers
    assert features.class_names == names
    assert features.label_unit == 1.0
    np.testing.assert_array_equal(features.label_values(y), y)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (None, {"features": ("age", "kidn")}, r"Did you mean 'kind'\?$"),
        (None, {"features": ("age", "note")}, "text column"),
        (None, {"features": ("age", "zzzzzzz")}, "no column"),
        (None, {"label": "smoker", "features": ("age",)}, "role feature"),
        (None, {"features": ("ill",), "label": "age"}, "role label"),
        (ModelSection(kind="linear"), {}, "regression"),
        (ModelSection(kind="softmax", classes=3), {}, "3 classes"),
    ],
)
def test_what_the_schema_does_not_carry_is_refused(
    model: ModelSection | None, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        build(model, **changes)


def test_another_schema_than_the_plan_s_is_refused() -> None:
    other = labelled('type = "boolean"')
    with pytest.raises(PlanError, match="not the one"):
        FeatureMap.build(other, data(), ModelSection(kind="logistic"))


def test_open_bounds_are_refused() -> None:
    schema = load_schema(b'[columns.x]\ntype = "number"\n[columns.y]\ntype = "boolean"\nrole = "label"\n')
    with pytest.raises(SchemaError, match="bounds"):
        build(None, schema, features=("x",), label="y")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (changed("age", [20, 50, 81]), "age"),
        (changed("age", [20, 50, None]), "age"),
        (changed("age", [20.5, 50, 60]), "age"),
        (changed("age", ["20", "50", "60"]), "age"),
        (changed("age", [20.0, float("nan"), 60.0]), "age"),
        (changed("age", [20, 50, 2**53 + 1]), "age"),
        (changed("age", [True, False, True]), "age"),
        (changed("smoker", [0, 1, 7]), "smoker"),
        (changed("dose", [0.0, float("nan"), 1.0]), "dose"),
        (changed("dose", [0.0, float("inf"), 1.0]), "dose"),
        (changed("kind", ["a", "b", "z"]), "kind"),
        (changed("kind", [1, 2, 3]), "kind"),
        (changed("ill", [True, None, False]), "ill"),
        (TABLE.drop_columns(["smoker"]), "smoker"),
    ],
)
def test_a_row_that_breaks_the_schema_names_its_column_and_no_value(table: pa.Table, column: str) -> None:
    with pytest.raises(SchemaError) as caught:
        build().transform(table)
    assert caught.value.column == column
    for value in ("81", "20.5", "'z'", "inf"):
        assert value not in str(caught.value)


def test_no_rows() -> None:
    X, y = build().transform(TABLE.slice(0, 0))
    assert X.shape == (0, 7)
    assert y.shape == (0,)
