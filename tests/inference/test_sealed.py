"""The sealed exchange: right answers, and nothing for anybody who stands between."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.governance.releases import identity
from tests.inference.artifacts import make_artifact

from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.inference import Predictor, SealedRequest, answer, seal_request
from cloister.inference.sealed import _pad, _unpad
from cloister.learning.sections import ModelSection

PREDICTOR = Predictor.of(make_artifact("category", ModelSection(kind="softmax", classes=3)))
ROWS = pa.table({"age": [18, 59], "pain": ["none", "typical"], "fluid": [0.25, None]})
SERVER, CLIENT, STRANGER = identity("server"), identity("client"), identity("stranger")


def ask(rows: pa.Table = ROWS) -> SealedRequest:
    return seal_request(rows, SERVER.public, CLIENT.public)


def test_answers_come_back_as_they_were_made() -> None:
    request = ask()
    sealed = answer(request.message, SERVER, PREDICTOR)
    assert request.open_answer(sealed, CLIENT).equals(PREDICTOR.predict(ROWS))


@given(
    st.lists(
        st.tuples(
            st.integers(18, 100),
            st.sampled_from(["none", "typical", "atypical"]),
            st.none() | st.floats(0.0, 2.0),
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=20, deadline=None)
def test_the_server_sees_the_rows_that_were_sent(rows: list[tuple[int, str, float | None]]) -> None:
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("age", "pain", "fluid"))})
    seen: list[pa.Table] = []

    class Watching:
        def predict(self, table: pa.Table) -> pa.Table:
            seen.append(table)
            return PREDICTOR.predict(table)

    request = ask(table)
    assert request.open_answer(answer(request.message, SERVER, Watching()), CLIENT).num_rows == len(rows)
    assert seen[0].to_pydict() == table.to_pydict()


def test_a_refusal_travels_sealed_and_names_the_place() -> None:
    request = ask(pa.table({"age": [18, 17], "pain": ["none", "none"], "fluid": [0.0, 0.0]}))
    sealed = answer(request.message, SERVER, PREDICTOR)
    assert b"bounds" not in sealed
    with pytest.raises(InputError, match="line 2, column age"):
        request.open_answer(sealed, CLIENT)
    good = ask()
    assert len(sealed) == len(answer(good.message, SERVER, PREDICTOR))


def test_answers_too_large_to_seal_are_a_refusal() -> None:
    class Verbose:
        def predict(self, table: pa.Table) -> pa.Table:
            return pa.table({"value": ["x" * (65 << 20)]})

    request = ask()
    sealed = answer(request.message, SERVER, Verbose())
    with pytest.raises(InputError, match="refused the rows: the rows need more"):
        request.open_answer(sealed, CLIENT)


def test_sizes_tell_a_bucket_and_not_a_row_count() -> None:
    def sizes(count: int) -> tuple[int, int]:
        request = ask(pa.table({"age": [20] * count, "pain": ["none"] * count, "fluid": [0.0] * count}))
        return len(request.message), len(answer(request.message, SERVER, PREDICTOR))

    assert sizes(1) == sizes(2) == sizes(100)
    assert sizes(2000)[0] > sizes(1)[0]


@given(st.binary(max_size=40_000))
def test_padding_comes_off_and_is_a_power_of_two(payload: bytes) -> None:
    padded = _pad(payload)
    assert len(padded) & (len(padded) - 1) == 0
    assert len(padded) >= max(16 << 10, len(payload) + 4)
    assert _unpad(padded) == payload


@pytest.mark.parametrize("padded", [b"", b"\0\0\0", b"\0\0\0\5abc", b"\0\0\0\1a" + b"\0\1", b"\xff" * 20])
def test_wrong_padding_is_refused(padded: bytes) -> None:
    with pytest.raises(IntegrityError, match="padded"):
        _unpad(padded)


def test_rows_beyond_the_limit_are_refused() -> None:
    with pytest.raises(InputError, match="several requests"):
        _pad(bytes(65 << 20))


def test_only_rows_of_plain_values_are_sent() -> None:
    with pytest.raises(InputError, match="numbers, text"):
        ask(pa.table({"age": [[object.__name__]]}))
    with pytest.raises(InputError, match="same name"):
        ask(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]))


def test_a_request_holds_a_secret() -> None:
    request = ask()
    assert "nonce" not in repr(request)
    assert str(len(request.message)) in repr(request)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            leak(request)


def test_only_listed_readers_are_answered() -> None:
    request = ask()
    assert answer(request.message, SERVER, PREDICTOR, readers={CLIENT.fingerprint})
    with pytest.raises(PolicyRefused):
        answer(request.message, SERVER, PREDICTOR, readers={STRANGER.fingerprint})
    with pytest.raises(PolicyRefused):
        answer(request.message, SERVER, PREDICTOR, readers=())


def test_a_test_can_fix_the_nonce_alone() -> None:
    nonces: list[int] = []

    def fixed(count: int) -> bytes:
        nonces.append(count)
        return bytes(count)

    one = seal_request(ROWS, SERVER.public, CLIENT.public, insecure_test_random=fixed)
    two = seal_request(ROWS, SERVER.public, CLIENT.public, insecure_test_random=fixed)
    assert nonces == [32, 32]
    assert one.message != two.message


@pytest.mark.parametrize(
    "columns", [{"a": [1], "b": [1, 2]}, {"a": [1, "x"]}, {"a": [2**64 - 1]}, {"a": [2**63, -1]}]
)
def test_columns_that_are_no_table_are_refused(columns: dict[str, Any]) -> None:
    from cloister.inference.sealed import _table

    with pytest.raises(InputError, match="not a table"):
        _table(columns)
