"""A language model of a plan: its losses, its local training, its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.heads import Array, SoftmaxHead
from cloister.learning.language.layout import Window
from cloister.learning.sections import TrainingSection
from cloister.learning.torch.language.evaluation import evaluation_sums
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.generation import generate
from cloister.learning.torch.language.parameters import LanguageParameters
from cloister.learning.torch.language.training import local_steps, order_of
from cloister.learning.torch.language.vector import Single

__all__ = ["LanguageLearner"]


class LanguageLearner(LanguageParameters):
    """What a plan trains of a base, and how. Arguments and errors are those of `LanguageParameters`."""

    def losses(self, params: NDArray[np.floating[Any]], examples: Examples) -> Array:
        """Return each row's loss, float64[n]: cross-entropy, or summed over its counted tokens, in nats."""
        self._take(params, examples)
        with self._memory():
            return self.passes.all_losses(examples)

    def predict(self, params: NDArray[np.floating[Any]], examples: Examples) -> Array:
        """Return each row's probabilities, float64[n, classes].

        Raises:
            InputError: the model has no classes; or as `load`.
        """
        if not self.classes:
            raise InputError("a model of next tokens has no classes", fix="Use generate")
        self._take(params, examples)
        with self._memory():
            return SoftmaxHead(self.classes).prediction(self.passes.all_scores(examples))

    def evaluation_sums(self, params: NDArray[np.floating[Any]], examples: Examples) -> Array:
        """Return addable sums: float64[4] of a classifier, float64[3] of next tokens (see `evaluation`)."""
        self._take(params, examples)
        with self._memory():
            return evaluation_sums(self.passes, examples, self.classes)

    def train(
        self,
        params: NDArray[np.floating[Any]],
        examples: Examples,
        training: TrainingSection,
        window: Window | None = None,
        *,
        insecure_test_random: StreamRandom | None = None,
    ) -> Single:
        """Return what `local_steps` local steps make of the parameters, float32[d].

        Args:
            params: float[d].
            examples: the site's rows.
            training: `[training]` of the plan.
            window: what of the vector may move; None for all of it.
            insecure_test_random: the order of rows in tests; otherwise from the operating system.

        Raises:
            PlanError: training diverged.
            StorageError: there is not enough memory.
            InputError: there are no rows, a label is no class; or as `load`.
        """
        random = insecure_test_random or StreamRandom.system()
        return self.steps(
            params, examples, training, window or (0, self.size), order_of(len(examples), training, random)
        )

    def steps(
        self,
        params: NDArray[np.floating[Any]],
        examples: Examples,
        training: TrainingSection,
        window: Window,
        order: NDArray[np.int64],
    ) -> Single:
        """Return what `train` does, its order of rows given: int64[steps, b]."""
        self._take(params, examples)
        with self._memory():
            rows = self.language.rows_per_pass
            local_steps(self._vector, self.passes, examples, training, window, order, rows_per_pass=rows)
            return self._vector.read()

    def generate(
        self,
        params: NDArray[np.floating[Any]],
        prompts: Sequence[Sequence[int]],
        most: int,
        *,
        temperature: float = 0.0,
        insecure_test_random: StreamRandom | None = None,
    ) -> list[list[int]]:
        """Return the tokens that follow each prompt, without the end token; at most `most`.

        Raises:
            InputError: the model has classes, or a prompt is empty; or as `load`.
        """
        if self.classes:
            raise InputError("a classifier generates nothing", fix="Use predict")
        if max(map(len, prompts), default=0) + most > self.places:
            raise InputError(
                f"a prompt and {most} tokens are more than the {self.places} the base was made for",
                fix="Shorten the prompt, or ask for fewer",
            )
        self.load(params)
        with self._memory(), self.passes.autocast():
            return generate(
                self.module.base,
                prompts,
                most,
                ends=self._ends,
                pad=self.words.pad,
                temperature=temperature,
                random=insecure_test_random or StreamRandom.system(),
            )

    def _take(self, params: NDArray[np.floating[Any]], examples: Examples) -> None:
        """Set the parameters; check that the base knows the rows' tokens."""
        if not 0 <= max(int(examples.ids.max(initial=0)), examples.pad) < self.vocabulary:
            raise InputError(
                f"the tokenizer gives tokens beyond the {self.vocabulary} that the base knows",
                where="[language] tokenizer",
                fix="Use the tokenizer that belongs to this base",
            )
        self.load(params)
