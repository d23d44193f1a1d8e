"""The small base: it loads as any base does, learns something, and is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from examples.make_base import Recipe, make_base

from cloister.learning.modelfiles import PlainFolder, check_language_model
from cloister.learning.torch.language.words import Words

TEXTS = [
    f"The {animal} sleeps in the {place}.\nIt dreams." for animal in ("cat", "dog") for place in "abcd"
] * 20
SMALL = Recipe(seconds=2.0, epochs=40, vocabulary=300, hidden=32, inner=32, layers=1, heads=2, length=16)


def test_a_base_is_made_once_and_loads(tmp_path: Path) -> None:
    said: list[str] = []
    place = make_base(TEXTS, tmp_path / "bases", SMALL, said.append)
    assert "parameters" in said[0]
    assert make_base(TEXTS, tmp_path / "bases", SMALL, said.append) == place
    assert said[-1].endswith("is there already")
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [place.name]
    files = PlainFolder(place)
    words = Words(files, check_language_model(files), tmp_path)
    ids = words.prompt("The CAT")
    assert words.decode(ids, special=True).startswith("<s>")
    assert "the cat" in words.decode(ids)
    assert words.end == 2
    loss = float((place / "README.md").read_text().rstrip().rpartition(" ")[2])
    assert loss < 4.0, "it did not learn"


def test_other_texts_make_another_base(tmp_path: Path) -> None:
    first = make_base(TEXTS, tmp_path, SMALL, lambda line: None)
    assert make_base([*TEXTS, "more"], tmp_path, SMALL, lambda line: None) != first


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="too little text"):
        make_base(["a"], tmp_path, SMALL, lambda line: None)
    assert list(tmp_path.iterdir()) == []
