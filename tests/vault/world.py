"""A small vault to test with: cheap passphrases, one owner, rows with a canary in every column that holds text."""

from __future__ import annotations

import functools
from pathlib import Path

from cloister.crypto import Identity, ScryptCost
from cloister.vault import LocalKeystore, Manifest, Schema, Vault, load_schema

CHEAP = ScryptCost(n=1024, r=8, p=1)
PASSPHRASE = "correct horse"
PURPOSE = "heart study"
CANARY = "CANARY-7f3a91"

SCHEMA = """
[columns.patient]
type = "text"
role = "id"
pseudonym = true
[columns.age]
type = "integer"
bounds = [0, 120]
[columns.pressure]
type = "number"
bounds = [0.0, 300.0]
missing = "allow"
[columns.sex]
type = "category"
categories = ["female", "male"]
[columns.note]
type = "text"
role = "unit"
[columns.phone]
type = "text"
role = "drop"
[columns.agreed]
type = "boolean"
role = "consent"
[columns.ill]
type = "boolean"
role = "label"
"""
HEADER = "patient,age,pressure,sex,note,phone,agreed,ill"


def schema() -> Schema:
    return load_schema(SCHEMA.encode())


@functools.cache
def _identity(name: str) -> Identity:
    return Identity.generate(name)


def owner(name: str = "alice") -> Identity:
    return _identity(name)


def row(number: int, **changes: str) -> str:
    """Return a CSV line that fits the schema, but for what is changed."""
    fields = {
        "patient": f"{CANARY}-P{number}",
        "age": str(20 + number % 80),
        "pressure": "" if number % 7 == 0 else f"{100 + number % 50}.5",
        "sex": ("female", "male")[number % 2],
        "note": f"{CANARY}-N{number % 5}",
        "phone": f"{CANARY}-T{number}",
        "agreed": "yes",
        "ill": str(number % 2),
    }
    return ",".join((fields | changes).values())


def write_rows(path: Path, *lines: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def rows(path: Path, count: int = 40, start: int = 0) -> Path:
    """Write `count` good rows."""
    return write_rows(path, *(row(number) for number in range(start, start + count)))


def vault(root: Path, name: str = "alice") -> Vault:
    return Vault.unlock(root, owner(name), PASSPHRASE, cost=CHEAP)


def keystore(root: Path) -> LocalKeystore:
    return LocalKeystore.open(root / "keystore.json", PASSPHRASE)


def add(target: Vault, source: Path, name: str = "heart", **options: object) -> Manifest:
    return target.add(source, name=name, schema=schema(), purposes=[PURPOSE], **options)  # type: ignore[arg-type]
