"""`cloister verify`: exit codes, what is printed, and whose trust counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.cli.homes import be, make_homes, tampered
from tests.governance.releases import World, identity, make_world

from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.governance.folder import MODEL, PROOF


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("verify"))
    make_homes(
        world.root,
        {each.name: each for each in (world.hub, *world.sites, identity("reader"), identity("stranger"))},
    )
    world.release()
    world.release("sealed", recipients=[identity("reader").public], created="2026-04-01T00:00:00Z")
    return world


@pytest.fixture(autouse=True)
def _as_the_reader(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, world.root, "reader")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_yes_is_zero_and_tells_the_steps(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(world.root / "release")]) == 0
    text = said(capsys)
    assert len(re.findall(r"^ *\d+  \w+ +holds", text, re.MULTILINE)) == 12
    for sentence in (
        "The release verifies.",
        "No differential privacy was applied",
        "Not checked:",
        "revocation",
    ):
        assert sentence in text


def test_chinese(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(world.root / "release"), "--lang", "zh"]) == 0
    assert "发布内容通过验证" in said(capsys)


def test_json(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(world.root / "release"), "--json"]) == 0
    result = json.loads(said(capsys))
    assert result["verified"] is True
    assert result["failed"] is None
    assert [step["number"] for step in result["steps"]] == list(range(1, 13))
    assert all(step["ok"] for step in result["steps"])
    assert result["unchecked"]
    assert result["in_words"][0].startswith("Study heart")


def test_no_is_one_and_names_the_step(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tampered(world.root / "release", tmp_path, MODEL)
    assert run(["verify", str(folder)]) == 1
    text = said(capsys)
    assert "The release does not verify: 4, files: model.safetensors is not what" in text
    assert "No differential privacy" not in text  # what a bad certificate says is not repeated
    assert run(["verify", str(folder), "--json"]) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["verified"] is False
    assert result["failed"]["step"] == 4
    assert result["certificate"] is None
    assert result["in_words"] == []
    assert "step 4, files" in printed.err


def test_a_bad_proof(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tampered(world.root / "release", tmp_path, PROOF))]) == 1
    assert "11, log" in said(capsys)


def test_trust_from_the_command_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "empty"))
    release = str(world.root / "release")
    assert run(["verify", release]) == 2
    assert "nobody is trusted" in capsys.readouterr().err
    folder = tmp_path / "trust"
    folder.mkdir()
    options = []
    for each in (world.hub, *world.sites):
        (folder / f"{each.name}.json").write_bytes(each.public.to_json())
        options += ["--trust", str(folder / f"{each.name}.json")]
    assert run(["verify", release, "--trust", str(folder)]) == 0
    assert run(["verify", release, *options]) == 0
    assert run(["verify", release, *options[:-2]]) == 1
    assert "you do not trust site3" in capsys.readouterr().out
    namesakes = tmp_path / "namesakes"
    namesakes.mkdir()
    for each in (world.hub, *world.sites):
        (namesakes / f"{each.name}.json").write_bytes(Identity.generate(each.name).public.to_json())
    assert run(["verify", release, "--trust", str(namesakes)]) == 1
    assert "2, signature" in capsys.readouterr().out


def test_given_anchors_replace_those_of_the_home(world: World, tmp_path: Path) -> None:
    (tmp_path / "hub.json").write_bytes(world.hub.public.to_json())
    assert run(["verify", str(world.root / "release"), "--trust", str(tmp_path / "hub.json")]) == 1


def test_bad_input_is_two(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    release = str(world.root / "release")
    for arguments in (
        ["verify", str(tmp_path / "absent")],
        ["verify", str(tmp_path / "bad.json")],
        ["verify", release, "--trust", str(tmp_path / "bad.json")],
        ["verify", release, "--trust", str(tmp_path / "absent")],
        ["verify", release, "--trust", str(tmp_path / "folder")],
        ["verify"],
    ):
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) == 1


def test_a_sealed_model_is_opened_on_request(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    release = str(world.root / "sealed")
    assert run(["verify", release]) == 0
    assert "sealed to reader, not opened" in said(capsys)
    assert run(["verify", release, "--open"]) == 0
    text = said(capsys)
    assert "logistic, 5 parameters" in text
    assert "a recipient can verify" not in text


def test_a_model_that_is_sealed_to_others_is_not_opened_and_that_is_said(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, world.root, world.hub.name)
    assert run(["verify", str(world.root / "sealed"), "--open"]) == 2
    ended = capsys.readouterr()
    assert "The release verifies." in ended.out
    assert f"the model is not sealed to {world.hub.name}, so it was not opened" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_two_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cloister.governance import ReleasePolicy

    small = make_world(tmp_path, sites=2)
    small.release(policies=[ReleasePolicy()])
    trust = []
    for each in (small.hub, *small.sites):
        (tmp_path / f"{each.name}.json").write_bytes(each.public.to_json())
        trust += ["--trust", str(tmp_path / f"{each.name}.json")]
    assert run(["verify", str(tmp_path / "release"), *trust]) == 1
    assert "each can compute the other's update" in said(capsys)
    assert run(["verify", str(tmp_path / "release"), *trust, "--two-sites"]) == 0
