from __future__ import annotations

import msgspec
import numpy as np
import pytest

import cloister.privacy.local as local
from cloister.crypto import canonical_bytes
from cloister.errors import InputError
from cloister.privacy.local import (
    BoundedGaussian,
    BoundedLaplace,
    Charge,
    ColumnRecord,
    LocalRecord,
    PlanarLaplace,
    Rectangle,
    Region,
    Response,
    ValueGrid,
    read_record,
    summarise,
)

PLANT = Rectangle((0.0, 400.0), (0.0, 300.0))


def record(*columns: ColumnRecord, rows: int = 3) -> LocalRecord:
    events = tuple(each.event for each in columns if each.event is not None)
    return LocalRecord("cloister-local-v1", "d", "p", rows, columns, None, Charge(1.0), events, "0" * 64)


ALL = (
    ColumnRecord(("treatment",), Response(("a", "b", ""), 1.0)),
    ColumnRecord(("score",), BoundedLaplace(ValueGrid.of(300, 850, whole=True), 1.0), 300.0),
    ColumnRecord(("level",), BoundedGaussian(ValueGrid.of(0.0, 1.0), 1.0, 1e-6)),
    ColumnRecord(("lat", "lon"), PlanarLaplace.of(Region((48.0, 48.3), (11.4, 11.8)), 0.005)),
    ColumnRecord(("x", "y"), PlanarLaplace.of(PLANT, 0.02, truncated=False)),
    ColumnRecord(("i", "j"), PlanarLaplace(PLANT, 0.02, 100.0)),
)


def test_a_record_reads_as_it_was_written() -> None:
    made = record(*ALL)
    assert read_record(canonical_bytes(made)) == made
    assert [event.relation for event in made.events] == ["replace-one"] * 3


def test_every_column_is_summed_up_or_says_why_not() -> None:
    values = {
        "treatment": ["a", None, "b"],
        "score": [300.0, 1000.0, -200.0],
        "level": [0.0, 0.5, 1.0],
        "lat": [48.0] * 3,
        "lon": [11.4] * 3,
        "x": [0.0, 10.0, -30.0],
        "y": [0.0, 10.0, -30.0],
        "i": [0.0, 100.0, 400.0],
        "j": [0.0, 100.0, 300.0],
    }
    treatment, score, level, degrees, metres, cells = summarise(record(*ALL), values)
    assert list(treatment.estimates) == ["a", "b", ""]
    assert score.estimates["mean"].value == pytest.approx(1100 / 3)
    assert level.kind == "mean"
    assert (degrees.kind, bool(degrees.reason)) == (None, True)
    assert metres.kind == "position"
    assert sum(each.value for each in cells.estimates.values()) == pytest.approx(3)
    assert len(cells.estimates) == 20


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "lacks a column"),
        ({"score": [1.0]}, "another number of rows"),
        ({"score": ["x", "y", "z"]}, "not a number"),
        ({"score": [300.5, 300.0, 300.0]}, "no point"),
        ({"score": [None, 300.0, 300.0]}, "finite"),
    ],
)
def test_a_file_that_is_not_its_records(values: dict[str, list[object]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        summarise(record(ALL[1]), values)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"format": "cloister-local-v2"},
        {"rows": 0},
        {"columns": []},
        {"columns": [{"columns": ["a"], "mechanism": {"type": "none"}}]},
        {
            "columns": [
                {
                    "columns": ["a", "b"],
                    "mechanism": {"type": "response", "categories": ["x", "y"], "epsilon": 1},
                }
            ]
        },
        {
            "columns": [
                {"columns": ["a"], "mechanism": {"type": "response", "categories": ["x", "y"], "epsilon": 99}}
            ]
        },
        {
            "columns": [
                {
                    "columns": ["a"],
                    "mechanism": {"type": "laplace", "grid": {"low": 0, "high": 0}, "epsilon": 1},
                }
            ]
        },
    ],
)
def test_a_record_that_is_none_is_refused(change: dict[str, object]) -> None:
    fields = msgspec.to_builtins(record(ALL[1])) | change
    with pytest.raises(InputError):
        read_record(msgspec.json.encode(fields))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(InputError):
        read_record(data)


def test_the_exports_are_there_and_sorted() -> None:
    assert local.__all__ == sorted(
        local.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )
    for name in local.__all__:
        assert hasattr(local, name)


def test_estimates_need_no_noise() -> None:
    """Whoever unbiases draws nothing: the same file gives the same estimate."""
    made = record(ALL[1])
    values = {"score": np.array([300.0, 1000.0, -200.0])}
    assert summarise(made, values) == summarise(made, values)
