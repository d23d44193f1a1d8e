"""What a case is: a question of an industry, real rows, and the settings that answer it in all seven stages.

A case is frozen data with one function, its loader. It names its sites, its schema and its settings;
identities, vaults and the plan are made by whoever runs it. Every case declares its rows public, with
source and licence: only then may accuracy by round and the baselines "centralised" and "alone" be shown.

Loading checks what was declared: the sites, in order, each with rows to train and to test on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cloister.errors import InputError
from cloister.learning.sections import AggregationSection, ModelSection, PrivacySection, TrainingSection
from cloister.report import Language, Source, StageName, Subject, Text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Case", "CaseData", "Origin", "PrivateSettings", "Progress", "SiteRows", "Words"]


class Progress(Protocol):
    """Who is told how a run goes. Nothing depends on it."""

    def stage(self, name: StageName) -> AbstractContextManager[None]:
        """Enter one of the seven stages; leaving the context ends it, an exception marks it as failed."""

    def round(self, number: int, total: int, metric: float | None) -> None:
        """A round of training is done: its number from 1, of how many, and the accuracy if it is known."""

    def note(self, text: str) -> None:
        """Say one thing that a reader should know."""


@dataclass(frozen=True)
class SiteRows:
    """The rows of one site, split once; both tables have the schema's columns."""

    train: pa.Table
    test: pa.Table


@dataclass(frozen=True)
class CaseData:
    """The rows of all sites by name, in the case's order."""

    sites: Mapping[str, SiteRows]


@dataclass(frozen=True)
class Words:
    """How people call a site, several sites, several rows, and the positive answer."""

    site: Text
    sites: Text
    rows: Text
    positive: Text


@dataclass(frozen=True)
class Origin:
    """Where the rows come from.

    Args:
        text: source and citation.
        licence: as published.
        note: what a reader must know of how they became sites.
    """

    text: Text
    licence: str
    note: Text


@dataclass(frozen=True)
class PrivateSettings:
    """How a case trains under differential privacy, and what its owners allow.

    Args:
        training: `[training]` of the plan.
        privacy: `[privacy]` of the plan.
        cap: (epsilon, delta) that each owner declares for its rows, over everything ever released from them.
    """

    training: TrainingSection
    privacy: PrivacySection
    cap: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One industry case.

    Args:
        name: what `cloister demo NAME` takes; also the study's name.
        title: a few words.
        question: what the model answers, in plain words.
        industry: whose question it is.
        purpose: the purpose that sites agree to.
        sites: their names, in order; at least three.
        schema_toml: the schema that all sites share.
        label: the schema's label column.
        positive: the label's value that counts as yes.
        words: how people call sites, rows and the positive answer.
        origin: source, licence, and how the rows became sites.
        model: `[model]` of the plan, its start not yet pinned.
        training: `[training]` of the plan, where it claims no privacy.
        private: the settings under differential privacy, which a run has unless it is told otherwise.
        aggregation: `[aggregation]` of the plan.
        loader: makes the rows, from a folder of files where the case needs one.
        scaling: `[data] scaling` of the plan.
        public_rows: `[data] public_rows` of the plan; always declared true here.
        needs_files: whether the loader reads files that the user brings.
    """

    name: str
    title: Text
    question: Text
    industry: Text
    purpose: str
    sites: tuple[str, ...]
    schema_toml: str
    label: str
    positive: str
    words: Words
    origin: Origin
    model: ModelSection
    training: TrainingSection
    private: PrivateSettings
    aggregation: AggregationSection
    loader: Callable[[Path | None], CaseData]
    scaling: Literal["bounds", "local"] = "bounds"
    public_rows: Literal[True] = True
    needs_files: bool = False

    def load(self, data_dir: Path | None) -> CaseData:
        """Return the rows of all sites, split into training and test rows.

        Args:
            data_dir: folder with the case's files; None where it needs none, or none was given.

        Raises:
            InputError: files are missing or are not what they should be; a site has no rows.
        """
        data = self.loader(data_dir)
        if tuple(data.sites) != self.sites:
            raise InputError(
                f"the rows of case {self.name} are not those of its sites", fix="Check the case's loader"
            )
        for name, rows in data.sites.items():
            if not rows.train.num_rows or not rows.test.num_rows:
                raise InputError(f"site {name} has no rows to train or test on", fix="Check the case's files")
        return data

    def subject(self, lang: Language) -> Subject:
        """Return the report's words for sites, rows and the positive answer."""
        words = self.words
        return Subject(
            words.site.to(lang), words.sites.to(lang), words.rows.to(lang), words.positive.to(lang)
        )

    def source(self, lang: Language) -> Source:
        """Return the report's account of where the rows come from."""
        origin = self.origin
        return Source(origin.text.to(lang), origin.licence, self.public_rows, origin.note.to(lang))
