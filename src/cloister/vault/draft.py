"""A first schema for a file: types are guessed, bounds are left open.

Types come from all rows of the file. Bounds are never guessed: the extremes of a column are values of real
rows, and a schema is shown to all parties of a study. Categories are listed only where they are few
and frequent, and so probably codes, and are marked to be checked for the same reason. `cloister vault add`
refuses the schema until the open bounds are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from cloister.vault.columns import check_values
from cloister.vault.schema import Column, ColumnType
from cloister.vault.sources import Source, open_source

__all__ = ["MAX_LISTED", "draft_schema"]

MAX_LISTED: Final = 20
"""A column with at most so many distinct texts is a category; one with more is text, or labels."""

_FREQUENT: Final = 5  # times that a listed value occurs on average
_MANY: Final = 200  # labels, such as intents of texts: so many values at most, each so often on average
_OFTEN: Final = 20

_GUESSES: Final[tuple[ColumnType, ...]] = ("integer", "number", "boolean")
_IDENTIFIER: Final = re.compile(
    r"(?i:(^|[_\s.-])(id|uid|uuid|guid|udi|ssn|iban|vin)$|identifier|account[_\s]?(no|number))|[a-z]I[Dd]$",
    re.ASCII,
)
_CONSENT: Final = re.compile(r"consent|opt[_\s-]?in|agree", re.IGNORECASE | re.ASCII)

_HEAD: Final = """\
# Draft of a schema. Types were guessed from the rows; check every column.
#
# bounds are left open on purpose. Write them from what is known about the quantity (a body temperature
# lies between 30 and 45), never from the rows: all parties of a study see the schema, and the extremes of a
# column are values of real people.
#
# role: feature (default), label, id, unit (whose row it is), consent (only rows that say yes are stored),
# drop (never stored).
# missing = "allow" keeps empty fields as missing; without it they are refused.
#
# What a language model shall read is of type "text" and a feature; what it shall learn to write, the label.
"""
_OPEN: Final = "# bounds = [lowest, highest]   # fill in, from knowledge and not from the rows"
_LISTED: Final = "# check: these values appear in your data and will be visible to all parties"


@dataclass
class _Seen:
    """What is known of one column so far."""

    identifier: bool
    types: set[ColumnType] = field(default_factory=lambda: set(_GUESSES))
    values: set[str] = field(default_factory=set)
    ids: set[bytes] = field(default_factory=set)
    repeats: bool = False
    missing: bool = False
    rows: int = 0

    def look(self, raw: pa.Array) -> None:
        """Take in one batch of the column."""
        for kind in tuple(self.types):
            if check_values("", Column(kind, missing="allow"), raw).faults:
                self.types.discard(kind)
        texts = check_values("", Column("text", missing="allow"), raw).values
        self.missing = self.missing or texts.null_count > 0
        texts = pc.utf8_trim_whitespace(texts.drop_null())
        self.rows += len(texts)
        if len(self.values) <= _MANY:
            self.values.update(pc.unique(texts).slice(0, 2 * _MANY + 2).to_pylist())
        if self.identifier and not self.repeats:
            before = len(self.ids)
            self.ids.update(
                hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts.to_pylist()
            )
            self.repeats = len(self.ids) < before + len(texts)


def draft_schema(path: Path) -> str:
    """Return a schema as commented TOML text.

    Args:
        path: a CSV or Parquet file.

    Raises:
        InputError: the file cannot be read.
        SchemaError: its header is not as it must be.
    """
    source = open_source(path)
    seen = _look(source)
    return _HEAD + "".join(f"\n{_column(name, seen[name])}" for name in source.names)


def _look(source: Source) -> dict[str, _Seen]:
    seen = {name: _Seen(bool(_IDENTIFIER.search(name))) for name in source.names}
    for batch in source.batches(source.names):
        for name in source.names:
            column = batch.column(name)
            with contextlib.suppress(pa.ArrowException):  # nested: nothing is known, and drop proposed
                seen[name].look(column if pa.types.is_binary(column.type) else column.cast(pa.string()))
    return seen


def _column(name: str, seen: _Seen) -> str:
    kind = next((k for k in _GUESSES if k in seen.types), None) if seen.values else None
    lines = [f"[columns.{_key(name)}]"]
    if _CONSENT.search(name) and seen.values and "boolean" in seen.types:
        lines += ['type = "boolean"', 'role = "consent"']
    elif seen.identifier and kind in ("integer", None):
        lines += [
            f'type = "{kind or "text"}"',
            f'role = "{"unit" if seen.repeats else "id"}"',
            "pseudonym = true",
        ]
    elif kind == "boolean" or (kind == "integer" and seen.values <= {"0", "1"}):
        lines += ['type = "boolean"', *_missing(seen)]
    elif kind is not None:
        lines += [f'type = "{kind}"', _OPEN, *_missing(seen)]
    elif _is_category(seen):
        lines += ['type = "category"', *_categories(seen), *_missing(seen)]
    else:
        lines += [
            'type = "text"',
            'role = "drop"   # free text or an identifier; store it only if it is needed',
        ]
    return "\n".join(lines) + "\n"


def _is_category(seen: _Seen) -> bool:
    """Tell whether there are few different texts, or not too many that come often: labels and codes."""
    different = len(seen.values)
    if different <= MAX_LISTED:
        return different < seen.rows
    return different <= _MANY and seen.rows >= _OFTEN * different


def _categories(seen: _Seen) -> list[str]:
    """List the values where they are codes, that is few and frequent; else leave them open too."""
    if seen.rows < _FREQUENT * len(seen.values) or not all(map(str.isprintable, seen.values)):
        return ['# categories = ["...", "..."]   # fill in, from knowledge and not from the rows']
    listed = ", ".join(json.dumps(value, ensure_ascii=False) for value in sorted(seen.values))
    return [_LISTED, f"categories = [{listed}]"]


def _missing(seen: _Seen) -> list[str]:
    return ['missing = "allow"   # some rows have no value here'] if seen.missing else []


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)
