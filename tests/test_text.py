"""Text of others: whatever it holds, a terminal shows it and does not obey it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.text import printable


@given(st.text())
def test_what_does_not_print_is_replaced_one_for_one(text: str) -> None:
    shown = printable(text, "?")
    assert len(shown) == len(text)
    assert shown.isprintable()
    assert all(a == b or (b == "?" and not a.isprintable()) for a, b in zip(text, shown, strict=True))


def test_escape_sequences_and_line_breaks_end() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202e\u200b") == "a [2Jb  c  "


def test_what_is_kept_stays() -> None:
    assert printable("one\ntwo\tthree\x07", "\ufffd", keep="\n\t") == "one\ntwo\tthree\ufffd"
