from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.runtime.parties import PURPOSE, SCHEMA, table

from cloister.cli import common
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.vault import Vault, load_schema

NAMES = ("north", "south", "west")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of three sites and a hub, rows in the sites' vaults, everybody trusting everybody."""
    root = tmp_path_factory.mktemp("homes")
    (root / "schema.toml").write_bytes(SCHEMA)
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub")}
    make_homes(root, identities)
    for seed, name in enumerate(NAMES):
        vault = Vault.unlock(root / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
        for rows, dataset in ((60, "rows"), (20, "test")):
            vault.add_table(table(rows, seed), name=dataset, schema=load_schema(SCHEMA), purposes=[PURPOSE])
    return root


@pytest.fixture(autouse=True)
def _as_the_hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    be(monkeypatch, made, "hub")
    yield
    common.passphrase.cache_clear()


def sites(made: Path) -> list[str]:
    return [text for name in NAMES for text in ("--site", str(made / name))]


def write_plan(made: Path, folder: Path, name: str = "loans", *options: str) -> Path:
    plan = folder / "plan.toml"
    arguments = [
        "study",
        "init",
        name,
        *sites(made),
        "--purpose",
        PURPOSE,
        "--rounds",
        "3",
        "--out",
        str(plan),
    ]
    assert run([*arguments, *options]) == 0
    return plan


def test_init_check_and_run(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(made, tmp_path)
    capsys.readouterr()
    assert run(["study", "check", str(plan), "--schema", str(made / "schema.toml"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    numbers = {
        key: checked[key] for key in ("sites", "colluders", "threshold", "minimum", "tolerated_dropouts")
    }
    assert numbers == {"sites": 3, "colluders": 1, "threshold": 3, "minimum": 3, "tolerated_dropouts": 0}
    assert checked["parameters"] == 3
    assert run(["study", "run", str(plan), *sites(made), "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["rounds"] == 3
    assert result["sites"] == list(NAMES)
    assert result["metrics"] is None  # rows are not declared public
    assert printed.err == ""
    assert (made / "hub" / "studies" / "loans" / "record.dsse.json").exists()
    assert run(["study", "run", str(plan), *sites(made)]) == 2
    assert "kept here already" in capsys.readouterr().err


def test_a_study_in_the_ring_of_8_bits(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "narrow", "--bits", "8")
    capsys.readouterr()
    assert run(["study", "check", str(plan), "--schema", str(made / "schema.toml")]) == 0
    assert (
        "rounded at random, to one of 32 values on either side of zero, 0.25 apart" in capsys.readouterr().out
    )
    assert run(["study", "check", str(plan), "--schema", str(made / "schema.toml"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["bits"], checked["values_each_side"], checked["value_step"]) == (8, 32, 0.25)
    assert run(["study", "run", str(plan), *sites(made), "--json"]) == 0
    capsys.readouterr()
    private = ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--bits", "8", "--epsilon", "1"]
    assert run([*private, "--out", str(tmp_path / "private.toml")]) == 2
    assert "no room for the noise" in capsys.readouterr().err


def test_check_predicts_times_for_a_link(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_plan(made, tmp_path)
    capsys.readouterr()
    seconds = []
    for speed in ("1000", "0.001"):
        schema = ["--schema", str(made / "schema.toml")]
        assert run(["study", "check", str(path), *schema, "--link-mbit", speed, "--json"]) == 0
        predicted = json.loads(capsys.readouterr().out)
        assert predicted["link_mbit"] == float(speed)
        seconds.append(predicted["round_seconds"])
    assert seconds[0] < seconds[1]
    assert run(["study", "check", str(path), "--schema", str(made / "schema.toml"), "--link-mbit", "0"]) == 2
    assert "megabits" in capsys.readouterr().err


def test_a_study_is_watched_by_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", "watch", "nothing-runs", "--once"]) == 2
    assert "nothing-runs" in capsys.readouterr().err


def test_a_typo_in_the_plan_names_the_nearest_key(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path)
    plan.write_text(plan.read_text().replace("local_steps", "local_step"))
    capsys.readouterr()
    for command in (["study", "check", str(plan)], ["study", "run", str(plan), *sites(made)]):
        assert run(command) == 2
        error = capsys.readouterr().err
        assert "local_steps" in error
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("table_name", ["simulation"])
def test_what_this_version_cannot_honour_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], table_name: str
) -> None:
    plan = write_plan(made, tmp_path)
    plan.write_text(plan.read_text() + f"\n[{table_name}]\nepsilon = 1.0\n")
    assert run(["study", "check", str(plan)]) == 2
    assert "cannot honour" in capsys.readouterr().err


def test_a_wrong_passphrase_is_one_sentence(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "other")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "wrong").chmod(0o600)
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(tmp_path / "wrong"))
    capsys.readouterr()
    assert run(["study", "run", str(plan), *sites(made)]) == 2
    error = capsys.readouterr().err
    assert "passphrase" in error
    assert "wrong\n" not in error.replace("passphrase is wrong", "")


def test_init_refuses_a_purpose_that_a_dataset_was_not_added_for(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    arguments = ["study", "init", "x", *sites(made), "--purpose", "marketing", "--out", str(plan)]
    assert run(arguments) == 3
    error = capsys.readouterr().err
    assert "'rows' of north may not be used for 'marketing'" in error
    assert f"--purpose as {PURPOSE!r}" in error
    assert not plan.exists()


def test_a_missing_dataset_is_told_with_its_home_and_before_training(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "early")
    capsys.readouterr()
    again = ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--out", str(tmp_path / "new.toml")]
    for arguments in (
        [*again, "--dataset", "nope"],
        ["study", "run", str(plan), *sites(made), "--held-out", "nope"],
    ):
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"there is no dataset 'nope' ({made / 'north'})")
        assert error.count("\n") == 1


def test_the_next_step_that_is_printed_can_be_run_as_it_is(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = write_plan(made, tmp_path, "onwards")
    capsys.readouterr()
    assert run(["study", "run", str(plan), *sites(made)]) == 0
    step = capsys.readouterr().out.strip().splitlines()[-1].partition(": cloister ")[2]
    assert run(shlex.split(step)) == 0
    assert (tmp_path / "release" / "certificate.dsse.json").is_file()


def test_a_dataset_of_another_purpose_is_refused_by_policy(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "marketing")
    plan.write_text(plan.read_text().replace(f'purpose = "{PURPOSE}"', 'purpose = "marketing"'))
    capsys.readouterr()
    assert run(["study", "run", str(plan), *sites(made)]) == 3
    assert "may not be used for 'marketing'" in capsys.readouterr().err


def test_an_untrusted_member_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path, "untrusted")
    trusted = made / "south" / "trust" / "west.json"
    kept = trusted.read_bytes()
    trusted.unlink()
    capsys.readouterr()
    try:
        assert run(["study", "run", str(plan), *sites(made)]) == 3
    finally:
        trusted.write_bytes(kept)
    assert "south refuses a roster with a member it does not trust (west)" in capsys.readouterr().err
    assert not (made / "hub" / "studies" / "untrusted").exists()


@pytest.mark.parametrize("where", ["sandboxed", "inside"])
def test_an_interrupted_study_leaves_nothing_and_the_vault_verifies(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    from cloister.runtime import LocalWorker
    from cloister.runtime.workers.proxy import SandboxedWorker

    plan = write_plan(made, tmp_path, "interrupted")
    kind = LocalWorker if where == "inside" else SandboxedWorker
    train, pressed = kind.train, list[bool]()

    def interrupted(self: object, *given: object) -> object:
        if not pressed:
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return train(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "train", interrupted)
    assert run(["study", "run", str(plan), *sites(made), "--worker", where]) == 130
    assert "Interrupted" in capsys.readouterr().err
    assert not list((made / "hub").glob("studies/*interrupted*"))
    monkeypatch.setenv("CLOISTER_HOME", str(made / "north"))
    assert run(["vault", "verify", "rows"]) == 0


def test_init_refuses_different_schemas_and_existing_files(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write_plan(made, tmp_path)
    arguments = ["study", "init", "x", *sites(made), "--purpose", PURPOSE]
    assert run([*arguments, "--out", str(plan)]) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*arguments, "--dataset", "nothing", "--out", str(tmp_path / "new.toml")]) == 2
    assert run([*arguments, "--bits", "12", "--out", str(tmp_path / "new.toml")]) == 2
    assert not (tmp_path / "new.toml").exists()


def test_hidden_layers_are_for_a_perceptron(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cloister.learning import load_plan

    plan = write_plan(made, tmp_path, "deep", "--model", "mlp")
    assert load_plan(plan).model.hidden == (16,)
    arguments = ["study", "init", "x", *sites(made), "--purpose", PURPOSE, "--hidden", "8"]
    capsys.readouterr()
    assert run([*arguments, "--out", str(tmp_path / "new.toml")]) == 2
    assert "no hidden layers" in capsys.readouterr().err
