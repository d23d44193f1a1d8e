"""Rows in chunks for a served table model: the predictor's own answers, and answers that are none refused."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.batchworld import table

from cloister.errors import CloisterError, ProtocolError, SchemaError
from cloister.inference import Predictor, servicescores
from cloister.inference.application import Request
from cloister.inference.openai import TableApp
from cloister.inference.servicescores import CHUNK, PATH, service_scores
from cloister.learning.sections import ModelSection

PREDICTOR = Predictor.of(make_artifact("boolean", ModelSection(kind="logistic")))
CLASSES = Predictor.of(make_artifact("category", ModelSection(kind="softmax", classes=3)))
FEATURES = ["age", "pain", "fluid"]
THREE = pa.table({"age": [40, 77, 18], "pain": ["none", "typical", "atypical"], "fluid": [1.5, None, 0.0]})


class Served:
    """A table application that is asked directly."""

    def __init__(self, predictor: Predictor) -> None:
        self._app = TableApp(predictor, "heart")
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> tuple[int, bytes]:
        self.bodies.append(body)
        reply = asyncio.run(self._app(Request("POST", PATH, {"content-type": "application/json"}, body)))
        assert isinstance(reply.body, bytes)
        return reply.status, reply.body


def scores(rows: pa.Table, post: Any = None) -> pa.Table:
    return pa.concat_tables(service_scores(post or Served(PREDICTOR), iter(rows.to_batches())))


@pytest.mark.parametrize("predictor", [PREDICTOR, CLASSES])
def test_answers_are_the_predictors_own(predictor: Predictor) -> None:
    rows = table(2 * CHUNK + 7).select(FEATURES)
    served = Served(predictor)
    assert scores(rows, served).equals(predictor.predict(rows))
    assert [len(msgspec.json.decode(body)["columns"]["age"]) for body in served.bodies] == [CHUNK, CHUNK, 7]


def test_fields_of_a_csv_file_are_sent_as_they_are() -> None:
    raw = {
        name: pa.array([_field(value) for value in THREE[name].to_pylist()], pa.binary()) for name in FEATURES
    }
    served = Served(PREDICTOR)
    assert scores(pa.table(raw), served).equals(PREDICTOR.predict(THREE))
    assert msgspec.json.decode(served.bodies[0])["columns"]["fluid"] == ["1.5", None, "0.0"]


def _field(value: object) -> bytes:
    return b"" if value is None else str(value).encode()


def test_a_row_that_is_refused_is_named_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicescores, "CHUNK", 2)
    with pytest.raises(SchemaError, match="bounds") as caught:
        scores(THREE.set_column(0, "age", pa.array([40, 77, 17])))
    assert (caught.value.line, caught.value.column) == (3, "age")
    with pytest.raises(CloisterError, match=r"absent|missing"):
        scores(THREE.drop_columns(["age"]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([1.0, float("nan"), 0.0]), "finite"),
        (pa.array([1.0, float("-inf"), 0.0]), "finite"),
        (pa.array([b"1.0", b"\xff", b"0"], pa.binary()), "UTF-8"),
        (pa.array([[1], [2], [3]]), "no model reads"),
        (pa.array([datetime.date(2026, 1, 1)] * 3), "no model reads"),
    ],
)
def test_what_json_has_no_word_for_is_not_sent(values: pa.Array, words: str) -> None:
    served = Served(PREDICTOR)
    with pytest.raises(SchemaError, match=words) as caught:
        scores(THREE.set_column(2, "fluid", values), served)
    assert caught.value.column == "fluid"
    assert caught.value.line in (2, None)
    assert served.bodies == []


GOOD = {"prediction": True, "probability": 0.5}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        {"model": "heart", "columns": [], "predictions": [{}] * 3},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD] * 2},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD] * 4},
        {"model": "heart", "columns": ["prediction"], "predictions": [GOOD] * 3},
        {"model": "heart", "columns": [*GOOD, "prediction"], "predictions": [GOOD] * 3},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD, {}, GOOD]},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD, {**GOOD, "more": 1}, GOOD]},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD, {**GOOD, "prediction": "x"}, GOOD]},
        {"model": "heart", "columns": [*GOOD], "predictions": [GOOD, {**GOOD, "prediction": [1]}, GOOD]},
    ],
)
def test_an_answer_that_is_none_is_refused(answer: Any) -> None:
    body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
    with pytest.raises(ProtocolError, match="no prediction of the rows"):
        scores(THREE, lambda asked: (200, body))


def test_chunks_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicescores, "CHUNK", 1)
    answers = [{**GOOD}, {**GOOD, "probability": "high"}, GOOD]

    def post(body: bytes) -> tuple[int, bytes]:
        said = {"model": "heart", "columns": [*GOOD], "predictions": [answers.pop(0)]}
        return 200, msgspec.json.encode(said)

    with pytest.raises(ProtocolError, match="no prediction of the rows"):
        scores(THREE, post)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": {"message": "no\x1b[2J token", "param": None}}),
        (400, {"error": {"message": "odd", "param": "columns.age[99999999]"}}),
        (500, {"error": {"message": "failed", "param": "columns.age[0]"}}),
        (404, {"error": {"message": "x" * 5000, "param": "model"}}),
        (400, "nothing"),
    ],
)
def test_a_refusal_is_one_printable_sentence(status: int, body: Any) -> None:
    with pytest.raises(CloisterError) as error:
        scores(THREE, lambda asked: (status, msgspec.json.encode(body)))
    assert type(error.value) is ProtocolError
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_refused_row_is_placed_once_and_what_the_service_advises_is_kept() -> None:
    message = "The value is not a number (line 1, column age). Correct the row, or leave it out."
    body = msgspec.json.encode({"error": {"message": message, "param": "columns.age[0]"}})
    with pytest.raises(SchemaError) as error:
        scores(THREE, lambda asked: (400, body))
    assert str(error.value) == (
        "The value is not a number (line 1, column age). Correct the row, or leave it out."
    )
    answers = iter([(200, None), (400, body)])

    def post(asked: bytes) -> tuple[int, bytes]:
        status, said = next(answers)
        count = len(msgspec.json.decode(asked)["columns"]["age"])
        good = {"model": "heart", "columns": [*GOOD], "predictions": [GOOD] * count}
        return status, said or msgspec.json.encode(good)

    with pytest.raises(SchemaError, match=r"\(line 4, column age\)") as error:
        list(service_scores(post, [*THREE.to_batches(), *THREE.to_batches()]))
    assert str(error.value).count("line") == 1


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (401, "Who are you?", "--token-file"),
        (404, "Invalid URL (POST /v1/score).", "cloister ask"),
        (503, "Too many requests.", "Ask again later"),
        (400, "Too many rows.", "Change the request"),
    ],
)
def test_what_to_do_about_a_refusal(status: int, message: str, words: str) -> None:
    body = msgspec.json.encode({"error": {"message": message, "param": None}})
    with pytest.raises(ProtocolError, match=words):
        scores(THREE, lambda asked: (status, body))
    absent = "The column is absent (column age). Give every column that the model reads."
    said = msgspec.json.encode({"error": {"message": absent, "param": None}})
    with pytest.raises(ProtocolError) as error:
        scores(THREE, lambda asked: (400, said))
    assert "Change the request" not in str(error.value)
