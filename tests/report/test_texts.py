from __future__ import annotations

import re
import string

import pytest

from cloister.report.model import STAGES
from cloister.report.texts import TEXTS, say


def _places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", TEXTS)
def test_both_languages_say_the_same(key: str) -> None:
    text = TEXTS[key]
    assert text.en.strip()
    assert text.zh.strip()
    # a language may leave a word out that the sentence has anyway (sites and site are one word in Chinese)
    assert _places(text.zh) <= _places(text.en)
    missing = _places(text.en) - _places(text.zh)
    assert missing <= {"site", "sites"}, f"{key} loses {missing} in Chinese"


@pytest.mark.parametrize(
    "key", [key for key in TEXTS if key not in ("comma", "measure_auc", "semicolon", "stop")]
)
def test_chinese_is_chinese_and_english_is_not(key: str) -> None:
    assert re.search(r"[\u4e00-\u9fff]", TEXTS[key].zh)
    assert not re.search(r"[\u4e00-\u9fff]", TEXTS[key].en)


def test_every_stage_has_its_words() -> None:
    for stage in STAGES:
        for kind in ("stage", "does", "bytes"):
            assert say("en", f"{kind}_{stage}")


def test_a_value_is_never_read_as_a_template() -> None:
    assert say("en", "p_site", site="{sites}") == "Each {sites}"
