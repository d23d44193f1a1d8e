"""`--worker`: whether rows and a user's code get a walled process of their own."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from cloister.cli.common import say

__all__ = ["Where", "WorkerOption", "is_sandboxed"]


class Where(enum.StrEnum):
    """Where plaintext is worked on."""

    SANDBOXED = "sandboxed"
    INSIDE = "inside"


WorkerOption = Annotated[
    Where,
    typer.Option(
        "--worker",
        help="Where rows are read and a user's code runs: in a walled process, or inside this one.",
    ),
]


def is_sandboxed(where: Where, *, aloud: bool = True) -> bool:
    """Return whether there are walls; say so where the user wants none."""
    if where is Where.INSIDE and aloud:
        say(
            "WARNING: --worker inside: rows are read and code runs in this process, beside its keys and its "
            "network. Nothing separates them."
        )
    return where is Where.SANDBOXED
