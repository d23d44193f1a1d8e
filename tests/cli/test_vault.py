from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import CHEAP, PASSPHRASE
from tests.vault.world import CANARY, PURPOSE, SCHEMA, row, rows, write_rows

from cloister.cli import common
from cloister.vault import LocalKeystore


@pytest.fixture
def home(homes: Path) -> Path:
    """Ann's home, with a keystore that opens fast."""
    LocalKeystore.initialise(homes / "ann" / "vault" / "keystore.json", PASSPHRASE, cost=CHEAP)
    Path("schema.toml").write_text(SCHEMA)
    rows(Path("rows.csv"), 30)
    return homes / "ann"


ADD = ("vault", "add", "rows.csv", "--name", "heart", "--schema", "schema.toml", "--purpose", PURPOSE)


def test_a_worked_session(home: Path, cloister: Command) -> None:
    added = cloister(*ADD, "--consent", "broad consent")
    assert (added.code, added.out, added.err) == (0, "heart: 30 rows stored.\n", "")
    listed = cloister("vault", "ls")
    assert listed.code == 0
    assert "heart  30 rows, 6 columns" in listed.out
    assert PURPOSE in listed.out
    shown = cloister("vault", "show", "heart")
    assert "broad consent" in shown.out
    assert "patient  text, id, pseudonym" in shown.out
    verified = cloister("vault", "verify", "heart")
    assert verified.code == 0
    assert verified.out.count("holds") == 5
    exported = cloister("vault", "export", "heart", "--out", "out.csv")
    assert exported.out == "30 rows are in out.csv, unencrypted.\n"
    assert len(Path("out.csv").read_text().splitlines()) == 31
    removed = cloister("vault", "rm", "heart", "--yes")
    assert "SSD" in removed.out
    assert cloister("vault", "ls").out == "The vault is empty.\n"


def test_a_worked_session_in_json(home: Path, cloister: Command) -> None:
    added = cloister(*ADD, "--purpose", "another", "--json").json
    assert (added["name"], added["rows"], added["purposes"]) == ("heart", 30, [PURPOSE, "another"])
    assert added["quarantined_rows"] == []
    assert [each["name"] for each in cloister("vault", "ls", "--json").json["datasets"]] == ["heart"]
    assert cloister("vault", "show", "heart", "--json").json["schema"]["columns"]["age"]["bounds"] == [0, 120]
    verified = cloister("vault", "verify", "heart", "--json").json
    assert verified["verified"] is True
    assert [check["number"] for check in verified["checks"]] == [1, 2, 3, 4, 5]
    exported = cloister("vault", "export", "heart", "--out", "out.parquet", "--json").json
    assert exported == {"name": "heart", "rows": 30, "out": "out.parquet", "encrypted": False}
    assert cloister("vault", "rm", "heart", "--yes", "--json").json["removed"] is True
    assert cloister("vault", "ls", "--json").json == {"datasets": []}


def test_the_keystore_is_made_with_the_first_dataset(homes: Path, cloister: Command) -> None:
    Path("schema.toml").write_text(SCHEMA)
    rows(Path("rows.csv"), 3)
    assert cloister(*ADD).code == 0
    assert LocalKeystore.open(homes / "ann" / "vault" / "keystore.json", PASSPHRASE).ids()


def test_a_draft_is_toml_on_stdout(home: Path, cloister: Command) -> None:
    drafted = cloister("vault", "draft", "rows.csv")
    assert drafted.code == 0
    assert set(tomllib.loads(drafted.out)["columns"]) == {
        "patient",
        "age",
        "pressure",
        "sex",
        "note",
        "phone",
        "agreed",
        "ill",
    }
    assert tomllib.loads(cloister("vault", "draft", "rows.csv", "--json").json["schema"])


def test_a_draft_that_was_not_finished_names_the_column(home: Path, cloister: Command) -> None:
    Path("schema.toml").write_text(cloister("vault", "draft", "rows.csv").out)
    refused = cloister(*ADD)
    assert refused.code == 2
    assert "column age" in refused.err
    assert "bounds = [lowest, highest]" in refused.err
    assert cloister("vault", "ls").out == "The vault is empty.\n"


def test_a_row_that_breaks_the_schema(home: Path, cloister: Command) -> None:
    write_rows(Path("rows.csv"), row(0), row(1, age=CANARY))
    refused = cloister(*ADD)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("the value is not a number (line 3, column age).")
    assert CANARY not in refused.err


