from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.vault.world import SCHEMA, schema

from cloister.errors import InputError, SchemaError
from cloister.vault import Column, Schema, load_schema


def toml(*lines: str, name: str = "x") -> bytes:
    return "\n".join([f"[columns.{name}]", *lines]).encode()


def test_a_whole_schema() -> None:
    declared = schema()
    assert declared.features == ("age", "pressure", "sex")
    assert declared.label == "ill"
    assert declared.by_role("id") == ("patient",)
    assert declared.stored == ("patient", "age", "pressure", "sex", "note", "ill")
    assert declared.columns["age"].bounds == (0.0, 120.0)
    declared.require_complete()


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCHEMA)
    assert load_schema(tmp_path / "s.toml") == schema()
    with pytest.raises(InputError, match="cannot read"):
        load_schema(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['type = "numbr"'], "numbr"),
        (["bounds = [0, 1]"], "type"),
        (['type = "number"', "bound = [0, 1]"], "bounds"),
        (['type = "number"', 'bounds = "0 to 1"'], "bounds"),
        (['type = "number"', "bounds = [0, 1, 2]"], "bounds"),
        (['type = "category"', "categories = [1, 2]"], "categories"),
        (['type = "number"', 'role = "target"'], "role"),
        (['type = "number"', "pseudonym = 1"], "pseudonym"),
        (['type = "number"', 'missing = "impute"'], "missing"),
        (["type = number"], "TOML"),
    ],
)
def test_what_cannot_be_read_is_named(lines: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_schema(toml(*lines))


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match="'bounds'"):
        load_schema(toml('type = "number"', "bonds = [0, 1]"))
    with pytest.raises(InputError, match="'columns'"):
        load_schema(b'[column.x]\ntype = "number"')


@pytest.mark.parametrize(
    "column",
    [
        Column("number", bounds=(1.0, 0.0)),
        Column("number", bounds=(1.0, 1.0)),
        Column("number", bounds=(0.0, float("inf"))),
        Column("number", bounds=(float("nan"), 1.0)),
        Column("integer", bounds=(0.5, 1.0)),
        Column("integer", bounds=(0.0, 2.0**60)),
        Column("text", bounds=(0.0, 1.0)),
        Column("number", categories=("a",)),
        Column("category", categories=()),
        Column("category", categories=("a", "a")),
        Column("category", categories=("",)),
        Column("category", categories=(" a",)),
        Column("category", categories=("a\nb",)),
        Column("text", pseudonym=True),
        Column("number", role="id", pseudonym=True),
        Column("integer", role="id", pseudonym=True, bounds=(0.0, 9.0)),
        Column("text", role="consent"),
        Column("boolean", role="label", missing="allow"),
        Column("text", role="id", missing="allow"),
        Column("text", role="unit", missing="allow"),
    ],
)
def test_contradictions_are_refused_with_the_column(column: Column) -> None:
    with pytest.raises(SchemaError) as caught:
        Schema({"x": column})
    assert caught.value.column == "x"


@pytest.mark.parametrize("role", ["label", "unit", "consent"])
def test_a_role_that_is_given_once(role: str) -> None:
    column = Column("boolean", role=role)  # type: ignore[arg-type]
    with pytest.raises(SchemaError) as caught:
        Schema({"a": column, "b": column, "c": Column("boolean")})
    assert caught.value.column == "b"


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x00", "a\x7f", "x" * 201, "\ud800"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(SchemaError):
        Schema({name: Column("boolean")})


@pytest.mark.parametrize(
    "columns", [{}, {"a": Column("text", role="drop")}, {"a": Column("boolean", role="consent")}]
)
def test_a_schema_that_stores_nothing_is_refused(columns: dict[str, Column]) -> None:
    with pytest.raises(SchemaError):
        Schema(columns)


def test_open_bounds_and_categories_are_refused_by_name() -> None:
    for column, word in (
        (Column("number"), "bounds"),
        (Column("integer", role="label"), "bounds"),
        (Column("category"), "categories"),
    ):
        with pytest.raises(SchemaError, match=word) as caught:
            Schema({"pulse": column}).require_complete()
        assert caught.value.column == "pulse"
    Schema(
        {"n": Column("integer", role="id"), "t": Column("text"), "c": Column("category", role="unit")}
    ).require_complete()


def test_the_digest_is_of_what_is_declared() -> None:
    one = load_schema(b'[columns.a]\ntype="number"\nbounds=[0, 1]\n[columns.b]\ntype="boolean"\n')
    same = load_schema(
        b'# hi\n[columns.b]\ntype = "boolean"\nrole = "feature"\n[columns.a]\nbounds = [0.0, 1.0]\ntype = "number"'
    )
    assert one.digest() == same.digest()
    assert len(one.digest()) == 32
    others = [
        b'[columns.a]\ntype="number"\nbounds=[0, 2]\n[columns.b]\ntype="boolean"\n',
        b'[columns.a]\ntype="number"\nbounds=[0, 1]\n[columns.c]\ntype="boolean"\n',
        b'[columns.a]\ntype="number"\nbounds=[0, 1]\n[columns.b]\ntype="boolean"\nrole="label"\n',
        b'[columns.a]\ntype="number"\nbounds=[0, 1]\nmissing="allow"\n[columns.b]\ntype="boolean"\n',
    ]
    assert len({one.digest(), *(load_schema(other).digest() for other in others)}) == 5


def test_the_digest_is_that_of_the_canonical_json() -> None:
    declared = load_schema(
        b'[columns.b]\ntype="boolean"\nrole="label"\n[columns.a]\ntype="number"\nbounds=[0.0, 1.5]\n'
    )
    text = b'{"columns":{"a":{"bounds":[0,1.5],"type":"number"},"b":{"role":"label","type":"boolean"}}}'
    assert declared.digest() == hashlib.sha256(text).digest()


def test_the_digest_does_not_change_between_versions() -> None:
    assert schema().digest().hex() == "3148415ab5414aac7fe256e1977321e55362ff31504798c42daa1dcff83564ed"


def test_the_order_is_the_declared_one() -> None:
    declared = load_schema(b'[columns.b]\ntype="boolean"\n[columns.a]\ntype="boolean"\n')
    assert declared.features == ("b", "a")
