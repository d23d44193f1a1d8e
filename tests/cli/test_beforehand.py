"""Before a study costs a budget: whether a key broker would release what it keeps for the study's worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.cli.test_enclavebroker import serving
from tests.runtime.parties import PURPOSE, SCHEMA, table

from cloister.cli import common
from cloister.cli.brokerkeys import open_vault
from cloister.cli.main import run
from cloister.crypto import Identity
from cloister.enclave.broker import opening
from cloister.enclave.broker.store import Store
from cloister.vault import LocalKeystore, Vault, load_schema

NAMES = ("north", "south", "west")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Three sites and a hub; north's rows need its broker, which is not served."""
    create = Store.create.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        opening.Store, "create", classmethod(lambda cls, *args, cost=None: create(cls, *args, cost=CHEAP))
    )
    identities = {name: Identity.generate(name) for name in (*NAMES, "hub")}
    make_homes(tmp_path, identities)
    be(monkeypatch, tmp_path, "north")
    socket = tmp_path / "north" / "broker" / "broker.sock"
    LocalKeystore.initialise(tmp_path / "north" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    with serving("--double"):
        for seed, name in enumerate(NAMES):
            owner, root = identities[name], tmp_path / name / "vault"
            if name == "north":
                vault = open_vault(root, owner, PASSPHRASE, new_to=(socket, owner.public))
            else:
                vault = Vault.unlock(root, owner, PASSPHRASE, cost=CHEAP)
            vault.add_table(table(60, seed), name="rows", schema=load_schema(SCHEMA), purposes=[PURPOSE])
    be(monkeypatch, tmp_path, "hub")
    plan = str(tmp_path / "plan.toml")
    named = ["study", "init", "loans", *sites(tmp_path), "--purpose", PURPOSE, "--rounds", "2"]
    assert run([*named, "--out", plan]) == 0
    yield tmp_path
    common.passphrase.cache_clear()


def sites(made: Path) -> list[str]:
    return [text for name in NAMES for text in ("--site", str(made / name))]


@pytest.mark.parametrize("command", [("study", "run"), ("up",)])
def test_a_study_that_no_broker_would_open_does_not_begin(
    made: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    plan = made / "plan.toml"
    line = [*command, str(plan), *sites(made)]

    def said(code: int, *more: str) -> str:
        capsys.readouterr()
        assert run([*line, *more]) == code
        error = capsys.readouterr().err
        assert "countersigned" not in error
        return error

    assert "walled workers alone" in said(3, "--worker", "inside")
    unserved = said(2)
    assert "does not answer" in unserved
    assert f"CLOISTER_HOME={made / 'north'} cloister enclave broker serve" in unserved
    be(monkeypatch, made, "north")
    with serving("--double"):
        be(monkeypatch, made, "hub")
        advice = said(3).split("Grant it: `")[1].split("`")[0]
        assert advice == f"CLOISTER_HOME={made / 'north'} cloister enclave broker grant rows --plan {plan}"
        be(monkeypatch, made, "north")
        assert run(["enclave", "broker", "grant", "rows", "--plan", str(made / "other.toml")]) == 2
        assert run(["enclave", "broker", "grant", "rows", "--days", "1"]) == 0  # for no plan
        be(monkeypatch, made, "hub")
        said(3)
    assert not (made / "hub" / "studies").exists()


def test_a_grant_with_a_use_left_lets_it_begin(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.cli.beforehand import require_grants
    from cloister.learning import load_plan

    plan = load_plan(made / "plan.toml")
    be(monkeypatch, made, "north")
    owner = common.load_identity()
    with serving("--double"):
        assert run(["enclave", "broker", "grant", "rows", "--plan", plan.digest.hex()]) == 0
        require_grants(made / "north", owner, plan, sandboxed=True)
    south = Identity.load(made / "south" / "identity.json", PASSPHRASE)
    require_grants(made / "south", south, plan, sandboxed=True)  # its keys are its own
