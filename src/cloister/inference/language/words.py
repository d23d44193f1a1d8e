"""A model's tokenizer, as this service uses it: text and conversations into token ids, and back."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from cloister.errors import InputError
from cloister.learning.torch.language.tokenising import Controls, is_failure

__all__ = ["Words"]

_SHOWN: Final = ("[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>")
"""Special tokens that are text to this service: what finds tool calls reads them."""

_LONGEST: Final = 200

_ESCAPED: Final = re.compile(r"\\udb80\\+udc0[01]|\\U000f000[01]", re.IGNORECASE)
"""A mark as JSON of ASCII alone, or Python's `repr`, writes it: it marks nothing any more."""


class _Pieces:
    """What transformers encodes a marked conversation with: its own way sets a switch that all threads share.

    Args:
        tokenizer: of transformers, fast.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.added_tokens_encoder = tokenizer.added_tokens_encoder
        self.convert_tokens_to_ids = tokenizer.convert_tokens_to_ids
        self._meant, self._spelled = tokenizer.backend_tokenizer, copy.deepcopy(tokenizer.backend_tokenizer)
        self._meant.encode_special_tokens, self._spelled.encode_special_tokens = False, True

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return tokens of what a template wrote."""
        ids: list[int] = self._meant.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        """Return tokens of what a message spelled."""
        ids: list[int] = self._spelled.encode(text, add_special_tokens=False).ids
        return ids


class Words:
    """Wraps a fast tokenizer of transformers.

    Args:
        tokenizer: loaded from the model's own files.
        prompted: of a model that learnt answers to prompts, what makes a prompt's tokens; then a conversation
            is one message of the user, and no chat template is asked.

    Attributes:
        longest: tokens that a text may have, as the tokenizer says; very many where it does not.
    """

    def __init__(self, tokenizer: Any, prompted: Callable[[str], list[int]] | None = None) -> None:
        self._tokenizer, self._prompted = tokenizer, prompted
        self._backend = tokenizer.backend_tokenizer
        self.longest = int(tokenizer.model_max_length)
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        shown = {tokenizer.convert_tokens_to_ids(token) for token in _SHOWN if token in tokenizer.get_vocab()}
        self._hidden = frozenset(special.union(tokenizer.all_special_ids) - shown)
        self._spelled, self._pieces = Controls(tokenizer).spelled, _Pieces(tokenizer)

    def conversation(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]
    ) -> list[int]:
        """Return the tokens of a conversation, with the opening of the assistant's turn.

        A control token that a message or a tool spells is text, in names of objects too: who quotes somebody
        writes no turns for him. Where the template would undo that, such a message is refused.

        Raises:
            InputError: there is no chat template, or it refuses these messages.
        """
        if self._prompted is not None:
            return self._prompted(_only(messages, tools))
        if not self._tokenizer.chat_template:
            raise InputError("this model has no chat template", fix="Ask it for completions")
        try:
            tokens: list[int] = encode_marked_chat(self._pieces, self._rendered(messages, tools))
        except BaseException as error:  # a template is a program, and may fail in any way
            if not is_failure(error):
                raise
            told = str(error)[:_LONGEST] if type(error) is TemplateError else "it failed"
            raise InputError(
                f"the model's chat template refuses these messages: {told}", fix="Check roles and contents"
            ) from None
        return tokens

    def _rendered(
        self, messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]
    ) -> str:
        """Return what the template writes, marked; raises whatever it raises."""
        given = [list(messages), list(tools)]
        said, offered = marked = _marked(given, self._spelled)
        text: str = self._tokenizer.apply_chat_template(
            said, tools=offered or None, add_generation_prompt=True, tokenize=False
        )
        if marked != given and _ESCAPED.search(text):  # a text of such escapes alone is no harm
            raise TemplateError("it escapes characters, and would write a spelled control token as one")
        return text

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text, with what the model begins and ends texts with; who sends one writes
        all of the prompt, and may spell control tokens. Raises InputError."""
        try:
            tokens: list[int] = self._backend.encode(text, add_special_tokens=True).ids
        except BaseException as error:  # a panic of the tokenizer's is no Exception
            if not is_failure(error):
                raise
            raise InputError("the text cannot be encoded", fix="Send it as UTF-8") from None
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones as they are spelled."""
        text: str = self._backend.decode(list(tokens), skip_special_tokens=False)
        return text

    def hides(self, token: int) -> bool:
        """Tell whether a token is no text: special, and none that marks a tool call."""
        return token in self._hidden

    def spelled(self, token: int) -> str:
        """Return one token as text."""
        return self.decode((token,))


def _marked(value: Any, spelled: re.Pattern[str]) -> Any:
    """Return what a client sent with its control tokens marked. transformers' own way leaves out names of
    objects, and a template writes them with the rest."""
    if isinstance(value, Mapping):
        return {_marked(name, spelled): _marked(each, spelled) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(each, spelled) for each in value]
    return mark_control_tokens(value, spelled)


def _only(messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]]) -> str:
    """Return the text of the user's one message. Raises InputError where there are others, or tools."""
    content = messages[0].get("content") if messages else None
    if tools or len(messages) != 1 or messages[0].get("role") != "user" or not isinstance(content, str):
        raise InputError(
            "this model learnt answers to single prompts, and no conversations",
            fix="Send one message with the role user, and no tools",
        )
    return content
