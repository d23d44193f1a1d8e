"""From a table of the vault to the texts that a language model reads and learns; no tokens yet, and no torch.

What a row is, by the plan's format:

    text    a text to learn whole (the label's column), or, for a text-classifier, a text and its class
    pairs   a prompt and the answer to it (the label's column)
    chat    a conversation (the label's column): a JSON list of {"role": ..., "content": ...}

A prompt, and a classifier's text, is the plan's feature columns in their order, joined by line ends; a column
that may be missing and is leaves no line. Columns are text or categories.

Every row is checked: a text that is missing or blank, an answer of nothing, a conversation that is none.
Messages name the column and the number of such rows, never a value. Where a site may not even say that (under
`[privacy]`, where a refusal would tell of a row and is paid for by nobody) it asks to be forgiven: such a row
becomes one of nothing. Texts are taken as they are: nothing is trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import pyarrow as pa

from cloister.errors import InputError, PlanError, SchemaError
from cloister.learning.columns import (
    check_schema,
    class_names,
    class_numbers,
    label_classes,
    plan_column,
    table_column,
)
from cloister.learning.heads import Array
from cloister.learning.language.chats import Chat, read_chats
from cloister.learning.sections import DataSection, LanguageSection, ModelSection
from cloister.vault import Column, Schema

__all__ = ["TextFormat", "TextMap", "TextRows"]

TextFormat: TypeAlias = Literal["text", "pairs", "chat"]

_AS_TEXT = ("text", "category")


@dataclass(frozen=True)
class TextRows:
    """The texts of n rows; not shown by `repr`, for they are rows.

    Attributes:
        prompts: n texts: what is given; all "" where whole texts or conversations are learnt.
        answers: n texts to learn; None for classifiers, for conversations, and where nothing is learnt.
        chats: n conversations, each a list of messages; None for other formats.
        labels: float64[n], the classes' numbers; None but for classifiers.
        columns: names of the columns that the prompts come from.
        label_name: name of the column that the rest comes from.
    """

    prompts: list[str]
    answers: list[str] | None = None
    chats: list[Chat] | None = None
    labels: Array | None = None
    columns: tuple[str, ...] = ()
    label_name: str = ""

    def __len__(self) -> int:
        """Return n."""
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"<TextRows {len(self)}>"


class TextMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the columns of a table become texts; see the module's docstring. Made by `build`.

    Attributes:
        format: "text", "pairs" or "chat".
        columns: the schema's declaration of each feature, in order; none for whole texts and conversations.
        label_name: the label's column.
        label: the schema's declaration of the label.
        classes: of a text-classifier; 0 for a causal-lm.
    """

    format: TextFormat
    columns: dict[str, Column]
    label_name: str
    label: Column
    classes: int

    def __post_init__(self) -> None:
        """Refuse a map that was read and does not hold together; `build` makes none."""
        prompted = self.classes > 0 or self.format == "pairs"
        sane = prompted == bool(self.columns) and self.label.missing != "allow"
        sane = sane and all(column.type in _AS_TEXT for column in self.columns.values())
        if self.classes:
            sane = sane and self.format == "text" and len(self.class_names) == self.classes
        else:
            sane = sane and self.label.type == "text"
        if not sane:
            raise InputError("the stated columns of a language model do not fit each other")

    @classmethod
    def build(
        cls, schema: Schema, data: DataSection, model: ModelSection, language: LanguageSection
    ) -> TextMap:
        """Return the map that a plan and its schema define.

        Raises:
            PlanError: the schema is not the plan's, lacks a column or its role, a column is no text, or the
            label does not fit the model. SchemaError: categories of a column are still open.
        """
        check_schema(schema, data)
        columns = {name: plan_column(schema, name, "feature") for name in data.features}
        for name, column in columns.items():
            if column.type not in _AS_TEXT:
                raise PlanError(
                    f"column {name!r} is of type {column.type}, and a language model reads text",
                    where="[data] features",
                    fix="Name columns of type text or category",
                )
        label = plan_column(schema, data.label, "label")
        classes = label_classes(label, model) if model.kind == "text-classifier" else 0
        if not classes and label.type != "text":
            raise PlanError(
                f"column {data.label!r} is of type {label.type}, and a causal-lm learns text",
                where="[data] label",
                fix='Name a text column with the role label, or write kind = "text-classifier"',
            )
        return cls(
            format=language.format, columns=columns, label_name=data.label, label=label, classes=classes
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label's values in the order of their numbers; empty for a causal-lm."""
        return class_names(self.label, self.classes)

    def rows(self, table: pa.Table, *, forgiving: bool = False) -> TextRows:
        """Return the texts of a table to learn from, or to evaluate on.

        Args:
            table: with all columns of the map.
            forgiving: whether a text that is missing or blank, or a conversation that is none, becomes one
                of nothing.

        Raises:
            SchemaError: a column is absent, a text or a label is missing, blank, or not what is declared.
        """
        names = tuple(self.columns)
        if self.classes:
            labels = class_numbers(table, self.label_name, self.label)
            prompts = self._joined(table, forgiving)
            return TextRows(prompts, labels=labels, columns=names, label_name=self.label_name)
        learnt = _texts(table, self.label_name)
        empty = "no text to learn" if self.format == "text" else "an empty answer"
        if not forgiving:
            _refuse((not _written(text) for text in learnt), empty, self.label_name, _FILL)
        prompts = self._joined(table, forgiving) if names else [""] * len(learnt)
        if self.format == "chat":
            texts = [text or "" for text in learnt]
            chats = read_chats(texts, self.label_name, answered=True, forgiving=forgiving)
            return TextRows(prompts, chats=chats, label_name=self.label_name)
        return TextRows(
            prompts,
            answers=[text if text and _written(text) else "" for text in learnt],
            columns=names,
            label_name=self.label_name,
        )

    def prompts(self, table: pa.Table) -> TextRows:
        """Return what a model is given to answer, for rows without a label.

        Without prompt columns these are the label's column: texts to go on with, or conversations whose last
        turn is not the assistant's.

        Raises:
            SchemaError: as `rows`.
        """
        if self.columns:
            return TextRows(self._joined(table), columns=tuple(self.columns))
        given = _texts(table, self.label_name)
        _refuse((not _written(text) for text in given), "no text", self.label_name, _FILL)
        texts = [text or "" for text in given]
        if self.format == "chat":
            chats = read_chats(texts, self.label_name, answered=False)
            return TextRows([""] * len(texts), chats=chats, label_name=self.label_name)
        return TextRows(texts, columns=(self.label_name,))

    def _joined(self, table: pa.Table, forgiving: bool = False) -> list[str]:
        """Return each row's columns as one text."""
        parts = []
        for name, column in self.columns.items():
            texts = _texts(table, name)
            if column.missing == "refuse" and not forgiving:
                _refuse((not _written(text) for text in texts), "no text", name, _FILL)
            if column.type == "category" and not forgiving:
                known = {*(column.categories or ()), None}
                _refuse((text not in known for text in texts), "none of the declared categories", name, _FILL)
            parts.append(texts)
        joined = ["\n".join(text for text in row if _written(text)) for row in zip(*parts, strict=True)]
        if not forgiving:
            none = "no text in any of the columns"
            _refuse((not text for text in joined), none, ", ".join(self.columns), _FILL)
        return joined


_FILL = "Fill them in, or leave such rows out"


def _written(text: str | None) -> bool:
    return text is not None and not text.isspace() and text != ""


def _texts(table: pa.Table, name: str) -> list[str | None]:
    """Return a column's texts. Raises SchemaError where it is not text."""
    values = table_column(table, name)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SchemaError("the column is not text", column=name, fix="Convert it first")
    texts: list[str | None] = values.to_pylist()
    return texts


def _refuse(flags: Iterable[bool], what: str, column: str, fix: str) -> None:
    """Raise SchemaError with the number of rows for which `flags` is true."""
    count = sum(flags)
    if count:
        raise SchemaError(
            f"{count} {'row has' if count == 1 else 'rows have'} {what}", column=column, fix=fix
        )
