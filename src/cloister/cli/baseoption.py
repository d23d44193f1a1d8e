"""`--base`: the folder of the base model that a language model starts from.

A plan names its base by digest; whoever runs a part of a study says where the files are, and they are checked
against the plan before anything is trained from them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.learning import Plan

__all__ = ["BaseOption", "Bases", "BasesOption", "Device", "DeviceOption", "RanksOption", "ShardOption"]


class Device(enum.StrEnum):
    """What a language model is trained on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="DIR",
        help="Folder of the base model (safetensors) that a language model of the plan starts from.",
    ),
]
BasesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--base", metavar="DIR", help="Folder of a base model that language models start from; repeat."
    ),
]
RanksOption = Annotated[
    int,
    typer.Option(
        "--ranks",
        min=1,
        max=1024,
        help="Processes that train a language model together, one for each GPU; with --worker inside.",
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(
        "--device",
        help="What a language model trains on: a GPU where there is one (auto), which needs --worker inside, "
        "for behind walls there is none.",
    ),
]
ShardOption = Annotated[
    bool, typer.Option("--shard", help="With --ranks: each process holds only a part of the base.")
]


class Bases:
    """The bases that a site has, found by what a plan names.

    Args:
        folders: where they are.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._digests: dict[Path, str] = {}

    def of(self, plan: Plan) -> Path | None:
        """Return the folder of a plan's base; None where it has none, or no folder was given at all.

        Of a single folder nothing is read here: whether it is the plan's base is found out where it is used.

        Raises:
            InputError: none of several is the plan's base, or one cannot be read.
        """
        if plan.language is None or not self._folders:
            return None
        if len(self._folders) == 1:
            return self._folders[0]
        for folder in self._folders:
            if self._digest(folder) == plan.language.base:
                return folder
        raise InputError(
            f"none of {len(self._folders)} base models is the one that the plan starts from",
            where=f"study {plan.study.name}, base {plan.language.base[:16]}",
            fix="Give its folder with --base too",
        )

    def _digest(self, folder: Path) -> str:
        """Return the digest of a folder's files, which is worked out once."""
        from cloister.learning.modelfiles import PlainFolder

        if folder not in self._digests:
            files = PlainFolder(folder)
            files.close()
            self._digests[folder] = files.digest
        return self._digests[folder]
