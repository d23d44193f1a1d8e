from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vault.world import CANARY, HEADER, row, rows, schema, write_rows

from cloister.errors import SchemaError
from cloister.vault import Column, Quarantined, Schema, csvfile
from cloister.vault.ingest import Ingest, storage_schema
from cloister.vault.pseudonym import Pseudonyms
from cloister.vault.sources import CsvSource, TableSource, open_source


def ingest(
    source: Path, declared: Schema | None = None, *, quarantine: bool = False
) -> tuple[Ingest, pa.Table]:
    pass_ = Ingest(
        open_source(source), declared or schema(), Pseudonyms(b"k" * 32, ["p"]), quarantine=quarantine
    )
    return pass_, pa.Table.from_batches(pass_.batches(), schema=storage_schema(declared or schema()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def test_good_rows(path: Path) -> None:
    done, table = ingest(rows(path, 40))
    assert (done.rows, done.without_consent, done.quarantined) == (40, 0, ())
    assert table.schema.equals(
        pa.schema(
            [
                pa.field("patient", pa.string(), nullable=False),
                pa.field("age", pa.int64(), nullable=False),
                pa.field("pressure", pa.float64()),
                pa.field("sex", pa.string(), nullable=False),
                pa.field("note", pa.string(), nullable=False),
                pa.field("ill", pa.bool_(), nullable=False),
            ]
        )
    )
    assert table["age"].to_pylist() == [20 + n for n in range(40)]
    assert table["pressure"].null_count == 6
    assert all(len(value) == 64 for value in table["patient"].to_pylist())
    assert table["note"][3].as_py() == f"{CANARY}-N3"


def test_dropped_columns_never_come_in(path: Path) -> None:
    _, table = ingest(rows(path))
    assert "phone" not in table.column_names
    assert not any(f"{CANARY}-T" in str(column.to_pylist()) for column in table.columns)


def test_a_dropped_column_may_be_absent(path: Path) -> None:
    header = HEADER.replace("phone,", "")
    write_rows(path, row(1).replace(f"{CANARY}-T1,", ""), header=header)
    assert ingest(path)[0].rows == 1


@pytest.mark.parametrize(
    ("changes", "column", "says"),
    [
        ({"age": "121"}, "age", "bounds"),
        ({"age": "-1"}, "age", "bounds"),
        ({"age": "x7"}, "age", "not a number"),
        ({"age": ""}, "age", "missing"),
        ({"age": "NaN"}, "age", "not finite"),
        ({"pressure": "inf"}, "pressure", "not finite"),
        ({"pressure": "1e3"}, "pressure", "bounds"),
        ({"sex": "other"}, "sex", "categories"),
        ({"note": ""}, "note", "missing"),
        ({"ill": "perhaps"}, "ill", "true or false"),
        ({"patient": f"{CANARY}-P0"}, "patient", "second time"),
        ({"patient": ""}, "patient", "missing"),
    ],
)
def test_a_row_that_breaks_the_schema_stops_it(
    path: Path, changes: dict[str, str], column: str, says: str
) -> None:
    write_rows(path, *(row(n) for n in range(5)), row(5, **changes), *(row(n) for n in range(6, 9)))
    with pytest.raises(SchemaError, match=says) as caught:
        ingest(path)
    assert (caught.value.line, caught.value.column) == (7, column)
    done, table = ingest(path, quarantine=True)
    assert table.num_rows == done.rows == 8
    (left_out,) = done.quarantined
    assert (left_out.line, left_out.column) == (7, column)
    assert says in left_out.reason


def test_lines_are_right_after_line_breaks_in_quotes(path: Path) -> None:
    write_rows(path, row(0, note='"a\nb\n\nc"'), "", row(1, phone='"\n"'), row(2, age="200"))
    with pytest.raises(SchemaError) as caught:
        ingest(path)
    assert (caught.value.line, caught.value.column) == (9, "age")


def test_bytes_that_are_not_utf8(path: Path) -> None:
    path.write_bytes(
        "\n".join([HEADER, row(0), row(1, note="caf"), row(2)]).encode().replace(b"caf", b"caf\xe9")
    )
    with pytest.raises(SchemaError, match="UTF-8") as caught:
        ingest(path)
    assert (caught.value.line, caught.value.column) == (3, "note")


@pytest.mark.parametrize("bad", [row(1) + ",more", row(1).rsplit(",", 1)[0]])
def test_rows_of_another_length(path: Path, bad: str) -> None:
    write_rows(path, row(0), bad, row(2))
    with pytest.raises(SchemaError, match="fields") as caught:
        ingest(path)
    assert (caught.value.line, caught.value.column) == (3, None)
    done, _ = ingest(path, quarantine=True)
    assert done.rows == 2
    assert [(item.line, item.column) for item in done.quarantined] == [(3, None)]


def test_the_first_offence_in_the_file_is_told(path: Path) -> None:
    write_rows(path, row(0), "short", row(1, age="x"))
    with pytest.raises(SchemaError) as caught:
        ingest(path)
    assert caught.value.line == 3
    write_rows(path, row(0), row(1, ill="x", age="x"), "short")
    with pytest.raises(SchemaError) as caught:
        ingest(path)
    assert (caught.value.line, caught.value.column) == (3, "age")


def test_quarantine_lists_every_row_once_in_order(path: Path) -> None:
    write_rows(
        path,
        row(0, age="x", sex="x"),
        "short",
        row(1),
        row(2, ill=""),
        row(3, patient=f"{CANARY}-P1"),
        row(4),
        row(5, patient=f"{CANARY}-P0"),  # the row it repeats was left out
    )
    done, table = ingest(path, quarantine=True)
    assert done.quarantined == (
        Quarantined(2, "age", "the value is not a number"),
        Quarantined(3, None, "the row has 1 fields, the header 8"),
        Quarantined(5, "ill", "the value is missing"),
        Quarantined(6, "patient", "the identifier appears a second time"),
    )
    assert table.num_rows == 3


def test_consent_comes_first(path: Path) -> None:
    """A row without consent is not looked at: what is wrong in it does not matter, and its id is free."""
    write_rows(
        path,
        row(0, agreed="no", age="x"),
        row(1, agreed=""),
        row(2, agreed="NO", patient=f"{CANARY}-P3"),
        row(3, agreed="TRUE"),
        row(4, agreed="1"),
        row(5, agreed="y"),
    )
    done, table = ingest(path)
    assert (done.rows, done.without_consent) == (2, 4)
    assert table["age"].to_pylist() == [23, 24]
    assert "agreed" not in table.column_names


def test_line_numbers_count_rows_without_consent(path: Path) -> None:
    write_rows(path, row(0, agreed="no"), row(1), row(2, agreed="no"), row(3, age="999"))
    with pytest.raises(SchemaError) as caught:
        ingest(path)
    assert caught.value.line == 5


@pytest.mark.parametrize("lines", [[], [row(0, agreed="no"), row(1, agreed="no")]])
def test_a_site_without_rows(path: Path, lines: list[str]) -> None:
    write_rows(path, *lines)
    with pytest.raises(SchemaError, match="no row"):
        ingest(path)


def test_nothing_left_after_quarantine(path: Path) -> None:
    write_rows(path, row(0, age="x"))
    with pytest.raises(SchemaError, match="no row"):
        ingest(path, quarantine=True)


def test_missing_and_extra_columns_are_named(path: Path) -> None:
    write_rows(path, row(0), header=HEADER.replace("age", "years"))
    with pytest.raises(SchemaError, match="lacks") as caught:
        ingest(path)
    assert caught.value.column == "age"
    write_rows(path, row(0) + ",1", header=HEADER + ",extra")
    with pytest.raises(SchemaError, match="does not declare") as caught:
        ingest(path)
    assert caught.value.column == "extra"


def test_an_open_schema_is_refused(path: Path) -> None:
    with pytest.raises(SchemaError, match="no bounds"):
        ingest(rows(path), Schema({"age": Column("integer")}))


def test_the_order_of_the_file_does_not_matter(path: Path) -> None:
    names = HEADER.split(",")
    backwards = ",".join(reversed(names))
    write_rows(path, *(",".join(reversed(row(n).split(","))) for n in range(5)), header=backwards)
    table = ingest(path)[1]
    assert table.equals(ingest(rows(path, 5))[1])


def test_parquet_and_csv_give_the_same_rows(path: Path, tmp_path: Path) -> None:
    table = ingest(rows(path, 30))[1]
    plain = pa.table(
        {
            "patient": [f"{CANARY}-P{n}" for n in range(30)],
            "age": pa.array(table["age"].to_pylist(), pa.float64()),
            "pressure": table["pressure"],
            "sex": table["sex"].dictionary_encode(),
            "note": table["note"].cast(pa.large_string()),
            "agreed": [True] * 30,
            "ill": table["ill"],
        }
    )
    pq.write_table(plain, tmp_path / "rows.parquet")
    assert ingest(tmp_path / "rows.parquet")[1].equals(table)


def test_lines_of_a_table_are_row_numbers() -> None:
    declared = Schema({"a": Column("number", bounds=(0, 1))})
    table = pa.table({"a": [0.5, 0.5, 2.0]})
    with pytest.raises(SchemaError) as caught:
        list(Ingest(TableSource(table), declared, Pseudonyms(b"k" * 32, ["p"])).batches())
    assert caught.value.line == 3


def test_identifiers_repeat_across_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "_BLOCK", 4096)
    write_rows(path, *(row(n) for n in range(500)), row(3))
    with pytest.raises(SchemaError, match="second time") as caught:
        ingest(path)
    assert caught.value.line == 502


def test_a_source_that_changes_under_the_ingest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(path, row(0), row(1, age="x"))
    source = CsvSource(path)
    pass_ = Ingest(source, schema(), Pseudonyms(b"k" * 32, ["p"]))
    monkeypatch.setattr(source, "records", lambda: iter(()))
    monkeypatch.setattr(source, "batches", CsvSource(path).batches)
    with pytest.raises(SchemaError, match="changed"):
        list(pass_.batches())


_AGES = st.sampled_from(["30", "31", "x", "", "999", "NaN", "30.5"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(ages=st.lists(_AGES, min_size=1, max_size=30), block=st.sampled_from([128, 512, 1 << 20]))
def test_refusing_and_quarantine_agree(path: Path, ages: list[str], block: int) -> None:
    """The refused line is the first one that quarantine lists, whatever the size of a batch."""
    write_rows(path, *(row(n, age=age) for n, age in enumerate(ages)))
    bad = [n + 2 for n, age in enumerate(ages) if age not in ("30", "31")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csvfile, "_BLOCK", block)
        if len(bad) == len(ages):
            with pytest.raises(SchemaError, match="no row"):
                ingest(path, quarantine=True)
        else:
            assert [item.line for item in ingest(path, quarantine=True)[0].quarantined] == bad
        if bad:
            with pytest.raises(SchemaError) as caught:
                ingest(path)
            assert (caught.value.line, caught.value.column) == (bad[0], "age")
