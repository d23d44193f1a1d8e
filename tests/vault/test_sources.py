from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, SchemaError
from cloister.vault import csvfile
from cloister.vault.sources import CsvSource, ParquetSource, TableSource, open_source


def csv_source(tmp_path: Path, data: bytes | str) -> CsvSource:
    path = tmp_path / "rows.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return CsvSource(path)


def content(source: CsvSource) -> list[tuple[bytes, ...]]:
    batches = list(source.batches(source.names))
    return [
        row
        for batch in batches
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_line_ends_and_byte_order_marks(tmp_path: Path, end: str, mark: bytes) -> None:
    source = csv_source(tmp_path, mark + end.join(["a,b", "1,x", "2,y"]).encode())
    assert source.names == ("a", "b")
    assert content(source) == [(b"1", b"x"), (b"2", b"y")]
    assert [(record.line, record.row) for record in source.records()] == [(2, 0), (3, 1)]


def test_a_mark_before_a_quoted_header(tmp_path: Path) -> None:
    source = csv_source(tmp_path, codecs.BOM_UTF8 + b'"a,1",b\n1,2\n')
    assert source.names == ("a,1", "b")
    assert content(source) == [(b"1", b"2")]


def test_names_are_taken_without_the_spaces_around_them(tmp_path: Path) -> None:
    source = csv_source(tmp_path, " a , b\n1,2\n")
    assert source.names == ("a", "b")
    assert content(source) == [(b"1", b"2")]


def test_a_subset_of_columns_in_any_order(tmp_path: Path) -> None:
    source = csv_source(tmp_path, "a,b,c\n1,2,3\n")
    (batch,) = source.batches(["c", "a"])
    assert batch.to_pydict() == {"c": [b"3"], "a": [b"1"]}


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", InputError, "empty"),
        (b"\n\n", InputError, "empty"),
        ("a,b\n1,2\n".encode("utf-16"), InputError, "UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), InputError, "UTF-8"),
        (b"a,b,a\n1,2,3\n", SchemaError, "twice"),
        (b"a, a\n1,2\n", SchemaError, "twice"),
        (b"a,,c\n1,2,3\n", SchemaError, "no name"),
        (b"a,\xff\n1,2\n", SchemaError, "no name"),
        (b'a,"b\nc"\n1,2\n', SchemaError, "no name"),
        (b'a,b\n1,2\n3,"4\n5,6\n', SchemaError, "never closed"),
        (b'a,b\n1,2\n3,"4', SchemaError, "never closed"),
    ],
)
def test_files_that_are_refused_at_once(
    tmp_path: Path, data: bytes, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        csv_source(tmp_path, data)


def test_the_line_of_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as caught:
        csv_source(tmp_path, 'a,b\n1,"x\ny"\n2,"z\n3,4\n')
    assert caught.value.line == 4


@pytest.mark.parametrize("data", ['a,b\n1,5"\n', 'a,b\n1,x"y\n2,"quoted ""twice"" here"\n', 'a\n"x"\n'])
def test_quotes_within_a_value_are_no_open_quotes(tmp_path: Path, data: str) -> None:
    assert content(csv_source(tmp_path, data))


def test_a_header_without_rows(tmp_path: Path) -> None:
    for data in ("a,b", "a,b\n", "a,b\n\n\n"):
        assert content(csv_source(tmp_path, data)) == []


def test_rows_of_another_length_are_counted_and_found(tmp_path: Path) -> None:
    source = csv_source(tmp_path, 'a,b\n1,2\n\n"3\n",4\n5\n6,7,8\n9,10\n')
    assert content(source) == [(b"1", b"2"), (b"3\n", b"4"), (b"9", b"10")]
    assert source.unreadable == 2
    found = [(record.line, record.row, record.reason) for record in source.records()]
    assert found == [
        (2, 0, ""),
        (4, 1, ""),
        (6, None, "the row has 1 fields, the header 2"),
        (7, None, "the row has 3 fields, the header 2"),
        (8, 2, ""),
    ]


def test_a_field_without_end_is_refused_with_its_line(tmp_path: Path) -> None:
    source = csv_source(tmp_path, f"a,b\n1,2\n3,{'x' * (3 << 20)}\n")
    with pytest.raises(SchemaError, match="2097152") as caught:
        list(source.records())
    assert caught.value.line == 3


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    source = csv_source(tmp_path, "a\n" + "1\n" * 50_000)
    seen: list[tuple[int, int]] = []
    for _ in source.batches(["a"], lambda done, total: seen.append((done, total))):
        pass
    assert seen[-1] == (100_002, 100_002)


def test_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csvfile, "_BLOCK", 4096)
    lines = [f'{number},"line\nbreak {number}"' for number in range(3000)]
    source = csv_source(tmp_path, "\n".join(["a,b", *lines]))
    assert len(list(source.batches(["a"]))) > 3
    assert content(source) == [(str(n).encode(), f"line\nbreak {n}".encode()) for n in range(3000)]


_TEXT = st.text(st.sampled_from('ab ,"\n\r;\t1é'), max_size=5)
_RECORD = st.lists(_TEXT, min_size=1, max_size=4)


def _written(field: str, always: bool) -> str:
    return '"' + field.replace('"', '""') + '"' if always or set(field) & set(',"\r\n') else field


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(records=st.lists(_RECORD, max_size=8), end=st.sampled_from(["\n", "\r\n", "\r"]), always=st.booleans())
def test_lines_and_rows_agree_with_what_was_written(
    tmp_path: Path, records: list[list[str]], end: str, always: bool
) -> None:
    """Arrow's parser, which reads the rows, and the record finder, which tells lines, see the same file."""
    text = f"a,b{end}"
    expected = []
    for fields in records:
        expected.append((len(re.split("\r\n|\r|\n", text)), fields))
        text += ",".join(_written(field, always or fields == [""]) for field in fields) + end
    source = csv_source(tmp_path, text)
    good = [tuple(field.encode() for field in fields) for _, fields in expected if len(fields) == 2]
    assert content(source) == good
    assert source.unreadable == len(expected) - len(good)
    found = list(source.records())
    assert [record.line for record in found] == [line for line, _ in expected]
    assert [record.row is None for record in found] == [len(fields) != 2 for _, fields in expected]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.text(st.sampled_from('ab,"\n\r x'), max_size=40))
def test_the_two_parsers_agree_on_anything(tmp_path: Path, data: str) -> None:
    """Also on text that nobody would call well-formed; or the file is refused."""
    try:
        source = csv_source(tmp_path, "a,b\n" + data)
    except SchemaError:
        return
    rows = content(source)
    found = list(source.records())
    assert len(rows) == sum(record.row is not None for record in found)
    assert source.unreadable == sum(record.row is None for record in found)


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = open_source(tmp_path / "rows.parquet")
    assert isinstance(source, ParquetSource)
    assert source.names == ("a", "b")
    assert pa.Table.from_batches(source.batches(["b"])).to_pydict() == {"b": ["x", None, "z"]}
    assert [(record.line, record.row) for record in source.records()] == [(1, 0), (2, 1), (3, 2)]
    assert source.unreadable == 0


def test_files_that_cannot_be_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(InputError, match="Parquet"):
        open_source(path)
    path.write_bytes(b"PARE" + b"x" * 100)
    with pytest.raises(InputError, match="encrypted"):
        open_source(path)


def test_a_table_with_a_repeated_name() -> None:
    with pytest.raises(SchemaError, match="twice"):
        TableSource(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError):
            open_source(path)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="not in a file"):
            open_source(path)
