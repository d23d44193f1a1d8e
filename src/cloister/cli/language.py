"""`--lang`, for commands that speak to people in whole sentences."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

__all__ = ["Lang", "LangOption"]


class Lang(enum.StrEnum):
    """Languages of messages and reports."""

    EN = "en"
    ZH = "zh"


LangOption = Annotated[Lang, typer.Option("--lang", help="Language of the answer.")]
