"""The examples' rows: every row goes to one site, nothing held out is learnt, and a vault takes them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest
from examples.make_base import find, texts_under
from examples.medical_qa import prepare as medical
from examples.support_intents import prepare as intents

from cloister.vault import load_schema

INTENTS = ["card_lost", "card_late", "Refund_not_there", "top_up"]


def banking(folder: Path, rows: int = 400) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "banking77_categories.json").write_text(json.dumps(INTENTS))
    for part, count in (("train", rows), ("test", 40)):
        with (folder / f"banking77_{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            for number in range(count):
                intent = INTENTS[number % 4]
                writer.writerow([f"{part} question,\n{number} about {intent} \u00fc ", intent])
    return folder


def medquad(folder: Path, documents: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "medquad_6sources.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "doc_id", "url", "focus", "qtype", "question", "answer"])
        for source in ("CDC", "NINDS", "NIDDK"):
            for document in range(documents):
                for part in range(3):
                    shared = "the same answer everywhere" if part == 2 else f"{source} {document}: do {part}"
                    writer.writerow(
                        [source, f"{document:07}_{part}", "", "", "", f"What is {source}-{document}?", shared]
                    )
                writer.writerow([source, f"{document:07}_9", "", "", "", "Nothing?", " "])
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_question_goes_to_one_bank_and_the_seed_decides(tmp_path: Path) -> None:
    data = banking(tmp_path / "data" / "text")
    counts = intents.prepare(tmp_path / "data", tmp_path / "out")
    parts = {name: rows_of(tmp_path / "out" / f"{name}.csv") for name in counts}
    assert list(counts) == [f"bank-{number}" for number in range(1, 6)]
    assert {name: len(rows) for name, rows in parts.items()} == counts
    texts = [row["text"] for rows in parts.values() for row in rows]
    assert sorted(texts) == sorted(row["text"].strip() for row in rows_of(data / "banking77_train.csv"))
    assert len(rows_of(tmp_path / "out" / "test.csv")) == 40
    schema = load_schema(tmp_path / "out" / "schema.toml")
    assert schema.columns["intent"].categories == tuple(sorted(INTENTS))
    shares = [sum(row["intent"] == INTENTS[0] for row in rows) for rows in parts.values()]
    assert max(shares) > 2 * min(shares), "banks are alike"
    intents.prepare(tmp_path / "data", tmp_path / "again")
    assert (tmp_path / "again" / "bank-3.csv").read_bytes() == (tmp_path / "out" / "bank-3.csv").read_bytes()
    intents.prepare(tmp_path / "data", tmp_path / "other", seed=2)
    assert (tmp_path / "other" / "bank-3.csv").read_bytes() != (tmp_path / "out" / "bank-3.csv").read_bytes()


def test_documents_are_held_out_whole_and_their_answers_are_not_learnt(tmp_path: Path) -> None:
    medquad(tmp_path / "data")
    counts = medical.prepare(tmp_path / "data", tmp_path / "out")
    assert list(counts) == ["cdc", "niddk", "ninds"]
    answers, questions = set(), set()
    for name, (_, kept) in counts.items():
        assert 0.1 * 60 <= kept <= 0.1 * 60 + 3
        for row in rows_of(tmp_path / "out" / f"{name}-test.csv"):
            answers.add(row["answer"])
            questions.add(row["question"])
    for name, (learnt, _) in counts.items():
        rows = rows_of(tmp_path / "out" / f"{name}.csv")
        assert len(rows) == learnt > 0
        assert not answers.intersection(row["answer"] for row in rows)
        assert not questions.intersection(row["question"] for row in rows)
        assert all(row["answer"].strip() for row in rows)
    assert load_schema(tmp_path / "out" / "schema.toml").label == "answer"


def test_a_base_reads_all_texts_but_the_studys(tmp_path: Path) -> None:
    banking(tmp_path, rows=4)
    medquad(tmp_path, documents=1)
    (tmp_path / "play.txt").write_text("To be.\n\nOr not.\n\n \n")
    (tmp_path / "SMSSpamCollection").write_text("ham\tsee you\nspam\tfree!\n")
    texts = texts_under(tmp_path, ["banking77"])
    assert {"To be.", "Or not.", "see you", "free!"} <= set(texts)
    assert any(text.startswith("What is CDC-0?\nCDC 0") for text in texts)
    assert not any("question" in text for text in texts)
    assert any("question" in text for text in texts_under(tmp_path, ["medquad"]))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no banking77_train"):
        find(tmp_path, "banking77_train.csv")
