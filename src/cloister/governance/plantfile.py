"""Canaries that an owner adds to rows before a study, and the list by which a model is asked for them later.

    rows.csv        rows of the schema, to be added to the owner's own before they enter the vault
    canaries.json   what was drawn: what is in, what a coin left out; for its owner alone (mode 0600)

A row's prompt stands in the first text column of the schema's features, its answer or class in the label.
What else the schema asks for is filled with what says nothing: the first category, the lowest number. A
secret's rows share one unit, and ids count.

Who has the list can ask the model for the planted secrets; they are nobody's, so that nothing is lost but the
audit. Canaries are rows: they are trained on, counted and paid for like others.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final, Literal

import msgspec

from cloister.crypto import sha256
from cloister.errors import InputError
from cloister.files import read_bytes
from cloister.learning.attacks.languagesecrets import Plant, Secret, text_rows
from cloister.learning.columns import class_names
from cloister.learning.language.texts import TextFormat
from cloister.vault import Column, Schema

__all__ = ["PlantFile", "label_classes_of", "plant_rows", "read_plant"]

_LIMIT: Final = 64 << 20


class PlantFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The list.

    Attributes:
        format: of this file.
        schema: digest of the schema that the rows are of, hex.
        texts: how rows are told: "text", "pairs" or "chat".
        plant: what was drawn.
    """

    format: Literal["cloister-canaries/1"] = "cloister-canaries/1"
    schema: str
    texts: TextFormat
    plant: Plant

    def to_json(self) -> bytes:
        """Return it as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_plant(path: Path) -> PlantFile:
    """Return the list in a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(read_bytes(path, limit=_LIMIT, what="list of canaries"), type=PlantFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # the reason would quote a planted secret
        raise InputError(
            "this is not a list of canaries",
            where=str(path),
            fix="Give the canaries.json that `cloister canaries` wrote",
        ) from None


def label_classes_of(schema: Schema) -> int:
    """Return how many classes the schema's label has; 0 of a text.

    Raises:
        InputError: there is no label, or it is a number.
    """
    name = schema.label
    if name is None:
        raise InputError("the schema has no label", where="schema", fix='Write role = "label" for one')
    label = schema.columns[name]
    if label.type == "text":
        return 0
    if label.type == "boolean":
        return 2
    if label.type == "category" and label.categories:
        return len(label.categories)
    raise InputError(
        "canaries are for models that learn texts, or classes of texts",
        where=f"column {name!r}",
        fix="Use a label of type text, category or boolean",
    )


def plant_rows(schema: Schema, file: PlantFile) -> bytes:
    """Return the planted rows as CSV, UTF-8, with every column of the schema.

    Raises:
        InputError: no text column could hold a prompt.
    """
    secrets = file.plant.planted
    told = [] if not secrets else _told(schema, file.texts, secrets)
    text = io.StringIO()
    out = csv.DictWriter(text, fieldnames=list(schema.columns), lineterminator="\n")
    out.writeheader()
    for number, (secret, cells) in enumerate(zip(secrets, told, strict=True)):
        out.writerow(
            {
                name: cells.get(name, _filled(column, secret, number))
                for name, column in schema.columns.items()
            }
        )
    return text.getvalue().encode()


def _told(schema: Schema, format: TextFormat, secrets: tuple[Secret, ...]) -> list[dict[str, str]]:
    """Return the cells of each row that tell its secret."""
    label = schema.label or ""
    prompt = next((name for name in schema.features if schema.columns[name].type == "text"), None)
    rows = text_rows(secrets, format)
    if rows.chats is not None:
        return [{label: msgspec.json.encode(chat).decode()} for chat in rows.chats]
    if rows.answers is not None and format == "text":
        return [{label: answer} for answer in rows.answers]
    if prompt is None:
        raise InputError("no feature is a text", where="schema", fix="Declare the prompt's column as text")
    if rows.answers is not None:
        return [{prompt: asked, label: said} for asked, said in zip(rows.prompts, rows.answers, strict=True)]
    names = class_names(schema.columns[label], secrets[0].classes)
    return [{prompt: secret.question, label: names[int(secret.digits)]} for secret in secrets]


def _filled(column: Column, secret: Secret, number: int) -> str:
    if column.role == "unit":
        return secret.name if column.type == "text" else str(_unit(secret))
    if column.role == "id":
        return f"canary-{number}" if column.type == "text" else str(10**12 + number)
    if column.role == "consent" or column.type == "boolean":
        return "true"
    if column.missing == "allow":
        return ""
    if column.type == "category":
        return (column.categories or ("",))[0]
    if column.type in ("number", "integer"):
        return f"{(column.bounds or (0, 0))[0]:g}"
    return "-"


def _unit(secret: Secret) -> int:
    """Return a whole number that is the secret's own."""
    return 10**12 + int.from_bytes(sha256(secret.name.encode())[:5], "big")
