"""Tool calls: found however the text is cut, and nothing of the text is lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.language.tools import ToolCall, ToolFormat, ToolParser, tool_format

ULM = ToolCall("weather", '{"city": "Ulm"}')
BONN = ToolCall("weather", '{"city": "Bonn"}')
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
HERMES_BONN = HERMES.replace("Ulm", "Bonn")
MISTRAL = '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}}]'

CASES: list[tuple[ToolFormat | None, str, list[str | ToolCall]]] = [
    ("hermes", "Plain text, a < b.", ["Plain text, a < b."]),
    ("hermes", HERMES, [ULM]),
    ("hermes", f"Let me see.\n{HERMES}\n{HERMES_BONN}\n", ["Let me see.", ULM, BONN]),
    ("hermes", f"{HERMES} And then.", [ULM, " And then."]),
    ("hermes", HERMES.removesuffix("\n</tool_call>"), [ULM]),
    ("hermes", "<tool_call>{broken}</tool_call> ok", ["<tool_call>{broken}</tool_call> ok"]),
    ("hermes", "<tool_call>never closed", ["<tool_call>never closed"]),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>', None),  # type: ignore[list-item]
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None),  # type: ignore[list-item]
    ("hermes", '<tool_call>["f"]</tool_call>', None),  # type: ignore[list-item]
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": "a</tool_call>b"}}</tool_call>',
        [ToolCall("f", '{"x": "a</tool_call>b"}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
        [ToolCall("f", '{"x": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', [ToolCall("f", "{}")]),
    ("hermes", f"<tool_call>bad</tool_call>{HERMES}", ["<tool_call>bad</tool_call>", ULM]),
    ("hermes", MISTRAL, [MISTRAL]),
    ("mistral", MISTRAL, [ULM]),
    ("mistral", MISTRAL[:-1] + ', {"name": "weather", "arguments": {"city": "Bonn"}}]', [ULM, BONN]),
    ("mistral", f"Well. {MISTRAL}", ["Well.", ULM]),
    ("mistral", '[TOOL_CALLS]weather{"city": "Ulm"}', [ULM]),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Ulm"}[TOOL_CALLS]weather[ARGS]{"city": "Bonn"}',
        [ULM, BONN],
    ),
    ("mistral", "[TOOL_CALLS][1, 2]", ["[TOOL_CALLS][1, 2]"]),
    ("mistral", "[TOOL_CALLS]", ["[TOOL_CALLS]"]),
    (None, f"{HERMES}{MISTRAL}", [ULM, ULM]),
    (
        "mistral",
        "[TOOL_CALLS]no call, [TOOL_CALLS]weather{} x",
        ["[TOOL_CALLS]no call,", ToolCall("weather", "{}"), " x"],
    ),
    ("mistral", '[TOOL_CALLS]weather{"city": "}"} x', [ToolCall("weather", '{"city": "}"}'), " x"]),
    ("mistral", f"{MISTRAL} And then.", [ULM, " And then."]),
    (None, "a [TOOL", ["a [TOOL"]),
    (None, "  ", ["  "]),
    (None, "", []),
]


def joined(parts: list[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one."""
    out: list[str | ToolCall] = []
    for part in parts:
        if out and isinstance(part, str) and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out


def parsed(format: ToolFormat | None, pieces: list[str]) -> list[str | ToolCall]:
    parser = ToolParser(format)
    return joined([part for piece in pieces for part in parser.feed(piece)] + parser.finish())


@pytest.mark.parametrize(("format", "text", "expected"), CASES)
def test_however_it_is_cut(
    format: ToolFormat | None, text: str, expected: list[str | ToolCall] | None
) -> None:
    wanted = joined([text]) if expected is None else joined(list(expected))
    assert parsed(format, [text]) == wanted
    assert parsed(format, list(text)) == wanted
    dice = random.Random(7)  # noqa: S311 - it cuts texts
    for _ in range(20):
        cuts = sorted(dice.sample(range(len(text) + 1), min(3, len(text))))
        assert (
            parsed(format, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == wanted
        )


def test_text_is_given_as_soon_as_it_is_clear() -> None:
    parser = ToolParser("hermes")
    assert parser.feed("Hello") == ["Hello"]
    assert parser.feed(" <tool") == []
    assert parser.feed("box>") == [" <toolbox>"]


@given(
    st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "{", "}", '"', "\\", "[TOOL_CALLS]", "[", "x", " "])
    )
)
def test_nothing_is_lost(pieces: list[str]) -> None:
    found = parsed(None, pieces)
    text = "".join(str(part) for part in found if isinstance(part, str))
    if not any(isinstance(part, ToolCall) for part in found):
        assert text.replace(" ", "") == "".join(pieces).replace(" ", "")
    assert joined(found) == parsed(None, ["".join(pieces)])


def test_what_waits_is_bounded() -> None:
    parser = ToolParser("hermes")
    given_back = "".join(str(part) for part in parser.feed("<tool_call>" + '"' * 300_000))
    assert len(given_back) == 300_011


def test_deeply_nested_json_is_text() -> None:
    deep = "<tool_call>" + "[" * 100_000 + "</tool_call>"
    assert parsed("hermes", [deep]) == [deep]


def test_format_by_template() -> None:
    assert tool_format("{% if tools %}<tool_call>{% endif %}") == "hermes"
    assert tool_format("{% if tools %}[TOOL_CALLS]{% endif %}") == "mistral"
    assert tool_format("{% if tools %}<|python_tag|>{% endif %}") is None
    assert tool_format("<tool_call>") is None


def test_repr_shows_nothing() -> None:
    assert "Ulm" not in repr(ULM)
