"""From tables to texts: every format, and every row that is none, named by column and number alone."""

from __future__ import annotations

import json

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InputError, PlanError, SchemaError
from cloister.learning import DataSection, ModelSection
from cloister.learning.language.texts import TextMap
from cloister.learning.sections import LanguageSection
from cloister.vault import Schema, load_schema

SCHEMA = load_schema(
    b"""
[columns.text]
type = "text"
[columns.title]
type = "text"
missing = "allow"
[columns.channel]
type = "category"
categories = ["app", "phone"]
[columns.age]
type = "integer"
bounds = [0, 120]
[columns.intent]
type = "category"
role = "label"
categories = ["card", "loan", "other"]
"""
)
ANSWERS = load_schema(
    b"""
[columns.question]
type = "text"
[columns.answer]
type = "text"
role = "label"
"""
)


def text_map(
    schema: Schema, features: tuple[str, ...], kind: str = "causal-lm", format: str = "text"
) -> TextMap:
    label = schema.label or ""
    return TextMap.build(
        schema,
        DataSection(schema=schema.digest().hex(), features=features, label=label),
        ModelSection(kind=kind, classes=3 if kind == "text-classifier" else 0),  # type: ignore[arg-type]
        LanguageSection(base="0" * 64, tokenizer="0" * 64, format=format),  # type: ignore[arg-type]
    )


def chat_table(*chats: object) -> pa.Table:
    texts = [chat if isinstance(chat, str) or chat is None else json.dumps(chat) for chat in chats]
    return pa.table({"answer": pa.array(texts, pa.string())})


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_classifier_reads_its_columns_in_the_plans_order() -> None:
    texts = text_map(SCHEMA, ("channel", "title", "text"), "text-classifier")
    table = pa.table(
        {
            "text": ["where is\nmy card?", "hello"],
            "title": [None, "Greeting"],
            "channel": ["app", "phone"],
            "intent": ["card", "other"],
        }
    )
    rows = texts.rows(table)
    assert rows.prompts == ["app\nwhere is\nmy card?", "phone\nGreeting\nhello"]
    assert rows.labels is not None
    assert rows.labels.tolist() == [0.0, 2.0]
    assert rows.answers is None
    assert texts.class_names == ("card", "loan", "other")
    assert texts.prompts(table.drop_columns(["intent"])).prompts == rows.prompts
    assert "card" not in repr(rows)


def test_pairs_have_prompts_and_answers() -> None:
    texts = text_map(ANSWERS, ("question",), format="pairs")
    rows = texts.rows(pa.table({"question": ["Who?", "What?"], "answer": ["Me.\n", " That."]}))
    assert rows.prompts == ["Who?", "What?"]
    assert rows.answers == ["Me.\n", " That."]
    assert (rows.columns, rows.label_name) == (("question",), "answer")


def test_whole_texts_have_no_prompts() -> None:
    texts = text_map(ANSWERS, ())
    rows = texts.rows(pa.table({"answer": ["a", "b"]}))
    assert (rows.prompts, rows.answers) == (["", ""], ["a", "b"])
    assert texts.prompts(pa.table({"answer": ["go on"]})).prompts == ["go on"]


