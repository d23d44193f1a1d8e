"""The model file: one vector, one text, and nothing else passes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from cloister.errors import IntegrityError
from cloister.inference.tensors import MODEL_LIMIT, read_vector, write_vector

GOOD = write_vector(np.array([1.0, -2.5, 1e300]), '{"a":1}')


def file_of(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header_of(**changes: Any) -> dict[str, Any]:
    tensor = {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    return {"__metadata__": {"cloister": "{}"}, "parameters": tensor | changes}


def test_a_file_reads_back_and_is_a_standard_one() -> None:
    parameters, text = read_vector(GOOD)
    assert parameters.tolist() == [1.0, -2.5, 1e300]
    assert text == '{"a":1}'
    assert load(GOOD)["parameters"].tolist() == parameters.tolist()
    assert write_vector(parameters, text) == GOOD


def test_the_strict_reader_accepts_what_its_own_helper_makes() -> None:
    assert read_vector(file_of(header_of(), bytes(16)))[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(8),
        GOOD[:-1],
        GOOD + b"\0",
        GOOD[:40],
        file_of(header_of(), bytes(16), length=2**63),
        file_of(header_of(), bytes(16), length=10_000),
        file_of(header_of(dtype="F32", data_offsets=[0, 8]), bytes(8)),
        file_of(header_of(dtype="F32"), bytes(16)),
        file_of(header_of(shape=[1, 2]), bytes(16)),
        file_of(header_of(shape=[3]), bytes(16)),
        file_of(header_of(data_offsets=[8, 24]), bytes(24)),
        file_of(header_of(shape=[0], data_offsets=[0, 0]), b""),
        file_of(header_of(shape=[2.0]), bytes(16)),
        file_of(header_of(shape=[True], data_offsets=[False, 8]), bytes(8)),
        file_of(header_of(extra=1), bytes(16)),
        file_of(header_of() | {"more": header_of()["parameters"]}, bytes(16)),
        file_of({"parameters": header_of()["parameters"]}, bytes(16)),
        file_of(header_of() | {"__metadata__": {"cloister": "{}", "more": ""}}, bytes(16)),
        file_of(header_of() | {"__metadata__": {"cloister": 1}}, bytes(16)),
        file_of(header_of() | {"__metadata__": "cloister"}, bytes(16)),
        file_of(b"[" * 100_000, bytes(16)),
        file_of(b"\xff\xff", bytes(16)),
        file_of(b"[1]", bytes(16)),
        file_of(b'{"a": 1, "a": 1}', bytes(16)),
        save({"parameters": np.zeros(2)}),
        save({"parameters": np.zeros(2), "other": np.zeros(2)}, metadata={"cloister": "{}"}),
        save({"parameters": np.array([1.0, np.nan])}, metadata={"cloister": "{}"}),
        save({"parameters": np.array([np.inf])}, metadata={"cloister": "{}"}),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a model file"):
        read_vector(data)


def test_a_pickle_is_refused_and_not_run(tmp_path: Any) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (open, (str(ran), "w"))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(IntegrityError):
            read_vector(pickle.dumps(Payload(), protocol))
    assert not ran.exists()


def test_infinite_parameters_are_not_written() -> None:
    with pytest.raises(IntegrityError, match="finite"):
        write_vector(np.array([np.inf]), "{}")


def test_the_limit_holds_before_anything_is_parsed() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MODEL_LIMIT + 1

    with pytest.raises(IntegrityError, match="size"):
        read_vector(Long(GOOD))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_pass_or_crash(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_vector(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_what_is_read(position: int, change: int) -> None:
    data = bytearray(GOOD)
    data[position] ^= change
    try:
        parameters, text = read_vector(bytes(data))
    except IntegrityError:
        return
    assert (parameters.tobytes(), text) != (read_vector(GOOD)[0].tobytes(), read_vector(GOOD)[1])
