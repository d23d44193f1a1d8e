"""HTML that cannot be injected into: every child and attribute is escaped, unless it is `Markup` already.

A name with HTML in it comes out as text. `Markup` is made by `element` and `join`, and from constants and
charts of this package; never from a report's fields.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Markup", "element", "join"]

_VOID = frozenset({"meta", "br", "hr", "link"})


class Markup(str):
    """HTML that is already escaped."""

    __slots__ = ()


def join(parts: Iterable[str]) -> Markup:
    """Return the parts one after the other; each that is not Markup is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """Return `<tag attributes>children</tag>`.

    Args:
        tag: its name, a constant of this package.
        children: text (escaped) or Markup.
        attributes: `class_` for class, `aria_label` for aria-label.
    """
    pairs = [
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for name, value in attributes.items()
    ]
    head = f"<{tag}{''.join(pairs)}>"
    return Markup(head) if tag in _VOID else Markup(f"{head}{join(children)}</{tag}>")
