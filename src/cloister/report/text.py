"""One text in both languages, and which languages there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Language", "Text"]

Language = Literal["en", "zh"]


@dataclass(frozen=True)
class Text:
    """One text in both languages."""

    en: str
    zh: str

    def to(self, lang: Language) -> str:
        """Return it in `lang`."""
        return self.zh if lang == "zh" else self.en
