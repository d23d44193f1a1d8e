"""Conversations as they lie in a column: JSON lists of messages, each a role and a content.

    [{"role": "user", "content": "Where is my card?"}, {"role": "assistant", "content": "On its way."}]

Roles are system, user and assistant. A conversation to learn from holds an answer of the assistant, and no
empty message; one to answer ends with another's turn. What is not so is refused with the column and the
number of such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from cloister.errors import SchemaError

__all__ = ["Chat", "read_chats"]

Chat: TypeAlias = list[dict[str, str]]
"""Messages, each with "role" and "content"."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


_DECODER = msgspec.json.Decoder(list[_Message])
_SHAPE = 'Write [{"role": "user", "content": "..."}, ...] with the roles system, user and assistant'


def read_chats(texts: Sequence[str], column: str, *, answered: bool, forgiving: bool = False) -> list[Chat]:
    """Return the conversations of a column.

    Args:
        texts: one JSON list of messages each.
        column: its name, for errors.
        answered: whether an answer is learnt from each, or is wanted to each.
        forgiving: whether one that does not fit becomes one of no messages.

    Raises:
        SchemaError: some are not such lists, or hold no answer, or an empty one.
    """
    chats: list[Chat] = []
    broken: dict[str, int] = {}
    for text in texts:
        try:
            messages = _DECODER.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            problem = "no JSON list of messages"
            messages = []
        else:
            problem = _problem(messages, answered)
        if problem:
            broken[problem] = broken.get(problem, 0) + 1
            messages = []
        chats.append([{"role": message.role, "content": message.content} for message in messages])
    for problem, count in () if forgiving else broken.items():
        raise SchemaError(
            f"{count} {'row holds' if count == 1 else 'rows hold'} {problem}", column=column, fix=_SHAPE
        )
    return chats


def _problem(messages: Sequence[_Message], answered: bool) -> str:
    answers = [message.content for message in messages if message.role == "assistant"]
    if not all(message.content.strip() for message in messages):
        return "an empty message"
    if answered:
        return "" if answers else "no turn of the assistant"
    return "" if messages and messages[-1].role != "assistant" else "nothing to answer"
