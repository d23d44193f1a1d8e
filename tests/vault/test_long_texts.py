"""What language models learn from goes through the vault unchanged: long texts, conversations, many labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.vault.world import PURPOSE, vault

from cloister.errors import SchemaError
from cloister.vault import Vault, load_schema

LABELS = tuple(f"Intent {number:02}?" for number in range(77))
SCHEMA = f"""
[columns.text]
type = "text"
[columns.talk]
type = "text"
[columns.intent]
type = "category"
role = "label"
categories = {json.dumps(LABELS)}
"""


def write(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "talk", "intent"), *rows])
    return path


def add(store: Vault, source: Path) -> None:
    store.add(source, name="talks", schema=load_schema(SCHEMA.encode()), purposes=[PURPOSE])


def made() -> list[tuple[str, str, str]]:
    texts = [
        'He said "no",\nthen\r\n\r\n yes ',
        "x" * 999_000 + "\nend",
        "Grüße 你好 🙂\u2028\u200b\ttab",
        '"',
        "- item\n" * 20_000,
    ]
    talks = [
        json.dumps([{"role": "user", "content": text}], ensure_ascii=ascii)
        for text in texts
        for ascii in (0, 1)
    ]
    return [(texts[n % 5], talks[n % 10][:1_000_000], LABELS[n % 77]) for n in range(154)]


def test_texts_come_out_as_they_went_in(tmp_path: Path) -> None:
    rows = made()
    rows = [row if len(row[0]) < 1000 or n < 10 else ("short", *row[1:]) for n, row in enumerate(rows)]
    rows = [row if len(row[1]) < 1000 or n < 10 else (row[0], "short", row[2]) for n, row in enumerate(rows)]
    store = vault(tmp_path / "vault")
    add(store, write(tmp_path / "rows.csv", rows))
    with store.open("talks", purpose=PURPOSE) as dataset:
        table = dataset.table()
    assert list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)) == rows


def test_a_text_beyond_a_mebibyte_is_refused_with_line_and_column(tmp_path: Path) -> None:
    rows = [("a\nb", "t", LABELS[0]), ("x" * (1 << 20) + "y", "t", LABELS[1])]
    with pytest.raises(SchemaError, match="longer than 1048576 bytes") as refused:
        add(vault(tmp_path / "vault"), write(tmp_path / "rows.csv", rows))
    assert (refused.value.line, refused.value.column) == (4, "text")