def test_conversations_are_read_as_messages() -> None:
    texts = text_map(ANSWERS, (), format="chat")
    chat = [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Hello")]
    assert texts.rows(chat_table(chat)).chats == [chat]
    assert texts.prompts(chat_table(chat[:2])).chats == [chat[:2]]


@pytest.mark.parametrize(
    ("chats", "said"),
    [
        (("secret", "[]"), "1 row holds no JSON list"),
        (("{}", '["secret"]', [{"role": "tool", "content": "secret"}]), "3 rows hold no JSON list"),
        ((json.dumps([{**turn("user", "secret"), "name": "secret"}]),), "1 row holds no JSON list"),
        (("[" * 5000,), "1 row holds no JSON list"),
        (([turn("user", "secret")], []), "2 rows hold no turn of the assistant"),
        (([turn("user", "secret"), turn("assistant", " \n")],), "1 row holds an empty message"),
    ],
)
def test_a_conversation_that_is_none_is_counted_and_not_shown(chats: tuple[object, ...], said: str) -> None:
    texts = text_map(ANSWERS, (), format="chat")
    good = [turn("user", "Hi"), turn("assistant", "Hello")]
    with pytest.raises(SchemaError, match=said) as refused:
        texts.rows(chat_table(good, *chats))
    assert "column answer" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_conversation_to_answer_does_not_end_with_the_assistant() -> None:
    texts = text_map(ANSWERS, (), format="chat")
    with pytest.raises(SchemaError, match="1 row holds nothing to answer"):
        texts.prompts(chat_table([turn("assistant", "Hello")], [turn("user", "Hi")]))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("question", ["secret", "", " \t\n"], "2 rows have no text"),
        ("question", ["secret", None, "c"], "1 row has no text"),
        ("answer", ["secret", "", None], "2 rows have an empty answer"),
        ("answer", ["secret", "b", "\n"], "1 row has an empty answer"),
    ],
)
def test_a_text_that_is_missing_or_blank_is_counted_and_not_shown(
    column: str, values: list[str | None], said: str
) -> None:
    texts = text_map(ANSWERS, ("question",), format="pairs")
    table = pa.table({"question": ["a", "b", "c"], "answer": ["a", "b", "c"]})
    place = table.column_names.index(column)
    with pytest.raises(SchemaError, match=said) as refused:
        texts.rows(table.set_column(place, column, pa.array(values, pa.string())))
    assert f"column {column}" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_columns_that_may_be_missing_may_not_all_be() -> None:
    schema = load_schema(
        b'[columns.a]\ntype = "text"\nmissing = "allow"\n[columns.b]\ntype = "text"\nmissing = "allow"\n'
        b'[columns.intent]\ntype = "category"\nrole = "label"\ncategories = ["x", "y", "z"]\n'
    )
    texts = text_map(schema, ("a", "b"), "text-classifier")
    table = pa.table({"a": ["1", None, None], "b": [None, "2", " "], "intent": ["x", "y", "z"]})
    with pytest.raises(SchemaError, match=r"1 row has no text in any of the columns \(column a, b\)"):
        texts.rows(table)


def test_columns_that_are_no_text_are_refused() -> None:
    texts = text_map(ANSWERS, ("question",), format="pairs")
    with pytest.raises(SchemaError, match="column is absent"):
        texts.rows(pa.table({"answer": ["a"]}))
    with pytest.raises(SchemaError, match="column is not text"):
        texts.rows(pa.table({"question": [1], "answer": ["a"]}))
    with pytest.raises(PlanError, match="'age' is of type integer, and a language model reads text"):
        text_map(SCHEMA, ("age",), "text-classifier")
    with pytest.raises(PlanError, match="'intent' is of type category, and a causal-lm learns text"):
        text_map(SCHEMA, ("text",), format="pairs")
    with pytest.raises(PlanError, match="the model has 3 classes and the label none"):
        text_map(ANSWERS, ("question",), "text-classifier")


def test_an_unknown_category_is_counted_and_not_shown() -> None:
    texts = text_map(SCHEMA, ("channel",), "text-classifier")
    table = pa.table({"channel": ["app", "secret"], "intent": ["card", "card"]})
    with pytest.raises(SchemaError, match="1 row has none of the declared categories") as refused:
        texts.rows(table)
    assert "secret" not in str(refused.value)


def test_a_map_survives_being_written_and_a_broken_one_is_refused() -> None:
    texts = text_map(SCHEMA, ("text",), "text-classifier")
    assert msgspec.json.decode(msgspec.json.encode(texts), type=TextMap) == texts
    for change in ({"classes": 4}, {"columns": {}}, {"format": "chat"}, {"classes": 0}):
        with pytest.raises((InputError, msgspec.ValidationError)):
            msgspec.convert({**msgspec.to_builtins(texts), **change}, TextMap)


def test_a_forgiving_map_tells_of_no_row() -> None:
    table = pa.table({"question": ["a", " ", None], "answer": [None, "b", "\n"]})
    rows = text_map(ANSWERS, ("question",), format="pairs").rows(table, forgiving=True)
    assert rows.prompts == ["a", "", ""]
    assert rows.answers == ["", "b", ""]
    good = [turn("user", "Hi"), turn("assistant", "Hello")]
    chats = text_map(ANSWERS, (), format="chat").rows(chat_table("no", good, [], None), forgiving=True).chats
    assert chats == [[], good, [], []]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20))
def test_any_text_is_taken_as_it_is_or_counted(pairs: list[tuple[str, str]]) -> None:
    texts = text_map(ANSWERS, ("question",), format="pairs")
    questions, answers = [q for q, _ in pairs], [a for _, a in pairs]
    table = pa.table({"question": pa.array(questions, pa.string()), "answer": pa.array(answers, pa.string())})
    blank = sum(not a.strip() for a in answers) or sum(not q.strip() for q in questions)
    if blank:
        with pytest.raises(SchemaError, match=f"^{blank} row"):
            texts.rows(table)
    else:
        rows = texts.rows(table)
        assert (rows.prompts, rows.answers) == (questions, answers)
