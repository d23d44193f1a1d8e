from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister.errors import SchemaError
from cloister.vault import draft_schema, load_schema
from cloister.vault.draft import MAX_LISTED


def draft(path: Path, columns: dict[str, list[object]]) -> str:
    names = list(columns)
    lines = [
        ",".join("" if v is None else str(v) for v in values)
        for values in zip(*columns.values(), strict=True)
    ]
    path.write_text("\n".join([",".join(names), *lines]), encoding="utf-8")
    return draft_schema(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


N = 60
COLUMNS: dict[str, list[object]] = {
    "patient_id": list(range(1000, 1000 + N)),
    "deviceId": [f"D{n % 9}" for n in range(N)],
    "age": [31 + n % 50 for n in range(N)],
    "bmi": [None if n == 3 else 17.25 + n / 8 for n in range(N)],
    "sex": [("female", "male", "other")[n % 3] for n in range(N)],
    "town": [f"town {n}" for n in range(N)],
    "smoker": [n % 2 for n in range(N)],
    "flag": [("yes", "no")[n % 2] for n in range(N)],
    "consent": [("yes", "no")[n % 2] for n in range(N)],
    "empty": [None] * N,
    "Größe, cm": [150 + n for n in range(N)],
}


def test_types_and_roles(path: Path) -> None:
    columns = COLUMNS | {}
    columns.pop("Größe, cm")
    declared = load_schema(draft(path, columns).encode())
    kinds = {name: (column.type, column.role, column.pseudonym) for name, column in declared.columns.items()}
    assert kinds == {
        "patient_id": ("integer", "id", True),
        "deviceId": ("text", "unit", True),
        "age": ("integer", "feature", False),
        "bmi": ("number", "feature", False),
        "sex": ("category", "feature", False),
        "town": ("text", "drop", False),
        "smoker": ("boolean", "feature", False),
        "flag": ("boolean", "feature", False),
        "consent": ("boolean", "consent", False),
        "empty": ("text", "drop", False),
    }
    assert declared.columns["sex"].categories == ("female", "male", "other")
    assert declared.columns["bmi"].missing == "allow"
    assert declared.columns["age"].missing == "refuse"


def test_bounds_are_open_and_adding_says_so(path: Path) -> None:
    text = draft(path, {"age": COLUMNS["age"]})
    assert "# bounds = [lowest, highest]" in text
    declared = load_schema(text.encode())
    assert declared.columns["age"].bounds is None
    with pytest.raises(SchemaError, match="age"):
        declared.require_complete()


def test_no_value_of_a_row_is_in_the_draft_but_frequent_codes(path: Path) -> None:
    rare = {"name": [f"Jane Doe {n}" for n in range(N)], "age": COLUMNS["age"], "bmi": COLUMNS["bmi"]}
    body = draft(path, rare).split("\n\n", 1)[1]
    for values in rare.values():
        assert not any(str(value) in body for value in values if value is not None)


def test_the_draft_says_what_texts_of_a_language_model_are(path: Path) -> None:
    text = draft(path, {"letter": [f"Dear Sir {n}" for n in range(N)], "sex": COLUMNS["sex"]})
    assert "language model" in text.split("[columns.")[0]
    assert load_schema(text.encode()).columns["letter"].role == "drop"  # until a person says otherwise


def test_categories_carry_a_warning(path: Path) -> None:
    text = draft(path, {"sex": COLUMNS["sex"]})
    before = text[: text.index("categories =")]
    assert before.rstrip().endswith("will be visible to all parties")


def test_few_but_rare_values_are_not_listed(path: Path) -> None:
    text = draft(path, {"diagnosis": ["flu"] * 6 + ["rabies"], "x": [1] * 7})
    assert "rabies" not in text
    assert load_schema(text.encode()).columns["diagnosis"].categories is None


def test_many_values_are_text(path: Path) -> None:
    many = [f"v{n}" for n in range(MAX_LISTED + 1)] * 10
    assert load_schema(draft(path, {"a": many, "b": [1] * len(many)}).encode()).columns["a"].role == "drop"
    few = [f"v{n}" for n in range(MAX_LISTED)] * 10
    assert load_schema(draft(path, {"a": few, "b": [1] * len(few)}).encode()).columns["a"].type == "category"


def test_many_values_that_come_often_are_labels(path: Path) -> None:
    labels = [f"intent_{n:02}" for n in range(77)] * 20
    texts = [f"how do I {n}" for n in range(len(labels))]
    columns = load_schema(draft(path, {"text": texts, "intent": labels}).encode()).columns
    assert columns["intent"].categories == tuple(sorted(set(labels)))
    assert columns["text"].role == "drop"


def test_names_that_need_quotes(path: Path) -> None:
    path.write_text('"Größe, cm","say ""hi""",a.b\n1,2,3\n')
    assert list(load_schema(draft_schema(path).encode()).columns) == ["Größe, cm", 'say "hi"', "a.b"]


def test_one_odd_value_anywhere_decides(path: Path) -> None:
    values: list[object] = list(range(5000))
    values[4321] = "n/a"
    assert load_schema(draft(path, {"x": values, "y": [1] * 5000}).encode()).columns["x"].type == "text"


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "a": [1.5, 2.0] * 5,
            "b": [True, None] * 5,
            "c": ["u", "v"] * 5,
            "id": list(range(10)),
            "n": [2**40 + 1] * 10,
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = load_schema(draft_schema(tmp_path / "rows.parquet").encode()).columns
    assert {name: column.type for name, column in columns.items()} == {
        "a": "number",
        "b": "boolean",
        "c": "category",
        "id": "integer",
        "n": "integer",
    }
    assert columns["b"].missing == "allow"


def test_a_file_without_rows(path: Path) -> None:
    path.write_text("a,id\n")
    text = draft_schema(path)
    assert "[columns.a]" in text
