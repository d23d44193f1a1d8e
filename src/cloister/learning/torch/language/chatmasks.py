"""Conversations through a base's chat template, and which tokens of the result the assistant said.

The assistant's turn j is what the template writes beyond its rendering of the turns before j with the
opening of an answer. That is so only where each of these renderings is the beginning of the whole, which is
checked for every conversation; a template that writes a turn differently when others follow is refused.

A turn that is learnt ends with the last control token in it (such as <|im_end|>), which is learnt too, and
line ends behind it are not; without such a token it ends where its text does. A token that begins before
the turn belongs to what was given.

Templates are programs in Jinja's sandbox and may fail in any way: what they raise is not shown, since it may
quote a row. They have no clock, for sites and days would differ: a template that asks whether there is one
writes the date it has for that case, another one fails. One that writes much more than it was given is
refused; how long it takes is not bounded. A message that would become a control token is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.language.chats import Chat
from cloister.learning.torch.language.tokenising import Controls, encodings

__all__ = ["ChatTemplate", "Turns"]

Turns: TypeAlias = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""A conversation's tokens, and which of them are learnt."""

_REFUSED: Final = "that the base's chat template refuses"
_CONTROL: Final = "that spells a control token of the base"
_UNEVEN: Final = "in which the base's chat template writes a turn differently once others follow"
_BATCH: Final = 256
_NO_CLOCK: Final = "{% set strftime_now = nothing_of_this_name +%}"
"""Takes from a template what transformers lends it: today's date."""
_MOST: Final = 1 << 20
"""Characters that a template may write beside a conversation's."""
_NOTHING: Final[tuple[str, list[tuple[int, int]]]] = ("", [])
_NO_TURNS: Final[Turns] = (np.zeros(0, np.int32), np.zeros(0, np.bool_))


class _Unfit(Exception):
    """This conversation cannot be rendered, for one of the reasons above."""


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: of transformers, fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._controls = tokenizer, Controls(tokenizer)

    def opened(self, chat: Sequence[Mapping[str, str]]) -> str:
        """Return a conversation as the template writes it, with the opening of the assistant's answer.

        Raises:
            InputError: there is no template, or it refuses this conversation.
        """
        self.require()
        try:
            self._check(chat)
            return self._rendered([dict(message) for message in chat], opening=True)
        except _Unfit as error:
            raise InputError(f"a conversation {error}", fix="Check roles and contents") from None

    def require(self) -> None:
        """Raise InputError where there is no template."""
        if not self._tokenizer.chat_template:
            raise InputError(
                "the base has no chat template",
                where="[language] format",
                fix='Use a base that has one, or write format = "pairs"',
            )

    def turns(self, chats: Sequence[Chat]) -> tuple[list[Turns], dict[str, int]]:
        """Return the tokens of conversations, and how many could not be written, by reason; such have none.

        Raises:
            InputError: there is no template.
        """
        self.require()
        found: list[Turns] = []
        broken: dict[str, int] = {}
        written: list[tuple[str, list[tuple[int, int]]]] = []
        for chat in chats:
            try:
                written.append(self._spans(chat) if chat else _NOTHING)
            except _Unfit as error:
                broken[str(error)] = broken.get(str(error), 0) + 1
                written.append(_NOTHING)
        backend = self._tokenizer.backend_tokenizer
        backend.encode_special_tokens = False
        for at in range(0, len(written), _BATCH):
            some = written[at : at + _BATCH]
            found += [
                _NO_TURNS if encoding is None else self._counted(encoding, text, spans)
                for encoding, (text, spans) in zip(
                    encodings(backend.encode_batch, [text for text, _ in some]), some, strict=True
                )
            ]
        return found, broken

    def _spans(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation as text, and where in it the assistant's turns stand."""
        self._check(chat)
        whole = self._rendered(chat)
        spans = []
        for at, message in enumerate(chat):
            if message["role"] == "assistant":
                before = self._rendered(chat[:at], opening=True)
                until = whole if at == len(chat) - 1 else self._rendered(chat[: at + 1])
                if not (until.startswith(before) and whole.startswith(until)):
                    raise _Unfit(_UNEVEN)
                spans.append((len(before), len(until)))
        return whole, spans

    def _check(self, chat: Sequence[Mapping[str, str]]) -> None:
        if self._controls.become([message["content"] for message in chat]):
            raise _Unfit(_CONTROL)

    def _rendered(self, chat: Chat, *, opening: bool = False) -> str:
        try:
            template = _NO_CLOCK + self._tokenizer.get_chat_template()
            text = str(
                self._tokenizer.apply_chat_template(
                    chat, chat_template=template, tokenize=False, add_generation_prompt=opening
                )
            )
        except Exception:  # noqa: BLE001 - a template is a program, and may fail in any way
            raise _Unfit(_REFUSED) from None
        if len(text) > _MOST + 2 * sum(len(message["content"]) for message in chat):
            raise _Unfit(_REFUSED)
        return text

    def _counted(self, encoding: Any, text: str, spans: Sequence[tuple[int, int]]) -> Turns:
        """Return the tokens of a text, and which of them begin in a span and before its end."""
        ids = np.asarray(encoding.ids, dtype=np.int32)
        places = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
        control = np.isin(ids, self._controls.ids)
        counted = np.zeros(len(ids), dtype=np.bool_)
        for start, stop in spans:
            inside = (places >= start) & (places < stop)
            ends = np.flatnonzero(inside & control)
            if len(ends):
                inside[ends[-1] + 1 :] = False
            else:
                inside &= places < start + len(text[start:stop].rstrip())
            counted |= inside
        return ids, counted
