"""Tokens into text as they come: no half characters, and no text that may turn out to begin a stop text.

A token may be a part of a character, and how it reads may hang on its neighbours. So text is what a window of
tokens decodes to beyond what the window's older part decodes to alone, and it waits while it ends in half a
character; at most `_WINDOW` tokens wait. What may begin a stop text waits until it does not, or is the stop.

No torch here: `decode` is any function from token ids to text, without special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["Detokenizer", "Stops"]

_HALF: Final = "\ufffd"
_WINDOW: Final = 32


class Detokenizer:
    """The text of one answer.

    Args:
        decode: from token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._given = 0  # of `_tokens`, those whose text has been given

    def feed(self, tokens: Sequence[int]) -> str:
        """Return the text that has become clear with these tokens."""
        self._tokens += tokens
        return self._text(whole=len(self._tokens) - self._given > _WINDOW)

    def finish(self) -> str:
        """Return what was held back, half a character as U+FFFD."""
        return self._text(whole=True)

    def _text(self, *, whole: bool) -> str:
        if self._given == len(self._tokens):
            return ""
        before, now = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        if not whole and (len(now) <= len(before) or now.endswith(_HALF)):
            return ""
        self._tokens, self._given = self._tokens[self._given :], len(self._tokens) - self._given
        return now[len(before) :]


class Stops:
    """Cuts a text at the first of several stop texts.

    Args:
        texts: none of them empty.

    Attributes:
        stopped: whether one has come.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what is certainly before any stop text."""
        if self.stopped:
            return ""
        self._held += text
        places = [at for stop in self._texts if (at := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._take(min(places))
        return self._take(min((self._certain(stop) for stop in self._texts), default=len(self._held)))

    def finish(self) -> str:
        """Return what was held back; nothing after a stop."""
        return "" if self.stopped else self._take(len(self._held))

    def _certain(self, stop: str) -> int:
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return len(self._held) - length
        return len(self._held)

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text
