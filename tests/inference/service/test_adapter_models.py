"""Released language models served for real, beside their base: chats, rows, sealed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tests.enclave.broker.world import Home, InsecureAttesterDouble, identity, permission
from tests.enclave.sandbox.inside import need_walls
from tests.inference.language.models import make_tiny_model
from tests.inference.language.released import released
from tests.inference.modelworld import Keys, person
from tests.inference.service.real import running

from cloister.enclave.broker import BrokerKeys
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.language.adapted import learner_of
from cloister.inference.language.answers import LanguagePredictor
from cloister.inference.models.keys import PURPOSE, ModelHandover, lender
from cloister.inference.models.manifest import TABLE_FILE
from cloister.inference.models.sealing import MemoryFiles, seal_model
from cloister.inference.service import AdapterModel, SealedFolder, Service
from cloister.learning.modelfiles.files import PlainFolder
from cloister.runtime.workers.brokered import BrokerAccess

pytestmark = pytest.mark.slow

QUESTION = "Where is my card?"


def ask(text: str = QUESTION) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "support", "messages": messages, "max_tokens": 10, "temperature": 0}


def answer_of(artifact: AdapterArtifact, base: Path, scratch: Path) -> str:
    learner, params = learner_of(artifact, PlainFolder(base), scratch=scratch)
    return learner.words.decode(learner.generate(params, [learner.words.prompt(QUESTION)], 10)[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", chat=False)


def test_a_prompt_is_answered_by_what_was_trained(base: Path, tmp_path: Path) -> None:
    artifact = released(base, tmp_path)
    with running(AdapterModel(artifact, base, kv_tokens=1024), threads=1) as here:
        status, body = here.ask("/v1/chat/completions", ask())
        assert status == 200, body
        said = json.loads(body)["choices"][0]["message"]["content"]
        assert said == answer_of(artifact, base, tmp_path)
        assert here.service.ready is not None
        assert here.service.ready.kind == "language"
        several = ask()
        several["messages"] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        status, body = here.ask("/v1/chat/completions", several)
        assert (status, b"single prompts" in body) == (400, True)
        completion = {"model": "support", "prompt": QUESTION + "\n", "max_tokens": 10, "temperature": 0}
        status, body = here.ask("/v1/completions", completion)
        assert json.loads(body)["choices"][0]["text"] == said


def test_a_classifier_answers_rows(base: Path, tmp_path: Path) -> None:
    artifact = released(base, tmp_path, "text-classifier")
    predictor = LanguagePredictor.of(artifact, PlainFolder(base), scratch=tmp_path, device="cpu")
    expected = predictor.predict(pa.table({"question": [QUESTION], "hint": ["now"]})).to_pylist()[0]
    with running(AdapterModel(artifact, base), threads=1) as here:
        status, body = here.ask("/v1/score", {"rows": [{"question": QUESTION, "hint": "now"}]})
        assert status == 200, body
        found = json.loads(body)["predictions"][0]
        assert found.keys() == expected.keys()
        assert found["prediction"] == expected["prediction"]
        assert all(abs(found[name] - expected[name]) < 1e-5 for name in artifact.columns[1:])
        assert here.ask("/v1/score", {"rows": [{"question": QUESTION}]})[0] == 400
        status, body = here.ask("/v1/score", {"rows": [{"question": "zq" * 300, "hint": "now"}]})
        assert status == 400
        assert b"zqzq" not in body
        assert here.ask("/v1/score", {"rows": [{"question": 5, "hint": "now"}]})[0] in (200, 400)


def test_a_sealed_one_is_opened_in_the_worker_alone(base: Path, tmp_path: Path) -> None:
    artifact, keys = released(base, tmp_path), Keys()
    files = MemoryFiles({TABLE_FILE: artifact.to_bytes()})
    seal_model(files, tmp_path / "sealed", person("ann"), name="support", kind="adapter", keys=keys)
    handed = ModelHandover.of(tmp_path / "sealed", person("ann").public)
    with pytest.raises(InputError, match="not sealed with it"):
        SealedFolder(handed, lender(handed, keys=keys))
    with running(SealedFolder(handed, lender(handed, keys=keys), 1024, base=base), threads=1) as here:
        status, body = here.ask("/v1/chat/completions", ask())
        assert status == 200, body
        said = json.loads(body)["choices"][0]["message"]["content"]
        assert said == answer_of(artifact, base, tmp_path)
        assert here.keys().model_digest == handed.manifest.digest


def test_on_another_base_it_is_not_served(base: Path, tmp_path: Path) -> None:
    need_walls()
    other = make_tiny_model(tmp_path / "other", seed=3)
    artifact = released(base, tmp_path)
    with pytest.raises(IntegrityError, match="base model here is not the one"):
        Service(
            AdapterModel(artifact, other), attester=InsecureAttesterDouble(), clients=None, allow_swap=True
        ).start()


def test_one_whose_key_a_broker_releases(base: Path, tmp_path: Path) -> None:
    need_walls()
    home = Home(tmp_path / "broker")
    try:
        owner, broker = identity("alice"), identity("broker").public
        keys, artifact = BrokerKeys(home.connect, broker, owner=owner), released(base, tmp_path)
        files = MemoryFiles({TABLE_FILE: artifact.to_bytes()})
        seal_model(files, tmp_path / "s", owner, name="support", kind="adapter", keys=keys, broker=broker)
        handed = ModelHandover.of(tmp_path / "s", owner.public)
        access = BrokerAccess(home.connect, broker, InsecureAttesterDouble(), holds=lambda _: True)
        source = SealedFolder(handed, lender(handed, access=access), 1024, base=base)
        with pytest.raises(PolicyRefused, match="granted nothing"):
            Service(source, attester=InsecureAttesterDouble(), clients=None, allow_swap=True).start()
        wanted = handed.wanted
        keys.allow(permission(kek_id=wanted.kek_id, manifest=wanted.manifest, plan=None, purpose=PURPOSE))
        source = SealedFolder(handed, lender(handed, access=access), 1024, base=base)
        with running(source, threads=1) as here:
            assert here.ask("/v1/chat/completions", ask())[0] == 200
    finally:
        home.close()
