"""A released table model served for real: walls, uvicorn, sealed rows in, sealed predictions out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.service.real import Running, running

from cloister.crypto import sha256
from cloister.inference import Predictor
from cloister.inference.service import Client, TableModel
from cloister.learning.sections import ModelSection

ARTIFACT = make_artifact("boolean", ModelSection(kind="logistic"))
ROW = {"age": 54, "pain": "typical", "fluid": 1.5}


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    client = Client("ward", sha256(b"clst-token").hex())
    with running(TableModel(ARTIFACT), clients=[client]) as here:
        yield here


def test_a_row_is_scored_as_it_is_here(served: Running) -> None:
    status, body = served.ask("/v1/score", {"rows": [ROW]}, token="clst-token")
    assert status == 200, body
    expected = Predictor.of(ARTIFACT).predict(pa.Table.from_pylist([ROW])).to_pylist()
    assert json.loads(body)["predictions"] == expected


def test_what_answers_is_named_in_the_keys(served: Running) -> None:
    keys = served.keys()
    assert (keys.model, keys.model_digest) == ("heart", sha256(ARTIFACT.to_bytes()).hex())
    assert served.service.ready is not None
    assert served.service.ready.kind == "table"
    assert (
        json.loads(served.ask("/v1/models", method="GET", token="clst-token")[1])["data"][0]["id"] == "heart"
    )


def test_whoever_has_no_token_gets_401(served: Running) -> None:
    assert served.ask("/v1/score", {"rows": [ROW]}, token="clst-other")[0] == 401


def test_every_wall_stands(served: Running) -> None:
    walls = dict(served.service.walls)
    walls.pop("memory locked")
    walls.pop("secret memory")
    assert all(walls.values()), walls


def test_the_server_says_nothing_of_itself(served: Running) -> None:
    answer = served.client.get("/")
    assert set(answer.headers) == {"content-type", "content-length"}
