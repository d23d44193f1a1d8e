"""Rows in, answers out, with a released language model: what `Predictor` is for models of tables.

    text-classifier    prediction, probability        as a table's model with as many classes names them
    causal-lm          answer                         the most probable tokens, without the one that ends them

Rows are checked as a table's are: columns that the model reads must be there and hold text; what breaks the
schema is named by line and column, or by how many rows do, never by value. A prompt is the plan's columns in
their order, put as it was in training. One that is longer than the plan's context is refused, or cut as the
plan cuts rows: from its left, behind what opens every row; a classifier's text from its end.

Base and adapter stay apart, as in training. Base and adapter merged, as they are served for chats, answer the
same but for the last digits of what they compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.errors import InputError, SchemaError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.artifact import answer_labels
from cloister.inference.rows import read_rows
from cloister.inference.walled import MOST_TOKENS
from cloister.learning.modelfiles.files import ModelFiles
from cloister.vault import Column
from cloister.vault.sources import Source, TableSource, open_source

if TYPE_CHECKING:
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["LanguagePredictor"]


class LanguagePredictor:
    """A released language model that answers rows.

    Args:
        artifact: the model.
        learner: what computes with it.
        params: its trained vector, float32[d].
        most: tokens of an answer at most.

    Attributes:
        artifact: the model.
        columns: names of an answer's columns.
        inputs: the columns that are read of a row, as the schema declares them.
    """

    def __init__(
        self,
        artifact: AdapterArtifact,
        learner: LanguageLearner,
        params: NDArray[np.float32],
        most: int = MOST_TOKENS,
    ) -> None:
        self.artifact, self._learner, self._params, self._most = artifact, learner, params, most
        self.columns = artifact.columns
        self.inputs: Mapping[str, Column] = artifact.inputs

    @classmethod
    def of(
        cls,
        artifact: AdapterArtifact,
        files: ModelFiles,
        *,
        most: int = MOST_TOKENS,
        scratch: Path | None = None,
        device: str = "auto",
    ) -> LanguagePredictor:
        """Return the predictor of a released model.

        Args:
            artifact: the model.
            files: of its base.
            most: tokens of an answer at most.
            scratch: a folder, best in memory, for the tokenizer's files; None for one of its own.
            device: "cpu", "cuda", or "auto" for a GPU where there is one.

        Raises:
            IntegrityError: base or tokenizer is another one, or the adapter is not of this base.
            InputError: the base cannot be loaded.
        """
        from cloister.inference.language.adapted import learner_of

        return cls(artifact, *learner_of(artifact, files, scratch=scratch, device=device), most=most)

    def fit_file(self, path: Path) -> LanguagePredictor:
        """Raise InputError: there is nothing to scale by."""
        raise InputError("a language model scales nothing", where=str(path), fix="Leave --reference out")

    def predict(self, table: pa.Table) -> pa.Table:
        """Return answers for the rows of an Arrow table.

        Raises:
            SchemaError: a column is absent, or rows break the schema or are too long.
            InputError: prompt and answer are more than the base was made for.
            StorageError: there is not enough memory.
        """
        return self.predict_source(TableSource(table))

    def predict_file(self, path: Path) -> pa.Table:
        """Return answers for the rows of a CSV or Parquet file; as `predict`."""
        return self.predict_source(open_source(path))

    def predict_source(self, source: Source) -> pa.Table:
        """Return answers for the rows of any source of the vault; as `predict`."""
        rows = self.artifact.card.texts.prompts(read_rows(source, self.inputs))
        if not len(rows):
            return self._table(np.zeros((0, max(1, self.artifact.card.model.classes))), [])
        words, card = self._learner.words, self.artifact.card
        if not self.artifact.generates:
            examples = words.encode(rows, card.language, "text-classifier")
            return self._table(self._learner.predict(self._params, examples), [])
        prompts = [self._fitted(each) for each in words.prompts(rows, format=card.language.format)]
        overlong = sum(not prompt for prompt in prompts)
        if overlong:
            raise SchemaError(
                f"{overlong} {'prompt is' if overlong == 1 else 'prompts are'} longer than the context of "
                f"{card.language.context} tokens, or of no token",
                column=", ".join(self.inputs),
                fix="Shorten them; a model of a plan with overlong = 'truncate' would cut them",
            )
        self._check_room(max(map(len, prompts)))
        found = self._learner.generate(self._params, prompts, self._most)
        return self._table(np.zeros((0, 0)), [words.decode(tokens) for tokens in found])

    def _fitted(self, prompt: list[int]) -> list[int]:
        """Return a prompt that fits the context; empty where it does not and may not be cut."""
        language = self.artifact.card.language
        if len(prompt) <= language.context:
            return prompt
        return self._learner.words.cut(prompt, language.context) if language.overlong == "truncate" else []

    def _check_room(self, longest: int) -> None:
        base: Any = self._learner.module.base
        config = base.config.get_text_config()
        places = getattr(config, "max_position_embeddings", None) or longest + self._most
        if longest + self._most > places:
            raise InputError(
                f"a prompt has {longest} tokens and an answer may have {self._most}: together more than the "
                f"{places} that the base was made for",
                fix=f"Ask for at most {max(1, places - longest)} --tokens, or shorten the prompts",
            )

    def _table(self, scores: NDArray[np.float64], answers: list[str]) -> pa.Table:
        if self.artifact.generates:
            return pa.table({"answer": pa.array(answers, pa.string())})
        texts = self.artifact.card.texts
        labels = answer_labels(texts.class_names, texts.label, scores.argmax(axis=1))
        chances = [scores[:, 1]] if texts.classes == 2 else list(scores.T)
        columns = [labels, *(pa.array(np.ascontiguousarray(each)) for each in chances)]
        return pa.table(dict(zip(self.columns, columns, strict=True)))
