"""Text that came from others, and errors nobody expected, made fit to be shown."""

from __future__ import annotations

import os
import traceback

__all__ = ["printable", "type_and_place"]


def printable(text: str, instead: str = " ", *, keep: str = "") -> str:
    """Return a text in which every character that does not print is another: a terminal shows it, and does
    not obey it.

    Args:
        text: of any origin.
        instead: stands for each character that does not print.
        keep: characters that stay although they do not print, line breaks say.
    """
    return "".join(letter if letter.isprintable() or letter in keep else instead for letter in text)


def type_and_place(error: BaseException) -> str:
    """Return type and place of an error, and not its text, which might hold a value of a row."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{os.sep}cloister{os.sep}" in frame.filename] or frames
    place = f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else "unknown place"  # noqa: PTH119
    return f"{type(error).__name__} at {place}"
