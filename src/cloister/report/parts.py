"""Pieces that every part of the page is made of: a section, a table that scrolls, a list of named values."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.report.markup import Markup, element, join
from cloister.report.texts import Language, say

__all__ = ["facts_list", "figure", "section", "table"]


def section(name: str, title: str, *children: str, note: str = "") -> Markup:
    """Return a part of the page with its heading and, below it, one sentence that says how to read it."""
    notes = [element("p", note, class_="note")] if note else []
    return element(
        "section",
        element("h2", title, id=f"h-{name}"),
        *notes,
        *children,
        class_=name,
        aria_labelledby=f"h-{name}",
    )


def table(name: str, head: Markup, rows: Sequence[Markup], kind: str) -> Markup:
    """Return a table that scrolls where it does not fit, named by the heading with the id `h-{name}`."""
    inner = element("table", element("thead", head), element("tbody", join(rows)), class_=kind)
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_labelledby=f"h-{name}")


def facts_list(lang: Language, facts: Sequence[tuple[str, str]]) -> Markup:
    """Return a list of named values, those without a value left out; names are keys of the texts."""
    rows = [
        element("div", element("dt", say(lang, key)), element("dd", value)) for key, value in facts if value
    ]
    return element("dl", *rows, class_="facts")


def figure(name: str, value: str, note: str, kind: str) -> Markup:
    """Return one large value of a list of them, with its name above and a note below."""
    return element(
        "div", element("dt", name), element("dd", value), element("dd", note, class_="small"), class_=kind
    )
