"""Text comes as soon as it is whole, and never with what may begin a stop text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.language.text import Detokenizer, Stops


def utf8(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes: each character beyond ASCII takes several."""
    return bytes(tokens).decode(errors="replace")


@given(st.text(), st.lists(st.integers(1, 5)))
def test_all_text_comes_and_no_half_character(text: str, steps: list[int]) -> None:
    stream, tokens, given_text = Detokenizer(utf8), list(text.encode()), ""
    while tokens:
        count = steps.pop() if steps else 1
        piece = stream.feed(tokens[:count])
        tokens = tokens[count:]
        given_text += piece
        assert text.startswith(given_text)
    assert given_text + stream.finish() == text


def test_it_comes_at_once() -> None:
    stream = Detokenizer(utf8)
    assert [stream.feed([byte]) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert stream.finish() == ""


def test_half_a_character_at_the_end() -> None:
    stream = Detokenizer(utf8)
    assert stream.feed("€".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize("token", [0x80, None])
def test_what_waits_is_bounded(token: int | None) -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return "" if token is None else utf8(tokens)

    stream = Detokenizer(decode)
    for _ in range(1000):
        stream.feed([token or 0])
    assert longest < 100


def test_tokens_that_read_otherwise_beside_others() -> None:
    """Some tokenizers drop the first word's space: it must not be lost between two pieces."""

    def decode(tokens: Sequence[int]) -> str:
        return "".join(f" {token}" for token in tokens).lstrip()

    stream = Detokenizer(decode)
    assert "".join(stream.feed([token]) for token in (1, 2, 3)) == "1 2 3"


@given(st.text("abc"), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_stops(text: str, stops: list[str], step: int) -> None:
    cutter, out = Stops(stops), ""
    for at in range(0, len(text), step):
        out += cutter.feed(text[at : at + step])
        assert not any(stop in out for stop in stops)
    out += cutter.finish()
    assert text.startswith(out)
    assert cutter.stopped == any(stop in text for stop in stops)
    if not cutter.stopped:
        assert out == text
    elif step == 1:
        first = min(
            at + len(stop) for stop in stops if (at := text.find(stop)) >= 0
        )  # the first to be complete
        longest = max((len(stop) for stop in stops if text[:first].endswith(stop)), default=0)
        assert out == text[: first - longest]


def test_text_is_held_only_while_it_may_stop() -> None:
    cutter = Stops(("</end>",))
    assert cutter.feed("Hello <") == "Hello "
    assert cutter.feed("/em>") == "</em>"
    assert cutter.feed("</end> more") == ""
    assert cutter.stopped
    assert cutter.feed("x") == cutter.finish() == ""
