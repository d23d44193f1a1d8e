"""Studies of language models from the command line: planned, looked at, run here and over a network."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.inference.language.models import make_tiny_model
from tests.runtime.languageparties import Kind, base, digests, schema, table
from tests.runtime.parties import PURPOSE

from cloister.cli import common
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.learning.toml import write_toml
from cloister.vault import Vault

NAMES = ("north", "south", "west")
KINDS: tuple[Kind, ...] = ("text-classifier", "causal-lm")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of three sites and a hub, texts of two kinds in the sites' vaults, and a base."""
    import msgspec

    root = tmp_path_factory.mktemp("homes")
    base(root)
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub")}
    make_homes(root, identities)
    for kind in KINDS:
        (root / f"{kind}.toml").write_text(write_toml(msgspec.to_builtins(schema(kind))))
        for seed, name in enumerate(NAMES):
            vault = Vault.unlock(root / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
            vault.add_table(table(kind, 12, seed), name=kind, schema=schema(kind), purposes=[PURPOSE])
    return root


@pytest.fixture(autouse=True)
def _as_the_hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be(monkeypatch, made, "hub")
    yield
    common.passphrase.cache_clear()


def sites(made: Path) -> list[str]:
    return [text for name in NAMES for text in ("--site", str(made / name))]


def write_plan(made: Path, folder: Path, kind: str, *options: str) -> Path:
    path = folder / "plan.toml"
    arguments = ["study", "init", f"texts-{kind}", *sites(made), "--dataset", kind, "--purpose", PURPOSE]
    arguments += ["--model", kind, "--base", str(made / "base"), "--worker", "inside", "--rounds", "2"]
    assert run([*arguments, "--out", str(path), *options]) == 0
    return path


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_init_pins_base_tokenizer_and_start(made: Path, tmp_path: Path) -> None:
    options = ("--rank", "4", "--bits", "8")
    plan = read(write_plan(made, tmp_path, "text-classifier", *options))
    assert (plan["language"]["base"], plan["language"]["tokenizer"]) == digests(made / "base")
    assert plan["language"]["rank"] == 4
    assert plan["language"]["context"] == 256  # what the base can, below 512
    assert plan["model"]["classes"] == 3
    assert len(plan["model"]["initial"]) == 64
    assert plan["data"]["features"] == ["text"]
    assert plan["aggregation"]["bits"] == 8
    assert plan["aggregation"]["value_range"] == pytest.approx(0.04)
    assert plan["training"]["optimiser"] == "adam"


def test_init_writes_every_field_that_was_said(made: Path, tmp_path: Path) -> None:
    options = ["--rank", "4", "--alpha", "4", "--target", "q_proj", "--target", "v_proj", "--format", "text"]
    options += ["--precision", "bfloat16", "--overlong", "truncate", "--rows-per-pass", "2"]
    plan = read(write_plan(made, tmp_path, "causal-lm", *options, "--checkpointing", "--packing"))
    said: dict[str, Any] = {"rank": 4, "alpha": 4.0, "targets": ["q_proj", "v_proj"], "precision": "bfloat16"}
    said |= {"overlong": "truncate", "rows_per_pass": 2, "checkpointing": True, "packing": True}
    assert plan["language"] | said == plan["language"]


def test_a_rank_edited_after_the_pin_says_what_pins_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "text-classifier", "--rank", "4")
    plan.write_text(plan.read_text().replace("rank = 4", "rank = 2"))
    inside = ["--base", str(made / "base"), "--worker", "inside"]
    assert run(["study", "run", str(plan), *sites(made), *inside]) == 2
    said = capsys.readouterr().err
    assert "pins another initial model than its fields give" in said
    assert "`cloister study init`" in said
    assert "--rank" in said


def test_init_of_answers_and_of_privacy(made: Path, tmp_path: Path) -> None:
    pairs = read(write_plan(made, tmp_path, "causal-lm", "--format", "pairs", "--context", "64"))
    assert pairs["data"]["features"] == ["question"]
    assert pairs["language"] | {"format": "pairs", "context": 64} == pairs["language"]
    (tmp_path / "plan.toml").unlink()
    private = read(write_plan(made, tmp_path, "text-classifier", "--epsilon", "8"))
    assert private["language"]["overlong"] == "truncate"
    assert private["training"]["algorithm"] == "fedadam"
    assert private["privacy"]["epsilon"] == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "logistic", "--rank", "4"], "for language models"),
        (["--model", "logistic", "--base", "BASE"], "for language models"),
        (["--model", "logistic", "--rows-per-pass", "2"], "--rows-per-pass is for language models"),
        (["--model", "logistic", "--packing"], "--packing is for language models"),
        (["--model", "causal-lm", "--base", "BASE", "--method", "full", "--alpha", "2"], "has none"),
        (["--model", "causal-lm", "--base", "BASE", "--quantised", "nf4", "--method", "full"], "quantised"),
        (["--model", "causal-lm"], "starts from a base model"),
        (["--model", "causal-lm", "--base", "HOMES"], "model folder"),
        (["--model", "text-classifier", "--base", "BASE", "--format", "chat"], "reads text"),
        (["--model", "text-classifier", "--base", "BASE", "--method", "full", "--rank", "2"], "has none"),
        (["--model", "text-classifier", "--base", "BASE", "--context", "9999"], "more than the 256 tokens"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    made: Path, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"BASE": str(made / "base"), "HOMES": str(made / "north")}
    given = [named.get(each, each) for each in options]
    arguments = ["study", "init", "x", *sites(made), "--dataset", "text-classifier", "--purpose", PURPOSE]
    arguments += ["--worker", "inside", "--out", str(tmp_path / "plan.toml")]
    assert run([*arguments, *given]) == 2
    assert says in capsys.readouterr().err


