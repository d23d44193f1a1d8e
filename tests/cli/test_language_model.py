"""Released language models on the command line: verify, predict, seal, export, serve beside a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from tests.cli.homes import PASSPHRASE, be, make_homes
from tests.cli.test_serve import LENIENT, started
from tests.enclave.attester.machine import needs_swtpm
from tests.governance.languagereleases import make_language_world
from tests.governance.releases import World, identity, make_world
from tests.inference.adapters import text_schema
from tests.inference.language.models import make_tiny_model
from tests.runtime.languageparties import base as small_base
from tests.runtime.languageparties import parties, plan_for
from tests.runtime.workers.walls import needs_walls

from cloister import governance
from cloister.cli.main import run
from cloister.crypto import Identity, ScryptCost, open_bytes
from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy
from cloister.inference import AdapterArtifact, artifact_from_bytes
from cloister.inference.client import PrivateClient
from cloister.inference.language.answers import LanguagePredictor
from cloister.inference.models.sealed import SealedModel, read_envelope
from cloister.learning.modelfiles.files import PlainFolder
from cloister.policy import sign_toml
from cloister.runtime import Study, save_study
from cloister.vault import Vault

PURPOSE = "answers to customers"
CSV = b"question,hint\nWhere is my card?,now\nHello there.,\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two releases: `answers`, which writes, and `intents`, which tells classes; and `heart`, of a table."""
    root = tmp_path_factory.mktemp("language")
    base = make_tiny_model(root / "base")
    make_tiny_model(root / "other", seed=4)
    for kind, name in (("causal-lm", "answers"), ("text-classifier", "intents")):
        (root / kind).mkdir()
        world = make_language_world(root / kind, base, kind)
        world.root = root
        world.release(name, base=base)
    (root / "tables").mkdir()
    tables = make_world(root / "tables")
    tables.root = root
    tables.release("heart")
    people = (world.hub, *world.sites, identity("reader"), identity("server"))
    make_homes(root, {each.name: each for each in people})
    return world


@pytest.fixture(autouse=True)
def _as_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, world.root, "server")


def expected(world: World, name: str, rows: Path, most: int = 128) -> pa.Table:
    artifact = artifact_from_bytes((world.root / name / "model.safetensors").read_bytes())
    assert isinstance(artifact, AdapterArtifact)
    files = PlainFolder(world.root / "base")
    return LanguagePredictor.of(artifact, files, most=most, device="cpu").predict_file(rows)


def test_a_release_is_verified_in_words(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(world.root / "answers")]) == 0
    out = capsys.readouterr().out
    assert "The release verifies." in out
    assert "adapter of rank 4 to a public language model" in out
    card = (world.root / "answers" / "MODEL_CARD.md").read_bytes()
    (world.root / "answers" / "MODEL_CARD.md").write_bytes(card + b"It is never wrong.\n")
    try:
        assert run(["verify", str(world.root / "answers")]) == 1
        assert "MODEL_CARD.md is not what the certificate names" in capsys.readouterr().out
    finally:
        (world.root / "answers" / "MODEL_CARD.md").write_bytes(card)


@pytest.mark.parametrize("name", ["answers", "intents"])
def test_a_file_is_answered(world: World, tmp_path: Path, name: str) -> None:
    rows, base = tmp_path / "rows.csv", str(world.root / "base")
    rows.write_bytes(CSV)
    command = ["predict", str(world.root / name), str(rows), "--base", base, "--worker", "inside"]
    assert run([*command, "--plaintext", "--out", str(tmp_path / "out.csv"), "--tokens", "9"]) == 0
    found = pyarrow.csv.read_csv(
        tmp_path / "out.csv", parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    )
    wanted = expected(world, name, rows, most=9)
    assert found.column_names == wanted.column_names
    assert found.column(0).to_pylist() == wanted.column(0).to_pylist()
    assert run([*command, "--to", "reader", "--out", str(tmp_path / "sealed")]) == 0
    opened = open_bytes((tmp_path / "sealed").read_bytes(), identity("reader"))
    assert opened.startswith(b'"answer"' if name == "answers" else b'"prediction"')


