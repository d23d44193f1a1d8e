"""A base's tokenizer, as training uses it: from texts to tokens and which of them are learnt, and back.

    text    opening, text, end          all are learnt; a classifier's text has the tokenizer's own ending
    pairs   opening, prompt, line end, answer, end      the answer and the end are learnt
    chat    the base's chat template    the assistant's turns are learnt (`chatmasks`)

The opening is what the tokenizer itself puts before a text (a token such as <s>, or nothing); the end is its
end-of-text token. A row's own text never becomes a control token: "</s>" in a row is four characters, or the
tokenizer has it among its words, and fails on that text.

A row longer than the plan's context is refused, or cut as the plan says (`cutting`). What is refused names
columns and numbers of rows, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, SchemaError
from cloister.learning.language.texts import TextFormat, TextRows
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import LanguageModel
from cloister.learning.sections import LanguageSection
from cloister.learning.torch.language.chatmasks import ChatTemplate
from cloister.learning.torch.language.cutting import Row
from cloister.learning.torch.language.examples import Examples, joined
from cloister.learning.torch.language.packing import packed
from cloister.learning.torch.language.pretrained import tokenizer as load_tokenizer
from cloister.learning.torch.language.tokenising import Controls, encodings

__all__ = ["Words"]

Ids: TypeAlias = NDArray[np.int32]

_BATCH: Final = 1024  # texts whose tokens are Python's numbers at a time
_LINE_END: Final = "\n"
_NONE: Final = np.zeros(0, dtype=np.int32)
_EMPTY: Final = Row(_NONE, _NONE, _NONE, np.zeros(0, np.bool_), _NONE, end_counts=False)


class Words:
    """The tokenizer of a base.

    Args:
        files: of the base.
        found: what `check_language_model` found in them.
        scratch: a folder, best in memory, in which the tokenizer's files lie while it is loaded.

    Attributes:
        digest: of the tokenizer's files, as plans write it.
        pad: the token that fills rows up.
        end: the token that ends a text; None where the tokenizer has none.

    Raises:
        InputError: the tokenizer cannot be loaded.
        IntegrityError: a file is not what it was.
    """

    def __init__(self, files: ModelFiles, found: LanguageModel, scratch: Path) -> None:
        self.digest = tokenizer_digest(files, found)
        tokenizer: Any = load_tokenizer(files, found, scratch)
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._chats, self._controls = ChatTemplate(tokenizer), Controls(tokenizer)
        self.end: int | None = tokenizer.eos_token_id
        self.pad: int = next(i for i in (tokenizer.pad_token_id, self.end, 0) if i is not None)
        sample = self._backend.encode("a", add_special_tokens=True)
        ids = np.asarray(sample.ids, dtype=np.int32)
        real = np.flatnonzero(np.asarray(sample.special_tokens_mask) == 0)
        self._opening: Ids = ids[: real[0]] if len(real) else _NONE
        self._ending: Ids = ids[real[-1] + 1 :] if len(real) else _NONE

    def __repr__(self) -> str:
        return f"<Words {self.digest[:12]}>"

    def encode(
        self,
        rows: TextRows,
        language: LanguageSection,
        kind: Literal["causal-lm", "text-classifier"],
        *,
        site: str = "",
        forgiving: bool = False,
    ) -> Examples:
        """Return rows as tokens, in their order; fewer and longer ones under `packing`.

        Args:
            rows: to learn from, or to evaluate on; a classifier's may have no labels.
            language: of the plan.
            kind: of the plan's model.
            site: whose rows they are, for errors.
            forgiving: whether a row that does not fit is cut, or becomes one of no tokens, whatever the plan
                says (`TextMap`).

        Raises:
            SchemaError: some are longer than the context, of no token, or no conversation for the template.
            InputError: the tokenizer lacks what the format needs.
        """
        classifier = kind == "text-classifier"
        pieces = self._classified(rows) if classifier else self._learnt(rows, site, forgiving)
        overlong = sum(piece.length > language.context for piece in pieces)
        if overlong and language.overlong == "refuse" and not forgiving:
            raise _refusal(
                rows,
                f"longer than the context of {language.context} tokens",
                overlong,
                site,
                'Shorten them, or write a larger context or overlong = "truncate" in [language]',
            )
        fitted = [piece.fitted(language.context) for piece in pieces]
        examples = joined(
            [ids for ids, _ in fitted],
            [counted for _, counted in fitted],
            rows.labels,
            pad=self.pad,
            cut=overlong,
        )
        empty = int(((examples.lengths if classifier else examples.counts) == 0).sum())
        if empty and not forgiving:
            what = "of no token, or of a text that the base's tokenizer fails on"
            raise _refusal(rows, what, empty, site, "Leave such rows out")
        return packed(examples, language.context) if language.packing else examples

    def enclosed(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return rows of tokens, int64[n, t], between those that the tokenizer puts around a text."""
        before, after = (np.tile(each, (len(ids), 1)) for each in (self._opening, self._ending))
        return np.concatenate([before, ids, after], axis=1, dtype=np.int64)

    def require_template(self) -> None:
        """Raise InputError where the tokenizer has no template of conversations."""
        self._chats.require()

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]], *, special: bool = False) -> str:
        """Return the text of tokens; with `special`, control tokens as they are spelled."""
        text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=not special)
        return text

    def prompt(self, given: str | Sequence[Mapping[str, str]], *, format: TextFormat = "pairs") -> list[int]:
        """Return the tokens that a model is given, as `encode` has them before what is learnt.

        Args:
            given: a prompt, the beginning of a text, or a conversation.
            format: of the plan; a conversation is one whatever it says.

        Raises:
            InputError: there is no chat template, it refuses the conversation, or the tokenizer fails on it.
        """
        found = self._begun([given], format)[0] if isinstance(given, str) else self._opened([given])[0]
        if given and not found:
            raise InputError("the base's tokenizer fails on this text", fix="Write it otherwise")
        return found

    def prompts(self, rows: TextRows, *, format: TextFormat = "pairs") -> list[list[int]]:
        """Return what a model is given for each of n rows (`TextMap.prompts`); raises as `prompt`."""
        return self._begun(rows.prompts, format) if rows.chats is None else self._opened(rows.chats)

    def cut(self, prompt: Sequence[int], context: int) -> list[int]:
        """Return a prompt of at most `context` tokens, cut where `encode` cuts one: behind the opening."""
        ids = np.asarray(prompt, dtype=np.int32)
        opening = self._opening_of(ids)
        row = Row(ids[:opening], ids[opening:], _NONE, np.zeros(0, np.bool_), _NONE)
        kept: list[int] = row.fitted(context)[0].tolist()
        return kept

    def _begun(self, texts: Sequence[str], format: TextFormat) -> list[list[int]]:
        behind = _LINE_END if format == "pairs" else ""
        found = self._tokens([text + behind for text in texts])
        return [[] if ids is None else [*self._opening.tolist(), *ids.tolist()] for ids in found]

    def _opened(self, chats: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        found = self._tokens([self._chats.opened(chat) for chat in chats], control=True)
        return [[] if ids is None else ids.tolist() for ids in found]

    def _classified(self, rows: TextRows) -> list[Row]:
        """Return a classifier's rows, of which nothing is learnt as text."""
        return [
            _EMPTY
            if ids is None
            else Row(self._opening, _NONE, ids, np.zeros(len(ids), np.bool_), self._ending, end_counts=False)
            for ids in self._tokens(rows.prompts)
        ]

    def _learnt(self, rows: TextRows, site: str, forgiving: bool) -> list[Row]:
        """Return the rows of a causal-lm."""
        if rows.chats is not None:
            return self._turns(rows, site, forgiving)
        if rows.answers is None:
            raise InputError("these rows have no answers to learn", fix="Give rows with the label's column")
        if self.end is None:
            raise InputError(
                "the base's tokenizer has no token that ends a text",
                where="tokenizer_config.json",
                fix="Write its eos_token",
            )
        end = np.array([self.end], dtype=np.int32)
        prompts = self._tokens([text + _LINE_END if text else "" for text in rows.prompts])
        return [
            _EMPTY
            if prompt is None or answer is None or not len(answer)
            else Row(self._opening, prompt, answer, np.ones(len(answer), np.bool_), end)
            for prompt, answer in zip(prompts, self._tokens(rows.answers), strict=True)
        ]

    def _turns(self, rows: TextRows, site: str, forgiving: bool) -> list[Row]:
        """Return conversations."""
        turns, broken = self._chats.turns(rows.chats or [])
        for problem, count in () if forgiving else broken.items():
            fix = "Correct such rows or leave them out, or use another base"
            raise _refusal(rows, f"a conversation {problem}", count, site, fix)
        made = []
        for ids, counted in turns:
            if not counted.any():
                made.append(_EMPTY)
                continue
            opening = self._opening_of(ids)
            begin = max(int(counted.argmax()), opening)
            made.append(Row(ids[:opening], ids[opening:begin], ids[begin:], counted[begin:], _NONE))
        return made

    def _opening_of(self, ids: Ids) -> int:
        """Return how many tokens of a row are the opening; a template need not write it."""
        length = len(self._opening)
        return length if np.array_equal(ids[:length], self._opening) else 0

    def _tokens(self, texts: Sequence[str], *, control: bool = False) -> list[Ids | None]:
        """Return the tokens of texts, in which control tokens are spelled or, with `control`, meant; None for
        one that the tokenizer fails on."""
        self._backend.encode_special_tokens = not control
        made: list[Ids | None] = []
        for at in range(0, len(texts), _BATCH):
            some = encodings(self._backend.encode_batch_fast, texts[at : at + _BATCH])
            made += [None if one is None else np.asarray(one.ids, dtype=np.int32) for one in some]
        if control:
            return made
        return [None if ids is None or self._controls.among(ids) else ids for ids in made]


def _refusal(rows: TextRows, what: str, count: int, site: str, fix: str) -> SchemaError:
    """Return the error for a number of rows."""
    names = [
        *rows.columns,
        *([rows.label_name] if rows.answers is not None or rows.chats is not None else []),
    ]
    subject = f"{count} {'row' if count == 1 else 'rows'}" + (f" of {site}" if site else "")
    verb = "is" if count == 1 else "are"
    return SchemaError(f"{subject} {verb} {what}", column=", ".join(names) or None, fix=fix)