def test_quarantine_lists_rows(home: Path, cloister: Command) -> None:
    write_rows(
        Path("rows.csv"), row(0), *(row(n, age="x") for n in range(1, 31)), "short", row(40, agreed="no")
    )
    added = cloister(*ADD, "--quarantine", "--json").json
    assert (added["rows"], added["quarantined"], added["without_consent"]) == (1, 31, 1)
    assert added["quarantined_rows"][0] == {"line": 3, "column": "age", "reason": "the value is not a number"}
    assert added["quarantined_rows"][30]["column"] is None
    cloister("vault", "rm", "heart", "--yes")
    text = cloister(*ADD, "--quarantine").out
    assert text.startswith("heart: 1 rows stored, left out: 1 without consent, 31 in quarantine.\n")
    assert "  line 3, column age: the value is not a number\n" in text
    assert "and 11 more" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "none"), "no dataset"),
        (("verify", "none"), "no dataset"),
        (("export", "none", "--out", "x.csv"), "no dataset"),
        (("rm", "none", "--yes"), "no dataset"),
        (("draft", "none.csv"), "No such file"),
        (("add", "none.csv", *ADD[3:]), "No such file"),
        ((*ADD[1:6], "none.toml", *ADD[7:]), "none.toml"),
        ((*ADD[1:4], "Bad Name", *ADD[5:]), "not allowed"),
        (ADD[1:-2], "--purpose"),
        (ADD[1:5], "--schema"),
    ],
)
def test_bad_input_is_one_sentence(
    home: Path, cloister: Command, arguments: tuple[str, ...], says: str
) -> None:
    ended = cloister("vault", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert says in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_removing_wants_a_yes(home: Path, cloister: Command) -> None:
    cloister(*ADD)
    refused = cloister("vault", "rm", "heart")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert "heart" in cloister("vault", "ls").out


def test_a_damaged_dataset(home: Path, cloister: Command) -> None:
    cloister(*ADD)
    path = home / "vault" / "datasets" / "heart" / "data.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    ended = cloister("vault", "verify", "heart")
    assert ended.code == 1
    assert "2  pinned      FAILS" in ended.out
    assert cloister("vault", "verify", "heart", "--json").json["verified"] is False
    ended = cloister("vault", "export", "heart", "--out", "out.csv")
    assert ended.code == 1
    assert not Path("out.csv").exists()


def test_a_damaged_manifest_does_not_hide_the_others(home: Path, cloister: Command) -> None:
    cloister(*ADD)
    cloister(*ADD[:4], "other", *ADD[5:])
    (home / "vault" / "datasets" / "heart" / "manifest.dsse.json").write_bytes(b"{}")
    listed = cloister("vault", "ls")
    assert listed.code == 0
    assert "heart  DAMAGED" in listed.out
    assert "other  30 rows" in listed.out
    assert "problem" in cloister("vault", "ls", "--json").json["datasets"][0]
    assert cloister("vault", "show", "heart").code == 1


def test_a_wrong_passphrase(home: Path, homes: Path, cloister: Command) -> None:
    cloister(*ADD)
    (homes / "passphrase").write_text("not the one")
    common.passphrase.cache_clear()
    for arguments in (("verify", "heart"), ("export", "heart", "--out", "x.csv"), ("rm", "heart", "--yes")):
        ended = cloister("vault", *arguments)
        assert ended.code == 2
        assert "passphrase" in ended.err
        assert "not the one" not in ended.err
    assert cloister("vault", "ls").code == 0  # reads no row and needs no key


def test_no_identity_yet(homes: Path, cloister: Command) -> None:
    (homes / "ann" / "identity.json").unlink()
    ended = cloister("vault", "ls")
    assert ended.code == 2
    assert "cloister keys init" in ended.err


def test_new_keys_leave_the_datasets_readable(home: Path, cloister: Command) -> None:
    assert cloister(*ADD).code == 0
    rotated = cloister("keys", "rotate")
    assert rotated.code == 0, rotated.err
    assert cloister("vault", "verify", "heart").code == 0
    assert "your present identity" in cloister("vault", "resign").out
    assert cloister("keys", "rotate").code == 0
    assert cloister("vault", "export", "heart", "--out", "out.csv").code == 0


def test_an_interrupted_rotation_is_finished_by_resign(home: Path, cloister: Command) -> None:
    assert cloister(*ADD).code == 0
    manifest = home / "vault" / "datasets" / "heart" / "manifest.dsse.json"
    before = manifest.read_bytes()
    assert cloister("keys", "rotate").code == 0
    manifest.write_bytes(before)  # as if the power had gone after the new identity was written
    refused = cloister("vault", "verify", "heart")
    assert refused.code == 1
    assert cloister("vault", "resign").out == "Signed anew: heart.\n"
    assert cloister("vault", "verify", "heart").code == 0


def test_resign_believes_no_identity_without_a_succession(home: Path, cloister: Command) -> None:
    from cloister.crypto import Identity
    from cloister.vault import Vault, load_schema

    thief = Identity.generate("ann")
    thief.save(home / f"identity-{thief.fingerprint[:8]}.json", PASSPHRASE, cost=CHEAP)
    planted = Vault(home / "vault", thief, LocalKeystore.open(home / "vault" / "keystore.json", PASSPHRASE))
    planted.add(Path("rows.csv"), name="planted", schema=load_schema(Path("schema.toml")), purposes=[PURPOSE])
    refused = cloister("vault", "resign")
    assert refused.code == 1
    assert cloister("vault", "verify", "planted").code == 1


def test_rotation_says_that_a_policy_must_be_signed_again(home: Path, cloister: Command) -> None:
    policy = home / "policy" / "release.toml"
    policy.parent.mkdir()
    policy.write_text("minimum_sites = 3\n")
    assert f"cloister keys sign-policy {policy}" in cloister("keys", "rotate").err