def test_what_is_missing_or_wrong_is_one_sentence(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, release = tmp_path / "rows.csv", str(world.root / "answers")
    rows.write_bytes(CSV)
    base, other = str(world.root / "base"), str(world.root / "other")
    out = ["--plaintext", "--out", str(tmp_path / "out"), "--worker", "inside"]

    def refused(*command: str, code: int) -> str:
        assert run(list(command)) == code
        return capsys.readouterr().err

    assert "--base DIR" in refused("predict", release, str(rows), *out, code=2)
    assert "base model here is not the one" in refused(
        "predict", release, str(rows), "--base", other, *out, code=1
    )
    assert "scales nothing" in refused(
        "predict", release, str(rows), "--base", base, "--reference", str(rows), *out, code=2
    )
    heart = str(world.root / "heart")
    assert "needs no base" in refused("predict", heart, str(rows), "--base", base, *out, code=2)
    assert "for models of tables" in refused("he", "card", release, "--out", str(tmp_path / "k"), code=2)
    assert "--base DIR" in refused("model", "seal", release, "--out", str(tmp_path / "s"), code=2)
    assert "base model here is not the one" in refused(
        "model", "seal", release, "--base", other, "--out", str(tmp_path / "s"), code=1
    )
    assert "no language model's" in refused("model", "export", heart, "--out", str(tmp_path / "e"), code=2)
    assert "--base DIR" in refused(
        "model", "export", str(world.root / "intents"), "--out", str(tmp_path / "e"), code=2
    )
    assert "for releases" in refused("model", "seal", base, "--base", base, "--out", "x", code=2)
    assert not list(tmp_path.glob("[soek]*"))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_an_export_loads_in_peft(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = tmp_path / "peft"
    assert run(["model", "export", str(world.root / "answers"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reader"] == "peft"
    assert (out / "MODEL_CARD.md").read_bytes() == (world.root / "answers" / "MODEL_CARD.md").read_bytes()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.root / "base"), out)
    artifact = artifact_from_bytes((world.root / "answers" / "model.safetensors").read_bytes())
    assert isinstance(artifact, AdapterArtifact)
    state = model.state_dict()
    for name, tensor in artifact.tensors.items():
        assert (state[name.replace(".weight", ".default.weight")].numpy() == tensor).all()
    assert run(["model", "export", str(world.root / "answers"), "--out", str(out)]) == 2


def test_the_card_that_is_exported_is_the_one_that_was_verified(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "release"
    shutil.copytree(world.root / "answers", release)
    verify = governance.verify_release

    def verified(*given: Any, **named: Any) -> Any:
        verdict = verify(*given, **named)
        (release / "MODEL_CARD.md").write_bytes(b"It is never wrong.\n")
        return verdict

    monkeypatch.setattr(governance, "verify_release", verified)
    assert run(["model", "export", str(release), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "MODEL_CARD.md").read_bytes()
    assert card == (world.root / "answers" / "MODEL_CARD.md").read_bytes()
    assert (release / "MODEL_CARD.md").read_bytes() != card


def test_what_was_sealed_to_a_reader_is_exported_for_no_other_user(world: World, tmp_path: Path) -> None:
    base, out = world.root / "base", tmp_path / "out"
    if not (world.root / "kept").exists():
        world.release("kept", base=base, recipients=[identity("server").public])
    assert run(["model", "export", str(world.root / "kept"), "--base", str(base), "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert "adapter_model.safetensors" in modes
    assert set(modes.values()) == {0o600}


def test_a_sealed_adapter_is_ciphertext_under_a_key_of_the_home(world: World, tmp_path: Path) -> None:
    out, base = tmp_path / "sealed", str(world.root / "base")
    data = (world.root / "answers" / "model.safetensors").read_bytes()
    assert run(["model", "seal", str(world.root / "answers"), "--base", base, "--out", str(out)]) == 0
    stored = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert data[-64:] not in stored
    assert b"lora_A" not in stored
    from cloister.cli.modelkeys import home_keystore, owned_model

    handed = owned_model(out)
    assert handed.manifest.kind == "adapter"
    assert handed.manifest.release is not None
    keys = home_keystore(handed.owner)
    with SealedModel.open(out, handed.owner, lambda w: keys.unwrap(handed.manifest.kek_id, w)) as model:
        assert model.read("model.safetensors") == data
    assert read_envelope(out)
    assert run(["model", "verify", str(out)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["answers", "intents"])
def test_a_dataset_is_answered_behind_walls(world: World, tmp_path: Path, name: str) -> None:
    needs_walls()
    vault = Vault.unlock(
        world.root / "server" / "vault", identity("server"), PASSPHRASE, cost=ScryptCost(n=2**14)
    )
    kind = "causal-lm" if name == "answers" else "text-classifier"
    label = {"answer": ["a", "b"]} if name == "answers" else {"intent": ["card", "loan"]}
    rows = pa.table(
        {"question": ["Where is it?", "a\nb"], "hint": ["x", None], "customer": ["1", "2"]} | label
    )
    vault.add_table(rows, name=name, schema=text_schema(kind), purposes=[PURPOSE])
    out = tmp_path / "out"
    command = ["predict", str(world.root / name), "--dataset", name, "--to", "reader", "--out", str(out)]
    assert run([*command, "--base", str(world.root / "base"), "--tokens", "5"]) == 0
    opened = open_bytes(out.read_bytes(), identity("reader"))
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    found = pyarrow.csv.read_csv(pa.BufferReader(opened), parse_options=options)
    (tmp_path / "rows.csv").write_bytes(b'question,hint\nWhere is it?,x\n"a\nb",\n')
    wanted = expected(world, name, tmp_path / "rows.csv", most=5)
    assert found.column(0).to_pylist() == wanted.column(0).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True])
def test_it_is_served_beside_its_base(world: World, tmp_path: Path, sealed: bool) -> None:
    needs_walls()
    needs_swtpm()
    model, base = str(world.root / "answers"), str(world.root / "base")
    owner = Identity.load(world.root / "server" / "identity.json", PASSPHRASE)
    path = world.root / "server" / "policy" / "enclave.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(LENIENT)
    sign_toml(path, EnclavePolicy, ENCLAVE_POLICY, [owner])
    if sealed:
        sealed_at = str(tmp_path / "sealed")
        command = ["model", "seal", model, "--base", base, "--out", sealed_at]  # its card names it
        assert run(command) == 0
        model = sealed_at
    process, facts = started(model, "--base", base, "--anyone", "--allow-swap", "--kv-tokens", "1024")
    with process:
        try:
            assert (facts["kind"], facts["model"]) == ("language", "support")
            policy = EnclavePolicy(kinds=("tpm",), allow_software_tee=True, allow_self_reported=True)
            asked = {
                "model": "support",
                "messages": [{"role": "user", "content": "Where is my card?\nnow"}],
                "max_tokens": 9,
                "temperature": 0,
            }
            with PrivateClient(facts["url"], policy, model_digest=facts["model_digest"]) as client:
                answer = client.post("http://private/v1/chat/completions", json=asked)
                assert answer.status_code == 200, answer.text
                said = answer.json()["choices"][0]["message"]["content"]
        finally:
            process.terminate()
            process.communicate(timeout=60)
    (tmp_path / "rows.csv").write_bytes(CSV)
    assert said == expected(world, "answers", tmp_path / "rows.csv", most=9).column(0)[0].as_py()


def test_a_finished_study_is_released_beside_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, hub = small_base(tmp_path), Identity.generate("hub")
    members = parties(tmp_path / "vaults", "text-classifier", [6, 6, 6], base)
    people = {each.name: each for each in (hub, *(each.identity for each in members))}
    make_homes(tmp_path, people)
    be(monkeypatch, tmp_path, "hub")
    plan = plan_for(hub, members, "text-classifier", base, training={"rounds": 1})
    save_study(tmp_path / "hub" / "studies", Study(plan, hub, members).run(), hub)
    out = str(tmp_path / "release")
    sites = [text for name in people if name != "hub" for text in ("--site", str(tmp_path / name))]
    assert run(["release", "test", "--out", out, *sites]) == 2
    assert "--base DIR" in capsys.readouterr().err
    assert run(["release", "test", "--out", out, "--base", str(base), *sites]) == 0
    assert "adapter of rank 2" in capsys.readouterr().out
    card = (tmp_path / "release" / "MODEL_CARD.md").read_text()
    line = next(line for line in card.splitlines() if line.startswith("cloister model export"))
    named = {"RELEASE": out, "BASE": str(base), "DIR": str(tmp_path / "peft")}
    words = [named.get(word, word) for word in line.partition("#")[0].split()]
    assert run(words[1:]) == 0  # as the card says
    assert run(["verify", out]) == 0
    (tmp_path / "rows.csv").write_bytes(b"text\nmy bill is wrong\n")
    command = ["predict", out, str(tmp_path / "rows.csv"), "--base", str(base), "--worker", "inside"]
    assert run([*command, "--plaintext", "--out", str(tmp_path / "found.csv")]) == 0
    assert (tmp_path / "found.csv").read_text().startswith('"prediction","probability=bill"')
