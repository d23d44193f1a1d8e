"""A trained language model as an attack asks it: secrets as rows of the plan's format, and questions.

Rows are tokenised as a site's are, so a secret costs what its row costs in training. Of a classifier all
classes of a phrase are scored in one pass. Asking changes nothing but the learner's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from cloister.errors import InputError
from cloister.learning.attacks.languagesecrets import Secret, text_rows
from cloister.learning.heads import Array
from cloister.learning.language.texts import TextRows
from cloister.learning.learner import Vector

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["LearnerListener", "encoded"]

_ROOM: Final = 8  # tokens that an answer may have more than the longest secret has
_PAGE: Final = 64  # prompts that are answered together
_LEAST: Final = 1e-300


def encoded(learner: LanguageLearner, rows: TextRows) -> Examples:
    """Return rows that tell secrets as tokens, one row each: packed ones could not be told apart.

    Raises:
        InputError: a secret does not fit into the plan's context.
    """
    language = msgspec.structs.replace(learner.language, packing=False, overlong="truncate")
    examples = learner.words.encode(rows, language, learner.kind)
    if examples.cut:
        raise InputError(
            f"a planted secret is longer than the context of {language.context} tokens",
            where="audit",
            fix="Plant codes alone, which are the shortest, or audit a plan with a longer context",
        )
    return examples


class LearnerListener:
    """A `Listener`.

    Args:
        learner: the model.
        params: float32[d], what it was trained to.
    """

    def __init__(self, learner: LanguageLearner, params: Vector) -> None:
        self._learner, self._params = learner, params

    def __repr__(self) -> str:
        return f"<LearnerListener {self._learner.kind}>"

    def losses(self, secrets: Sequence[Secret]) -> Array:
        """Return the loss of each secret's row, float64[n], in nats."""
        return self._losses(self._params, secrets)

    def base_losses(self, secrets: Sequence[Secret]) -> Array:
        """Return the same before any training."""
        return self._losses(self._learner.initial(self._learner.section.seed), secrets)

    def answers(self, secrets: Sequence[Secret], samples: int) -> list[list[str]] | None:
        """Return what is said when asked for each secret; None of a classifier."""
        learner = self._learner
        if learner.classes:
            return None
        prompts = [self._prompt(secret) for secret in secrets]
        rooms = self._rooms(secrets, prompts)
        said: list[list[str]] = [[] for _ in secrets]
        for temperature in (0.0, *[1.0] * samples):
            for page, most in _pages(rooms):
                given = [prompts[number] for number in page]
                answers = learner.generate(self._params, given, most, temperature=temperature)
                for number, tokens in zip(page, answers, strict=True):
                    # a text that goes on from an opening is read together with it
                    said[number].append(learner.words.decode([*prompts[number], *tokens]))
        return said

    def _rooms(self, secrets: Sequence[Secret], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return how many tokens each answer may have: the longest that is asked for and some more, or what
        the base has places for. A secret's own always fits, for its row was within the context."""
        learner = self._learner
        whole = encoded(learner, text_rows(secrets, learner.language.format)).lengths
        given = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        most = int((whole - given).max()) + _ROOM
        rooms: list[int] = np.minimum(most, learner.places - given).tolist()
        return rooms

    def _prompt(self, secret: Secret) -> list[int]:
        format, words = self._learner.language.format, self._learner.words
        if format == "chat":
            return words.prompt([{"role": "user", "content": secret.question}])
        return words.prompt(secret.question if format == "pairs" else secret.opening, format=format)

    def _losses(self, params: Vector, secrets: Sequence[Secret]) -> Array:
        learner = self._learner
        if not learner.classes:
            return learner.losses(params, encoded(learner, text_rows(secrets, learner.language.format)))
        phrases = list(dict.fromkeys(each.name for each in secrets))  # each goes through the model once
        first = {each.name: each for each in secrets}
        rows = encoded(learner, text_rows([first[name] for name in phrases], "text"))
        chances = learner.predict(params, rows)
        at = {name: number for number, name in enumerate(phrases)}
        picked = np.array([chances[at[each.name], int(each.digits)] for each in secrets])
        losses: Array = -np.log(np.maximum(picked, _LEAST))
        return losses


def _pages(rooms: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yield prompts, by number, that are answered together, and their room, which is the same."""
    for room in sorted(set(rooms)):
        numbers = [number for number, each in enumerate(rooms) if each == room]
        for at in range(0, len(numbers), _PAGE):
            yield numbers[at : at + _PAGE], room
