from __future__ import annotations

import getpass
import json
import stat
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.homes import PASSPHRASE

from cloister.cli import common
from cloister.crypto import Identity, ScryptCost, identity, read_export
from cloister.errors import PassphraseError


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A terminal at which these lines are typed; the prompts replace them."""
    lines: list[str] = []

    def ask(prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.delenv("CLOISTER_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr(getpass, "getpass", ask)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    common.passphrase.cache_clear()
    return lines


def test_init_makes_an_identity(tmp_path: Path, homes: Path, cloister: Command) -> None:
    ending = cloister("keys", "init", "new-clinic", "--json", home=homes / "fresh")
    path = homes / "fresh" / "identity.json"
    assert ending.code == 0
    assert ending.json["path"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    loaded = Identity.load(path, PASSPHRASE)
    assert (loaded.name, loaded.fingerprint) == ("new-clinic", ending.json["fingerprint"])
    assert json.loads(path.read_bytes())["cost"] == {"n": 2**17, "r": 8, "p": 1}
    assert PASSPHRASE not in ending.out + ending.err
    again = cloister("keys", "init", "new-clinic")
    assert again.code == 2
    assert "cloister keys rotate" in again.err
    assert Identity.read_public(path).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("name", ["Clinic", "a/b", "", "../x"])
def test_init_refuses_names(name: str, homes: Path, cloister: Command) -> None:
    ending = cloister("keys", "init", name, home=homes / "fresh")
    assert ending.code == 2
    assert "not allowed" in ending.err
    assert not (homes / "fresh").exists()


def test_a_passphrase_is_typed_twice(
    homes: Path, cloister: Command, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "ScryptCost", lambda: ScryptCost(n=16))
    monkeypatch.setenv("CLOISTER_HOME", str(homes / "fresh"))
    typed += ["one phrase", "another"]
    ending = cloister("keys", "init", "clinic")
    assert ending.code == 2
    assert "two passphrases differ" in ending.err
    assert "one phrase" not in ending.err
    typed += ["one phrase", "one phrase"]
    assert cloister("keys", "init", "clinic").code == 0
    assert typed == []
    assert Identity.load(homes / "fresh" / "identity.json", "one phrase").name == "clinic"


def test_an_empty_or_missing_passphrase_is_told(
    homes: Path, cloister: Command, typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_HOME", str(homes / "fresh"))
    typed += ["", ""]
    assert "passphrase is empty" in cloister("keys", "init", "clinic").err
    assert "no passphrase was given" in cloister("keys", "init", "clinic").err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert "CLOISTER_PASSPHRASE_FILE" in cloister("keys", "init", "clinic").err
    assert not (homes / "fresh" / "identity.json").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"pass\n", "pass"), (b"pass\r\n", "pass"), (b" pass ", " pass "), (b"a\n\n", "a\n")],
)
def test_the_passphrase_file_loses_one_line_break(
    content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(content)
    path.chmod(0o600)
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(path))
    common.passphrase.cache_clear()
    assert common.passphrase() == expected
    common.passphrase.cache_clear()


def test_a_passphrase_file_others_can_read_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(b"\xff")
    path.chmod(0o644)
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(path))
    common.passphrase.cache_clear()
    with pytest.raises(PassphraseError, match="UTF-8"):
        common.passphrase()
    assert "chmod 600" in capsys.readouterr().err


def test_a_passphrase_is_not_kept_after_the_command(homes: Path, cloister: Command) -> None:
    (homes / "work" / "file").write_bytes(b"x")
    assert cloister("keys", "sign", "file").code == 0
    assert common.passphrase.cache_info().currsize == 0


def test_there_is_no_passphrase_option(cloister: Command) -> None:
    for command in ("init", "rotate", "sign"):
        assert "passphrase" not in cloister("keys", command, "--passphrase", "x").out
        assert cloister("keys", command, "--passphrase", "x").code == 2


def test_show(homes: Path, people: dict[str, Identity], cloister: Command) -> None:
    shown = cloister("keys", "show", "--json").json
    assert shown["identity"]["fingerprint"] == people["ann"].fingerprint
    assert [person["name"] for person in shown["trusted"]] == ["ben", "eve"]
    text = cloister("keys", "show").out
    assert all(person.fingerprint in text for person in people.values())
    empty = cloister("keys", "show", home=homes / "nobody")
    assert (empty.code, "cloister keys init" in empty.out) == (0, True)


def test_export_and_trust(homes: Path, people: dict[str, Identity], cloister: Command) -> None:
    printed = cloister("keys", "export")
    assert read_export(printed.out.encode())[0] == people["ann"].public
    assert people["ann"].fingerprint in printed.err
    assert cloister("keys", "export", "--out", "ann.json").code == 0
    again = cloister("keys", "export", "--out", "ann.json")
    assert (again.code, "exists" in again.err) == (2, True)
    assert cloister("keys", "export", "--out", "ann.json", "--force").code == 0
    fresh = homes / "fresh"
    assert "Compare this fingerprint" in cloister("keys", "trust", "ann.json", home=fresh).err
    fingerprint = people["ann"].fingerprint
    compared = cloister(
        "keys",
        "trust",
        "ann.json",
        "--fingerprint",
        f"{fingerprint[:8]} {fingerprint[8:40].upper()}",
        "--json",
    )
    assert compared.json == {"name": "ann", "fingerprint": fingerprint, "compared": True}
    assert compared.err == ""


def test_a_wrong_fingerprint_is_not_trusted(
    homes: Path, people: dict[str, Identity], cloister: Command
) -> None:
    cloister("keys", "export", "--out", "ann.json")
    fresh = homes / "fresh"
    wrong = cloister("keys", "trust", "ann.json", "--fingerprint", people["ben"].fingerprint, home=fresh)
    assert (wrong.code, "another one" in wrong.err) == (1, True)
    short = cloister("keys", "trust", "ann.json", "--fingerprint", people["ann"].fingerprint[:31])
    assert (short.code, "too short" in short.err) == (2, True)
    assert cloister("keys", "show", "--json").json["trusted"] == []


def test_a_tampered_export_is_refused(homes: Path, cloister: Command) -> None:
    cloister("keys", "export", "--out", "ann.json")
    path = homes / "work" / "ann.json"
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"ben"'))
    ending = cloister("keys", "trust", "ann.json")
    assert (ending.code, "signature" in ending.err) == (1, True)


def test_untrust(homes: Path, cloister: Command) -> None:
    assert cloister("keys", "untrust", "ben").code == 0
    assert [person["name"] for person in cloister("keys", "show", "--json").json["trusted"]] == ["eve"]
    assert cloister("keys", "untrust", "ben").code == 2


def test_rotation_is_followed_by_who_trusted_the_old_keys(
    homes: Path, people: dict[str, Identity], cloister: Command
) -> None:
    (homes / "work" / "letter").write_bytes(b"to the old keys")
    assert cloister("seal", "letter", "--to", "ann", home=homes / "ben").code == 0
    rotated = cloister("keys", "rotate", "--json", home=homes / "ann").json
    assert rotated["previous"] == people["ann"].fingerprint
    assert rotated["fingerprint"] != rotated["previous"]
    assert stat.S_IMODE(Path(rotated["kept"]).stat().st_mode) == 0o600
    second = cloister("keys", "rotate", "--json").json
    assert second["previous"] == rotated["fingerprint"]
    assert cloister("open", "letter.sealed", "--out", "opened").code == 0
    assert (homes / "work" / "opened").read_bytes() == b"to the old keys"
    cloister("keys", "export", "--out", "ann.json")
    assert (
        cloister("keys", "trust", "ann.json", "--json", home=homes / "ben").json["fingerprint"]
        == second["fingerprint"]
    )
    impostor = Identity.generate("ann")
    (homes / "work" / "impostor.json").write_bytes(impostor.public.to_json())
    refused = cloister("keys", "trust", "impostor.json")
    assert (refused.code, "declared no successor" in refused.err) == (2, True)
    assert cloister("keys", "trust", "impostor.json", "--replace").code == 0


def test_a_crash_during_rotation_leaves_the_old_identity(
    homes: Path, people: dict[str, Identity], cloister: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Identity, "save", crash)
        assert cloister("keys", "rotate").code == 130
    assert cloister("keys", "show", "--json").json["identity"]["fingerprint"] == people["ann"].fingerprint
    rotated = cloister("keys", "rotate", "--json").json
    cloister("keys", "export", "--out", "ann.json")
    assert (
        cloister("keys", "trust", "ann.json", "--json", home=homes / "ben").json["fingerprint"]
        == rotated["fingerprint"]
    )


def test_a_wrong_passphrase_is_told(homes: Path, cloister: Command) -> None:
    (homes / "passphrase").write_text("xyzzy\n")
    (homes / "work" / "file").write_bytes(b"x")
    ending = cloister("keys", "sign", "file")
    assert (ending.code, "Check the passphrase" in ending.err, "xyzzy" in ending.err) == (2, True, False)


def test_an_identity_others_can_read_is_refused(homes: Path, cloister: Command) -> None:
    (homes / "ann" / "identity.json").chmod(0o644)
    ending = cloister("keys", "export")
    assert (ending.code, "chmod 600" in ending.err) == (2, True)


def test_without_an_identity_the_way_out_is_told(homes: Path, cloister: Command) -> None:
    for arguments in (("export",), ("rotate",), ("sign", "file")):
        ending = cloister("keys", *arguments, home=homes / "nobody")
        assert ending.code == 2
        assert "cloister keys init" in ending.err or "cannot read the file" in ending.err


def test_a_damaged_list_of_successions_is_told(homes: Path, cloister: Command) -> None:
    (homes / "ann" / "successions.json").write_bytes(b"nonsense")
    assert "list of successions" in cloister("keys", "export").err


def test_files_are_signed_and_checked(homes: Path, cloister: Command) -> None:
    report = homes / "work" / "report"
    report.write_bytes(b"results")
    assert cloister("keys", "sign", "report").code == 0
    assert cloister("keys", "sign", "report").code == 2
    assert cloister("keys", "sign", "report", "--force").code == 0
    good = cloister("keys", "check", "report", "report.sig", "--by", "ann", "--json", home=homes / "ben")
    assert (good.code, good.json["signed_by"]) == (0, "ann")
    assert cloister("keys", "check", "report", "report.sig", "--by", "eve").code == 1
    report.write_bytes(b"changed")
    assert cloister("keys", "check", "report", "report.sig", "--by", "ann").code == 1
    assert cloister("keys", "check", "report", "missing", "--by", "ann").code == 2
