"""Divide MedQuAD over the six institutes that wrote it, and hold some of each one's documents out.

    python -m examples.medical_qa.prepare --data DIR --out DIR

DIR holds medquad_6sources.csv.gz (see the README): questions about diseases, and answers from pages of
CancerGov, NIDDK, NINDS, SeniorHealth, NHLBI and CDC. A document's rows stay together: all of them are
learnt from, or all are held out, chosen by a digest of the document's name, so that the same documents are
held out everywhere. A row whose answer also stands in a held-out document is not learnt from, and no row is
there twice.

In OUT lie, for each institute, NAME.csv and NAME-test.csv, and the schema.toml that all of them use.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
from pathlib import Path

from examples.make_base import find

__all__ = ["prepare"]

HELD_OUT = 0.1
SCHEMA = """\
[columns.question]
type = "text"

[columns.answer]
type = "text"
role = "label"
"""

Pair = tuple[str, str]
Documents = dict[str, list[Pair]]


def prepare(data: Path, out: Path, *, held_out: float = HELD_OUT) -> dict[str, tuple[int, int]]:
    """Write the institutes' files, and return how many rows each has to learn from and held out."""
    with gzip.open(find(data, "medquad_6sources.csv.gz"), "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sources: dict[str, Documents] = {}
    for row in rows:
        pair = row["question"].strip(), row["answer"].strip()
        if all(pair):
            documents = sources.setdefault(row["source"].lower(), {})
            documents.setdefault(row["doc_id"].partition("_")[0], []).append(pair)
    divided = {source: _divided(sources[source], held_out) for source in sorted(sources)}
    shown = {answer for _, kept in divided.values() for _, answer in kept}
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for source, (learnt, kept) in divided.items():
        own = [pair for pair in dict.fromkeys(learnt) if pair[1] not in shown]
        kept = list(dict.fromkeys(kept))
        counts[source] = (len(own), len(kept))
        for name, pairs in ((source, own), (f"{source}-test", kept)):
            with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("question", "answer"), *pairs])
    (out / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    return counts


def _divided(documents: Documents, share: float) -> tuple[list[Pair], list[Pair]]:
    """Return the rows to learn from and those held out, of whole documents: at least that share of rows."""
    most = share * sum(map(len, documents.values()))
    learnt: list[Pair] = []
    kept: list[Pair] = []
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        (kept if len(kept) < most else learnt).extend(documents[name])
    return learnt, kept


def main() -> None:
    """Write the files, as the command line says."""
    parser = argparse.ArgumentParser(description="Divide MedQuAD over six institutes.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the public file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the institutes' files")
    parser.add_argument("--held-out", type=float, default=HELD_OUT, help="share of rows to hold out")
    given = parser.parse_args()
    for name, (own, kept) in prepare(given.data, given.out, held_out=given.held_out).items():
        print(f"{name}: {own} rows to learn from, {kept} held out")


if __name__ == "__main__":
    main()
