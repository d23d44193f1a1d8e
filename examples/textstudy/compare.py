"""What a study of texts is compared with, on public rows: no party of a real one holds them all.

"Centralised" has all rows in one place, and in a batch as many of them as the sites have together; "alone"
has one site's. Both take the plan's rounds, local steps and server steps, as a study of one site would.
TF-IDF with logistic regression, all rows in one place, is what a classifier has to beat.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from cloister.learning import Plan, build_algorithm
from cloister.learning.language.layout import window_of
from cloister.learning.language.texts import TextMap
from cloister.learning.modelfiles import PlainFolder
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.learner import LanguageLearner
from cloister.vault import Schema

__all__ = ["Comparison", "tfidf_accuracy"]


class Comparison:
    """A plan's model outside any study.

    Args:
        plan: without privacy.
        schema: of the rows.
        base: folder of the base.

    Attributes:
        metric: "accuracy" or "perplexity".
        learner: the model.
    """

    def __init__(self, plan: Plan, schema: Schema, base: Path) -> None:
        if plan.language is None:
            raise ValueError("the plan has no language model")
        self.plan, self._language = plan, plan.language
        self.texts = TextMap.build(schema, plan.data, plan.model, plan.language)
        with tempfile.TemporaryDirectory() as scratch, closing(PlainFolder(base)) as files:
            self.learner = LanguageLearner(
                plan.model, plan.language, files, scratch=Path(scratch), device="auto"
            )
        self.metric = "accuracy" if self.learner.classes else "perplexity"

    @property
    def start(self) -> NDArray[np.float32]:
        """float32[d], what the study starts from."""
        return self.learner.initial(self.plan.model.seed)

    def examples(self, *paths: Path) -> Examples:
        """Return the rows of CSV files as tokens."""
        rows = self.texts.rows(read_rows(*paths))
        return self.learner.words.encode(rows, self._language, self.learner.kind)

    def measure(self, params: NDArray[np.floating], examples: Examples) -> float:
        """Return accuracy, or perplexity, of a model on rows."""
        sums = self.learner.evaluation_sums(params, examples)
        return float(sums[1] / sums[0] if self.metric == "accuracy" else math.exp(sums[2] / sums[1]))

    def trained(self, examples: Examples, sites: int = 1) -> NDArray[np.float64]:
        """Return what the plan's rounds, local steps and server steps make of the start, float64[d], where
        one party holds the rows of so many sites, and takes as many at a time as they do."""
        batch = self.plan.training.batch * sites
        training = msgspec.structs.replace(self.plan.training, batch=batch)
        algorithm = build_algorithm(training)
        params = self.start.astype(np.float64)
        first, second = np.zeros_like(params), np.full_like(params, algorithm.second_start or 0.0)
        tail, last = np.zeros_like(params), max(1, training.average_last)
        for number in range(training.rounds):
            window = window_of(self.learner.windows, number)
            moved = self.learner.train(params.astype(np.float32), examples, training, window)
            part = slice(*window)
            algorithm.advance(params[part], first[part], second[part], moved[part] - params[part])
            if number >= training.rounds - last:
                tail += params / last
        return tail

    def answers(self, params: NDArray[np.floating], questions: Sequence[str], most: int = 48) -> list[str]:
        """Return what a model answers to questions, most probable token by token."""
        words = self.learner.words
        prompts = [words.prompt(question) for question in questions]
        return [words.decode(ids) for ids in self.learner.generate(params, prompts, most)]


def read_rows(*paths: Path) -> pa.Table:
    """Return the rows of CSV files whose columns are text."""
    parts = []
    for path in paths:
        names = pa_csv.open_csv(path, parse_options=_OPTIONS).schema.names
        types = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        parts.append(pa_csv.read_csv(path, parse_options=_OPTIONS, convert_options=types))
    return pa.concat_tables(parts)


def tfidf_accuracy(train: Sequence[Path], test: Sequence[Path], text: str, label: str) -> float:
    """Return the test accuracy of logistic regression over TF-IDF of words, all rows in one place."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    learnt, held_out = read_rows(*train), read_rows(*test)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300)
    )
    model.fit(learnt.column(text).to_pylist(), learnt.column(label).to_pylist())
    found: float = model.score(held_out.column(text).to_pylist(), held_out.column(label).to_pylist())
    return found


_OPTIONS = pa_csv.ParseOptions(newlines_in_values=True)
