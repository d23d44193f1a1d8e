"""Divide BANKING77 over five banks that see different kinds of questions.

    python -m examples.support_intents.prepare --data DIR --out DIR

DIR holds banking77_train.csv, banking77_test.csv and banking77_categories.json (see the README). Each
intent's questions are divided by shares drawn from a Dirichlet distribution with concentration 0.5: a bank
has many questions of some intents and hardly any of others, as banks do. The same seed gives the same
banks.

In OUT lie bank-1.csv to bank-5.csv, test.csv, and the schema.toml that all of them use.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.make_base import find

__all__ = ["prepare"]

SITES = 5
CONCENTRATION = 0.5
SEED = 1

Rows = list[tuple[str, str]]


def prepare(
    data: Path, out: Path, *, sites: int = SITES, concentration: float = CONCENTRATION, seed: int = SEED
) -> dict[str, int]:
    """Write the banks' files, and return how many rows each has."""
    train, test = (_read(find(data, f"banking77_{part}.csv")) for part in ("train", "test"))
    intents = sorted(json.loads(find(data, "banking77_categories.json").read_text(encoding="utf-8")))
    unknown = {intent for _, intent in (*train, *test)}.difference(intents)
    if unknown:
        raise SystemExit(f"{len(unknown)} intents of the rows are not in banking77_categories.json")
    out.mkdir(parents=True, exist_ok=True)
    shares = _divided(train, intents, sites, concentration, seed)
    parts = {f"bank-{number}": rows for number, rows in enumerate(shares, start=1)}
    for name, rows in (*parts.items(), ("test", test)):
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "intent"), *rows])
    (out / "schema.toml").write_text(_schema(intents), encoding="utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def _read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]


def _divided(rows: Rows, intents: Sequence[str], sites: int, concentration: float, seed: int) -> list[Rows]:
    """Return each bank's rows, intent by intent."""
    random = np.random.default_rng(seed)
    parts: list[Rows] = [[] for _ in range(sites)]
    for intent in intents:
        own = [row for row in rows if row[1] == intent]
        shares = random.dirichlet([concentration] * sites)
        cuts = (np.cumsum(shares)[:-1] * len(own)).astype(int)
        for part, chosen in zip(parts, np.split(random.permutation(len(own)), cuts), strict=True):
            part += [own[number] for number in chosen]
    return parts


def _schema(intents: Sequence[str]) -> str:
    listed = ",\n  ".join(json.dumps(intent, ensure_ascii=False) for intent in intents)
    return (
        '[columns.text]\ntype = "text"\n\n'
        f'[columns.intent]\ntype = "category"\nrole = "label"\ncategories = [\n  {listed},\n]\n'
    )


def main() -> None:
    """Write the files, as the command line says."""
    parser = argparse.ArgumentParser(description="Divide BANKING77 over five banks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the banks' files")
    parser.add_argument("--sites", type=int, default=SITES, help="how many banks")
    parser.add_argument("--concentration", type=float, default=CONCENTRATION, help="of the Dirichlet shares")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    counts = prepare(
        given.data, given.out, sites=given.sites, concentration=given.concentration, seed=given.seed
    )
    for name, count in counts.items():
        print(f"{name}: {count} rows")


if __name__ == "__main__":
    main()
