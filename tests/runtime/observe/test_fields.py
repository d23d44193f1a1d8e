from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.runtime.observe.examples import EXAMPLES, KINDS

from cloister.runtime import events
from cloister.runtime.observe import event_fields, event_name, one_line


def test_every_kind_of_event_has_a_mapping_and_no_two_share_a_name() -> None:
    declared = {
        kind
        for kind in vars(events).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == events.__name__
    }
    assert set(KINDS) == declared == set(EXAMPLES)
    assert len({event_name(example) for example in EXAMPLES.values()}) == len(KINDS)
    assert {kind.__name__ for kind in KINDS} | {"Event", "OnEvent"} == set(events.__all__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_mapping_has_every_field_and_only_json_types(kind: type) -> None:
    fields = event_fields(EXAMPLES[kind], public=True)
    assert set(fields) == {field.name for field in dataclasses.fields(kind)}
    json.dumps(fields, allow_nan=False)


def test_measures_are_told_of_public_rows_only() -> None:
    done = EXAMPLES[events.RoundDone]
    assert event_fields(done, public=True)["metrics"] == {"accuracy": 0.5}
    assert not {"metrics", "site_metrics"} & set(event_fields(done))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_an_event_carries_besides_is_not_looked_at(kind: type) -> None:
    event = dataclasses.replace(EXAMPLES[kind])
    for number, name in enumerate(("row", "key", "seed", "metrics_of_rows", "__notes__")):
        object.__setattr__(event, name, f"canary-{number}")
    assert "canary" not in json.dumps(event_fields(event, public=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_text_of_an_event_holds_no_path_no_key_and_one_line(kind: type) -> None:
    planted = (
        'the rows (/srv/ward 7/canary-rows.csv)\x1b[2J\n{"event":"ended"} of ../canary/x canary.parquet '
        + ("0123456789abcdef" * 4)
    )
    example = EXAMPLES[kind]
    changed = {
        field.name: _plant(getattr(example, field.name), planted) for field in dataclasses.fields(kind)
    }
    text = json.dumps(event_fields(dataclasses.replace(example, **changed), public=True), ensure_ascii=False)
    assert "canary" not in text
    assert "\x1b" not in text
    assert "0123456789abcdef0123" not in text


def _plant(value: Any, planted: str) -> Any:
    match value:
        case str():
            return planted
        case tuple():
            return (planted,)
        case dict():
            return dict.fromkeys([planted], _plant(next(iter(value.values())), planted))
        case _:
            return value


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read (/srv/data/patients.csv). Check it", "cannot read ([path]). Check it"),
        ("cannot write (/data/my rows/x y): full", "cannot write ([path]): full"),
        ("at ~/rows/a and data/b", "at [path] and [path]"),
        ("in patients.csv, line 3", "in [path], line 3"),
        ("key " + "ab" * 32, "key [...]"),
        ("site-1 sent 3.5 of 7", "site-1 sent 3.5 of 7"),
        ("a\x1b[31m\r\nb\u202ec", "a [31m b c"),
        ("x y " * 200, ("x y " * 200)[:399] + "…"),
    ],
)
def test_lines(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_names_stay_whole_and_what_is_none_is_scrubbed() -> None:
    long = "hospital-of-the-university-of-somewhere-far-away"
    assert event_fields(events.Connected(long)) == {"peer": long}
    assert event_fields(events.Connected("../../etc/passwd")) == {"peer": "[path]"}


def test_numbers_that_json_does_not_know_are_null() -> None:
    spent = event_fields(events.Spent("p", float("inf"), 1.0, float("nan"), 0.0))
    assert (spent["epsilon"], spent["delta"]) == (None, None)
