"""`cloister release`: from a finished study in a home to a folder that verifies and predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.homes import CHEAP, PASSPHRASE, be, make_homes
from tests.runtime.parties import PURPOSE, plan_for, schema, table

from cloister.cli.main import run
from cloister.crypto import Identity, TrustStore, keyring
from cloister.governance import ReleasePolicy
from cloister.governance.folder import MODEL, SEALED_MODEL
from cloister.policy import load_signed_toml, sign_toml
from cloister.runtime import Party, Study, save_study
from cloister.vault import Vault

NAMES = ("north", "south", "west")


@pytest.fixture(scope="module")
def identities() -> dict[str, Identity]:
    return {name: Identity.generate(name) for name in (*NAMES, "hub", "reader", "other")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, identities: dict[str, Identity]) -> Path:
    """Homes of a hub and three sites with two finished studies: `open`, and `hidden`, whose hub has no model."""
    root = tmp_path_factory.mktemp("homes")
    make_homes(root, identities)
    parties = []
    for seed, name in enumerate(NAMES):
        vault = Vault.unlock(root / name / "vault", identities[name], PASSPHRASE, cost=CHEAP)
        vault.add_table(table(40, seed), name="train", schema=schema(), purposes=[PURPOSE])
        trusted = tuple(TrustStore(root / name / "trust").list())
        parties.append(Party(identities[name], vault, trusted=trusted))
    for study, view in (("open", "sum"), ("hidden", "none")):
        plan = plan_for(identities["hub"], parties, study={"name": study}, aggregation={"hub_view": view})
        save_study(root / "hub" / "studies", Study(plan, identities["hub"], parties).run(), identities["hub"])
    return root


@pytest.fixture(autouse=True)
def _as_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, root, "hub")


def sites(root: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    return [text for name in names for text in ("--site", str(root / name))]


def test_release_verify_predict(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"
    assert run(["release", "open", "--out", str(out), *sites(root)]) == 0
    assert "No differential privacy was applied" in capsys.readouterr().out
    for name in ("hub", "reader"):
        be(monkeypatch, root, name)
        assert run(["verify", str(out)]) == 0
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"a,b\n1.5,0\n-1.5,0\n")
    assert run(["predict", str(out), str(rows), "--plaintext", "--out", str(tmp_path / "answers.csv")]) == 0
    assert (tmp_path / "answers.csv").read_text().startswith('"prediction","probability"\n"yes",')


def test_json_and_the_log_grows(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = []
    for name in ("one", "two"):
        arguments = ["release", "open", "--out", str(tmp_path / name), *sites(root), "--json"]
        assert run(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        entries.append(result["log_entries"])
        assert result["cosignatures"] == 3
        assert result["sealed_to"] == []
        assert len(result["certificate"]) == 64
    assert entries[1] == entries[0] + 1


def test_sealed_to_a_reader(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "release"
    assert run(["release", "open", "--out", str(out), *sites(root), "--to", "reader", "--lang", "zh"]) == 0
    assert "模型已加密给：reader" in capsys.readouterr().out
    assert (out / SEALED_MODEL).exists()
    assert not (out / MODEL).exists()
    be(monkeypatch, root, "reader")
    assert run(["verify", str(out), "--open"]) == 0


def test_a_model_the_hub_must_not_see_is_released_by_a_site(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], identities: dict[str, Identity]
) -> None:
    out = tmp_path / "release"
    assert run(["release", "hidden", "--out", str(out)]) == 2
    assert "give the home of a site" in capsys.readouterr().err
    assert run(["release", "hidden", "--out", str(out), *sites(root), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["signer"] == identities["north"].fingerprint
    assert result["cosignatures"] == 2
    assert run(["verify", str(out)]) == 0


def test_too_few_members_to_cosign(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "release"
    for names in ((), ("north",)):
        assert run(["release", "open", "--out", str(out), *sites(root, names)]) == 2
        error = capsys.readouterr().err
        assert f"2 members other than the signer must cosign the log, {len(names)} can" in error
        assert "--site" in error
    assert run(["release", "open", "--out", str(out), *sites(root, ("other",))]) == 2
    assert "other is no member" in capsys.readouterr().err
    assert not out.exists()
    assert run(["release", "open", "--out", str(out), *sites(root, ("north", "west"))]) == 0


def test_policies(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], identities: dict[str, Identity]
) -> None:
    policy, out = tmp_path / "release.toml", tmp_path / "release"
    arguments = ["release", "open", "--out", str(out), *sites(root), "--policy", str(policy)]
    policy.write_text("minimum_sites = 4\nrequire_privacy = true\n")
    assert run(arguments) == 2
    assert "signature" in capsys.readouterr().err
    sign_toml(policy, ReleasePolicy, "release policy", [Identity.generate("nobody")])
    assert run(arguments) == 1
    sign_toml(policy, ReleasePolicy, "release policy", [identities["other"]])
    assert run(arguments) == 3
    error = capsys.readouterr().err
    assert "minimum_sites" in error
    assert "require_privacy" in error
    assert not out.exists()
    policy.write_text("minimum_sites = 3\n")
    assert run(arguments) == 1  # changed after it was signed
    sign_toml(policy, ReleasePolicy, "release policy", [identities["hub"]])
    assert run(arguments) == 0


def test_the_homes_own_policy_always_counts(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], identities: dict[str, Identity]
) -> None:
    own = root / "hub" / "policy" / "release.toml"
    own.parent.mkdir()
    own.write_text(f'recipients = ["{identities["reader"].fingerprint}"]\n')
    arguments = ["release", "open", "--out", str(tmp_path / "release"), *sites(root)]
    try:
        assert run(arguments) == 2  # not signed
        sign_toml(own, ReleasePolicy, "release policy", [identities["other"]])
        assert run(arguments) == 1  # not by this home
        sign_toml(own, ReleasePolicy, "release policy", [identities["hub"]])
        capsys.readouterr()
        assert run(arguments) == 3
        assert "recipients" in capsys.readouterr().err
        assert run([*arguments, "--to", "other"]) == 3
        own.rename(own.with_name("aside"))
        assert run(arguments) == 2  # its signature says that there was one
        own.with_name("aside").rename(own)
        assert run([*arguments, "--to", "reader"]) == 0
    finally:
        for file in own.parent.iterdir():
            file.unlink()
        own.parent.rmdir()


def test_bad_input(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for arguments in (
        ["release", "nothing", "--out", str(tmp_path / "out")],
        ["release", "../open", "--out", str(tmp_path / "out")],
        ["release", "open", "--out", str(tmp_path / "there"), *sites(root)],
        ["release", "open", "--out", str(tmp_path / "out"), "--site", str(tmp_path / "absent")],
        ["release", "open", "--out", str(tmp_path / "out"), "--to", "nobody"],
        ["release", "open"],
    ):
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_release_policy_is_signed_by_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Identity.generate("owner")
    make_homes(tmp_path, {"owner": own})
    be(monkeypatch, tmp_path, "owner")
    policy = tmp_path / "release.toml"
    policy.write_text("minimum_sites = 5\n")
    assert run(["keys", "sign-policy", str(policy)]) == 0
    read = load_signed_toml(policy, ReleasePolicy, "release policy", keyring([own.public]))
    assert read.minimum_sites == 5
    policy.write_text("minimum_site = 5\n")
    capsys.readouterr()
    assert run(["keys", "sign-policy", str(policy)]) == 2
    assert "minimum_sites" in capsys.readouterr().err
