"""A certificate in sentences: complete in both languages, and honest."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.governance.releases import identity, make_world

from cloister.errors import InputError
from cloister.governance import in_words
from cloister.governance.words import _CHINESE, _ENGLISH


def test_both_languages_say_the_same_things() -> None:
    assert _ENGLISH.keys() == _CHINESE.keys()
    import string

    for key in _ENGLISH:
        fields = [{f for _, f, _, _ in string.Formatter().parse(t[key]) if f} for t in (_ENGLISH, _CHINESE)]
        assert fields[0] == fields[1] or key == "drops"


def test_the_sentences_hold_the_facts(tmp_path: Path) -> None:
    world = make_world(tmp_path, lost={1: {"site3"}})
    statement = world.release(recipients=[identity("reader").public]).certificate.statement
    english = " ".join(in_words(statement))
    for fact in (
        "Study heart trained one logistic model with fedavg in 5 rounds",
        "heart disease research",
        "4 sites took part with 400 rows",
        "site2 (100 rows)",
        "at most 1 of 4 sites",
        "In 1 of 5 rounds a site dropped out",
        "smallest sum had 3 sites",
        "No differential privacy was applied",
        "No hardware evidence",
        "sealed to: reader",
        "2026-03-01T12:00:00Z",
    ):
        assert fact in english
    chinese = " ".join(in_words(statement, "zh"))
    for fact in ("heart", "400", "没有采用差分隐私", "没有硬件证据", "reader"):
        assert fact in chinese
    assert len(in_words(statement)) == len(in_words(statement, "zh"))


def test_what_differs_is_said_differently(tmp_path: Path) -> None:
    plain = make_world(tmp_path / "plain").release().certificate.statement
    assert "No site dropped out" in " ".join(in_words(plain))
    assert "not sealed" in " ".join(in_words(plain))
    assert "saw the sum" in " ".join(in_words(plain))
    hidden = make_world(tmp_path / "hidden", aggregation={"hub_view": "none"})
    from cloister.log import Log

    site = hidden.sites[0]
    statement = hidden.release(signer=site, log=Log(tmp_path / "l", site.fingerprint)).certificate.statement
    assert "could not read" in " ".join(in_words(statement))


def test_a_long_roster_is_cut(tmp_path: Path) -> None:
    statement = make_world(tmp_path, sites=55).release().certificate.statement
    assert "site49 (100 rows), 5 more" in " ".join(in_words(statement))


def test_another_language_is_refused(tmp_path: Path) -> None:
    statement = make_world(tmp_path).release().certificate.statement
    with pytest.raises(InputError, match="en or zh"):
        in_words(statement, "fr")  # type: ignore[arg-type]
