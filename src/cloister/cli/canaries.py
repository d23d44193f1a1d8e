"""`cloister canaries SCHEMA --out DIR`: rows that an audit recognises in a finished model, and their list.

The owner adds the rows to its own before they enter the vault, and keeps the list; after the study
`cloister audit MODEL --planted DIR/canaries.json --base DIR` asks the model for them.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.common import JsonOption, emit
from cloister.errors import InputError

__all__ = ["canaries"]

_ROWS, _LIST = "rows.csv", "canaries.json"


class _Format(StrEnum):
    TEXT = "text"
    PAIRS = "pairs"
    CHAT = "chat"


def canaries(
    schema: Annotated[
        Path, typer.Argument(metavar="SCHEMA", help="schema.toml of the rows.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", help=f"Folder to make, with {_ROWS} and {_LIST}.", show_default=False)
    ],
    format: Annotated[
        _Format | None,
        typer.Option(help="As the plan's; by default pairs where the schema has features, else text."),
    ] = None,
    copies: Annotated[str, typer.Option(help="How often secrets are planted.")] = "1,4,20",
    secrets: Annotated[int, typer.Option(help="Secrets of each number of copies.")] = 5,
    coins: Annotated[
        int, typer.Option(help="Canaries of one row, each put in or left out by a coin: for the bound.")
    ] = 40,
    as_json: JsonOption = False,
) -> None:
    """Make rows that an audit recognises in a finished language model."""
    from cloister.cli.auditlanguage import numbers
    from cloister.files import new_directory, write_atomic
    from cloister.governance.plantfile import PlantFile, label_classes_of, plant_rows
    from cloister.learning.attacks.languagesecrets import make_plant
    from cloister.vault import load_schema

    if out.exists():
        raise InputError("the target exists", where=str(out), fix="Choose another place with --out")
    found = load_schema(schema)
    classes = label_classes_of(found)
    chosen = _Format.TEXT if classes else format or (_Format.PAIRS if found.features else _Format.TEXT)
    plant = make_plant(copies=numbers(copies), each=secrets, coins=coins, classes=classes)
    file = PlantFile(schema=found.digest().hex(), texts=chosen.value, plant=plant)
    rows = plant_rows(found, file)
    with new_directory(out, mode=0o700) as folder:
        write_atomic(folder / _ROWS, rows, mode=0o600)
        write_atomic(folder / _LIST, file.to_json(), mode=0o600)
    planted = len(plant.planted)
    emit(
        {"rows": planted, "secrets": len(plant.secrets), "coins": len(plant.coins), "folder": str(out)},
        as_json=as_json,
        text=f"{planted} rows in {out / _ROWS}: add them to your own before `cloister vault add`. "
        f"Keep {out / _LIST} to yourself; `cloister audit MODEL --planted {out / _LIST} --base DIR` asks the "
        "finished model for them.",
    )
