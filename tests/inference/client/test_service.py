"""The client, the proxy and the relay before a service in real processes, with its walls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pyarrow as pa
import pytest
from tests.enclave.doubles import AppraiserDouble
from tests.inference.artifacts import make_artifact
from tests.inference.client.doubles import eventually, proxied, verifier
from tests.inference.client.doubles import running as running_app
from tests.inference.service.engines import engine
from tests.inference.service.real import Running, running

from cloister.crypto import Identity, open_bytes, sha256
from cloister.errors import PolicyRefused, VerificationError
from cloister.inference import Predictor
from cloister.inference.client import PrivateClient, Relay, check_receipts
from cloister.inference.client.sealedanswers import SealedAnswers
from cloister.inference.exchange import MAX_BODY
from cloister.inference.service import Address, Client, LoopbackEngine, TableModel
from cloister.learning.sections import ModelSection

ARTIFACT = make_artifact("boolean", ModelSection(kind="logistic"))
ROW = {"age": 54, "pain": "typical", "fluid": 1.5}
TOKEN = "clst-token"


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(TableModel(ARTIFACT), clients=[Client("ward", sha256(TOKEN.encode()).hex())]) as here:
        yield here


def test_a_row_is_scored(served: Running, tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    digest = sha256(ARTIFACT.to_bytes()).hex()
    with PrivateClient(served.url, verifier(model_digest=digest), token=TOKEN, receipts=path) as client:
        answer = client.post("/v1/score", json={"rows": [ROW]})
        assert (
            answer.json()["predictions"]
            == Predictor.of(ARTIFACT).predict(pa.Table.from_pylist([ROW])).to_pylist()
        )
        assert client.get("/v1/models").json()["data"][0]["id"] == "heart"
        assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 200
        large = client.post("/v1/score", content=bytes(MAX_BODY + (8 << 20)))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        assert client.get("/v1/models").status_code == 200
    assert check_receipts(path, AppraiserDouble()).receipts == 4
    with PrivateClient(served.url, verifier()) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    with (
        PrivateClient(served.url, verifier(model_digest="ab" * 32)) as client,
        pytest.raises(VerificationError),
    ):
        client.attest()


def test_through_a_relay_and_a_proxy_sealed_to_somebody(served: Running, tmp_path: Path) -> None:
    ann = Identity.generate("ann")
    answers = SealedAnswers(tmp_path, [ann.public])
    with running_app(Relay(served.url)) as relay:
        with proxied("http://service.example", relay=relay, token=TOKEN) as proxy:
            answer = httpx2.post(f"{proxy.address}/v1/score", json={"rows": [ROW]})
            assert len(answer.json()["predictions"]) == 1
            with openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="x", max_retries=0) as client:
                assert [each.id for each in client.models.list()] == ["heart"]
                with pytest.raises(openai.NotFoundError):
                    client.chat.completions.create(
                        model="heart", messages=[{"role": "user", "content": "hi"}]
                    )
        with proxied(served.url, relay=relay, token=TOKEN, seal_to=[ann.public], answers=answers) as proxy:
            kept = httpx2.post(f"{proxy.address}/v1/score", json={"rows": [ROW]}).json()["sealed"]
            assert len(json.loads(open_bytes(Path(kept).read_bytes(), ann))["predictions"]) == 1


def test_a_stream_of_an_engine_behind_walls_and_its_cancellation() -> None:
    with (
        engine() as (double, address),
        running(LoopbackEngine(Address.parse(address), ("big",))) as here,
        proxied(here.url) as proxy,
        openai.OpenAI(base_url=f"{proxy.address}/v1", api_key="x", max_retries=0) as client,
    ):
        asked: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "one two three"}]}
        chunks = client.chat.completions.create(stream=True, **asked)
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["one ", "two ", "three "]
        assert eventually(lambda: proxy.proxy.receipts == 1)
        asked["messages"][0]["content"] = "forever"
        stream = client.chat.completions.create(stream=True, **asked)
        assert next(iter(stream)).choices[0].delta.content == "again "
        stream.close()
        assert eventually(lambda: double.gone == 1)
        assert eventually(lambda: here.service.stats()["open"] == 0)


def test_accelerators_without_evidence_of_their_own_are_refused() -> None:
    with (
        engine() as (double, address),
        running(LoopbackEngine(Address.parse(address), ("big",), accelerators=1)) as here,
        PrivateClient(here.url, verifier()) as client,
    ):
        with pytest.raises(PolicyRefused, match="accelerators"):
            client.get("/v1/models")
        assert double.came == []
