from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.cli.conftest import Command

from cloister.crypto import Identity

TEXT = b"age,sex\n61,f\n"


@pytest.fixture
def rows(homes: Path) -> Path:
    path = homes / "work" / "rows.csv"
    path.write_bytes(TEXT)
    return path


def test_sealed_and_opened(rows: Path, homes: Path, people: dict[str, Identity], cloister: Command) -> None:
    ending = cloister("seal", "rows.csv", "--to", "ben", "--to", "ann", "--json")
    assert ending.code == 0
    assert ending.json["path"] == "rows.csv.sealed"
    assert [person["fingerprint"] for person in ending.json["recipients"]] == [
        people["ben"].fingerprint,
        people["ann"].fingerprint,
    ]
    assert TEXT not in (homes / "work" / "rows.csv.sealed").read_bytes()
    rows.unlink()
    opened = cloister("open", "rows.csv.sealed", "--json", home=homes / "ben")
    assert (opened.code, opened.json) == (0, {"path": "rows.csv", "identity": people["ben"].fingerprint})
    assert rows.read_bytes() == TEXT
    assert rows.stat().st_mode & 0o777 == 0o600
    assert cloister("open", "rows.csv.sealed", "--out", "mine.csv", home=homes / "ann").code == 0
    stranger = cloister("open", "rows.csv.sealed", "--out", "theirs.csv", home=homes / "eve")
    assert (stranger.code, "not sealed to you" in stranger.err) == (2, True)
    assert not (homes / "work" / "theirs.csv").exists()


def test_a_recipient_may_be_a_file(
    rows: Path, homes: Path, people: dict[str, Identity], cloister: Command
) -> None:
    (homes / "work" / "ben.json").write_bytes(people["ben"].public.to_json())
    (homes / "work" / "ben").write_bytes(people["eve"].public.to_json())
    assert cloister("seal", "rows.csv", "--to", "ben.json", "--json").json["recipients"][0]["name"] == "ben"
    by_name = cloister("seal", "rows.csv", "--to", "ben", "--force", "--json").json
    assert by_name["recipients"][0]["name"] == "ben"  # a bare name is never a file
    by_path = cloister("seal", "rows.csv", "--to", "./ben", "--force", "--json").json
    assert by_path["recipients"][0]["name"] == "eve"


@pytest.mark.parametrize("to", ["nobody", "missing.json", "rows.csv"])
def test_unknown_recipients_are_refused(to: str, rows: Path, cloister: Command) -> None:
    ending = cloister("seal", "rows.csv", "--to", to)
    assert ending.code == 2
    assert ending.err.count("\n") == 1
    assert not rows.with_name("rows.csv.sealed").exists()


def test_nothing_is_overwritten_without_force(rows: Path, cloister: Command) -> None:
    target = rows.with_name("rows.csv.sealed")
    target.write_bytes(b"precious")
    ending = cloister("seal", "rows.csv", "--to", "ben")
    assert (ending.code, "--force" in ending.err, target.read_bytes()) == (2, True, b"precious")
    assert cloister("seal", "rows.csv", "--to", "ann", "--force").code == 0
    opened = cloister("open", "rows.csv.sealed")
    assert (opened.code, rows.read_bytes()) == (2, TEXT)
    assert cloister("open", "rows.csv.sealed", "--force").code == 0


def test_a_file_is_not_sealed_over_itself(rows: Path, cloister: Command) -> None:
    assert cloister("seal", "rows.csv", "--to", "ann", "--out", "rows.csv", "--force").code == 2
    assert rows.read_bytes() == TEXT
    rows.with_name("link").symlink_to(rows)
    assert cloister("seal", "rows.csv", "--to", "ann", "--out", "link", "--force").code == 2


def test_a_tampered_file_is_not_opened(rows: Path, homes: Path, cloister: Command) -> None:
    cloister("seal", "rows.csv", "--to", "ann")
    sealed = rows.with_name("rows.csv.sealed")
    changed = bytearray(sealed.read_bytes())
    changed[-1] ^= 1
    sealed.write_bytes(changed)
    ending = cloister("open", "rows.csv.sealed", "--out", "out.csv")
    assert (ending.code, ending.err.count("\n")) == (1, 1)
    assert not rows.with_name("out.csv").exists()
    not_sealed = cloister("open", "rows.csv")
    assert (not_sealed.code, "not a sealed file" in not_sealed.err) == (2, True)


def test_a_sealed_file_without_the_ending_opens_beside(rows: Path, cloister: Command) -> None:
    cloister("seal", "rows.csv", "--to", "ann", "--out", "letter")
    assert cloister("open", "letter", "--json").json["path"] == "letter.opened"


def test_missing_files_are_told(homes: Path, cloister: Command) -> None:
    for arguments in (("seal", "none", "--to", "ann"), ("open", "none"), ("hash", "none")):
        ending = cloister(*arguments)
        assert (ending.code, "none" in ending.err, ending.err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_hash(algorithm: str, rows: Path, cloister: Command) -> None:
    digest = hashlib.new(algorithm, TEXT).hexdigest()
    assert cloister("hash", "rows.csv", "--algorithm", algorithm).out == f"{digest}  rows.csv\n"
    shown = cloister("hash", "rows.csv", "--algorithm", algorithm, "--json").json
    assert shown == {"path": "rows.csv", "algorithm": algorithm, "digest": digest}
    assert cloister("hash", "rows.csv", "--algorithm", algorithm, "--check", digest.upper()).code == 0
    wrong = cloister("hash", "rows.csv", "--algorithm", algorithm, "--check", digest[:-1])
    assert (wrong.code, "another one" in wrong.err) == (1, True)


@pytest.mark.parametrize(
    ("algorithm", "reason"), [("md5", "collisions"), ("sha1", "collisions"), ("whirlpool", "not known")]
)
def test_weak_hashes_are_refused_with_the_reason(
    algorithm: str, reason: str, rows: Path, cloister: Command
) -> None:
    ending = cloister("hash", "rows.csv", "--algorithm", algorithm)
    assert (ending.code, ending.out, reason in ending.err) == (2, "", True)