def test_what_a_label_cannot_be_is_said_by_its_name(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--base", str(made / "base")]
    arguments += ["--worker", "inside", "--out", str(tmp_path / "plan.toml")]
    for kind, dataset in (("text-classifier", "causal-lm"), ("causal-lm", "text-classifier")):
        assert run([*arguments, "--model", kind, "--dataset", dataset]) == 2
        said = capsys.readouterr().err
        assert re.search(r"column '(answer|y)' is of type (text|category), and a", said), said


def test_what_is_given_to_a_causal_model_is_not_dropped_unsaid(made: Path, tmp_path: Path) -> None:
    plan = read(write_plan(made, tmp_path, "causal-lm"))  # features of text, and no --format
    assert plan["language"]["format"] == "pairs"
    assert plan["data"]["features"] == ["question"]
    (tmp_path / "plan.toml").unlink()
    assert read(write_plan(made, tmp_path, "causal-lm", "--format", "text"))["data"]["features"] == []


def test_a_base_without_a_template_learns_no_conversations(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_tiny_model(tmp_path / "plain", chat=False)
    arguments = ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--base", str(plain)]
    arguments += ["--worker", "inside", "--out", str(tmp_path / "plan.toml"), "--dataset", "causal-lm"]
    assert run([*arguments, "--model", "causal-lm", "--format", "chat"]) == 2
    assert "no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("worker", "says"),
    [("sandboxed", "behind its walls a worker has no GPU"), ("inside", "torch finds no GPU")],
)
def test_a_device_that_is_not_there_is_refused_before_the_study(
    made: Path, tmp_path: Path, worker: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if pytest.importorskip("torch").cuda.is_available() and worker == "inside":
        pytest.skip("there is one")
    plan = write_plan(made, tmp_path, "text-classifier")
    arguments = ["study", "run", str(plan), *sites(made), "--base", str(made / "base")]
    assert run([*arguments, "--device", "cuda", "--worker", worker]) == 2
    assert says in capsys.readouterr().err


def test_check_and_dry_run_say_what_an_adapter_takes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(made, tmp_path, "text-classifier", "--bits", "8")
    public, folder = ["--schema", str(made / "text-classifier.toml")], ["--base", str(made / "base")]
    capsys.readouterr()
    assert run(["study", "check", str(plan), *public]) == 0
    assert "give --schema and --base" in capsys.readouterr().out
    assert run(["study", "check", str(plan), *public, *folder, "--worker", "inside", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["parameters"] > 99
    assert checked["upload_bytes"] < checked["parameters"] + 1000
    be(monkeypatch, made, "north")
    arguments = ["site", "--dry-run", str(plan), "--worker", "inside", "--json"]
    assert run(arguments) == 0
    blind = json.loads(capsys.readouterr().out)
    assert "the base that it starts from is not given" in " ".join(blind["unknown"])
    broken = tmp_path / "broken"
    shutil.copytree(made / "base", broken)
    (broken / "model.safetensors").unlink()
    assert run([*arguments, "--base", str(broken)]) == 0
    said = " ".join(json.loads(capsys.readouterr().out)["unknown"])
    assert "weights are missing (model.safetensors)" in said
    assert run([*arguments, *folder]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["sent_bytes"] > 0
    what = " ".join(item["what"] for item in seen["items"])
    assert "adapter" in what
    assert "texts" in " ".join(seen["stays"])
    assert seen["columns"] == ["text", "y"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_in_walled_workers(
    made: Path, tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--format", "pairs") if kind == "causal-lm" else ()
    plan = write_plan(made, tmp_path, kind, *options)
    capsys.readouterr()
    assert run(["study", "run", str(plan), *sites(made), "--base", str(made / "base")]) == 0
    printed = capsys.readouterr()
    assert "2 rounds over 3 sites" in printed.out
    assert f"cloister release texts-{kind} --out release" in printed.out
    assert f" --base {made / 'base'}" in printed.out  # or the command that is shown would be refused
    assert "Round 1: 3 sites" in printed.err
    assert "Round 2: 3 sites" in printed.err
    assert run(["study", "run", str(plan), *sites(made)]) == 2  # kept already
    other = tmp_path / "other"
    other.mkdir()
    again = write_plan(made, other, kind, *options, "--method", "full") if kind == "causal-lm" else None
    if again is not None:
        assert read(again)["language"]["rank"] == 0


@pytest.mark.slow
def test_a_study_over_nats_whose_hub_sees_nothing(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "text-classifier", "--hub-view", "none", "--bits", "16")
    text = plan.read_text().replace('name = "texts-text-classifier"', 'name = "far"')
    plan.write_text(text)
    assert run(["up", str(plan), *sites(made), "--base", str(made / "base"), "--json"]) == 0
    printed = capfd.readouterr()
    assert '"rounds": 2' in printed.out, printed.err
    for name in NAMES:
        assert (made / name / "studies" / "far").exists(), printed.err
    assert not (made / "hub" / "studies" / "far").exists()
