"""Text that came from others, made fit to be shown."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, instead: str = " ", *, keep: str = "") -> str:
    """Return a text in which every character that does not print is another: a terminal shows it, and does
    not obey it.

    Args:
        text: of any origin.
        instead: stands for each character that does not print.
        keep: characters that stay although they do not print, line breaks say.
    """
    return "".join(letter if letter.isprintable() or letter in keep else instead for letter in text)
