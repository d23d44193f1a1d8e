"""Rows of a rehearsed study: what is planted, beside rows that nobody wrote or that an owner gave, as tokens.

Each secret is at one site, with all its copies, behind the site's other rows; its rows are one unit. A site
has about as many rows as it is said to have. An owner's rows become tokens and units as its site makes them
for the study; of synthetic ones each is a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.governance.languagestudy import SiteRows
from cloister.learning import Plan
from cloister.learning.attacks.languagelistener import encoded
from cloister.learning.attacks.languagerows import synthetic_texts
from cloister.learning.attacks.languagesecrets import Plant, text_rows
from cloister.learning.language.texts import TextMap
from cloister.runtime.languagerows import tokenised
from cloister.runtime.languageworker import plan_texts
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["planted_rows"]


def planted_rows(
    plan: Plan,
    schema: Schema,
    learner: LanguageLearner,
    plant: Plant,
    counts: Mapping[str, int],
    tables: Mapping[str, pa.Table] | None,
) -> tuple[Examples, list[SiteRows], int]:
    """Return the rows of all sites as tokens, which are whose, and how many were not planted.

    Each secret is at one site, with all its copies; a site has about as many rows as it is said to have.

    Raises:
        InputError: a secret does not fit into the plan's context, or rows that are given have no unit.
        SchemaError: rows that are given do not fit the plan.
    """
    _, texts = plan_texts(plan, schema)
    # those that the coin left out are asked for too, which would end the audit after its trainings
    encoded(learner, text_rows([each.secret for each in plant.canaries], learner.language.format))
    random = StreamRandom.system()
    parts: list[Examples] = []
    sites: list[SiteRows] = []
    at = background = 0
    for number, (name, count) in enumerate(counts.items()):
        here = [each for place, each in enumerate(plant.canaries) if place % len(counts) == number]
        told = [each.secret for each in here for _ in range(each.copies)]
        whose = [owner for owner, each in enumerate(here) for _ in range(each.copies)]
        table = None if tables is None else tables.get(name)
        others, units = (
            _synthetic(learner, max(1, count - len(told)), random)
            if table is None
            else _given(plan, texts, learner, table, name)
        )
        parts.append(others)
        if told:
            parts.append(encoded(learner, text_rows(told, learner.language.format)))
        own = len(others)
        background += own
        total = own + len(told)
        planted = np.array([own + owner for owner in whose], dtype=np.int64)
        sites.append(SiteRows(np.arange(at, at + total), np.concatenate([units, planted])))
        at += total
    return _together(parts), sites, background


def _synthetic(
    learner: LanguageLearner, count: int, random: StreamRandom
) -> tuple[Examples, NDArray[np.int64]]:
    """Return rows that nobody wrote, and whose unit each is: its own."""
    language = learner.language
    cut = msgspec.structs.replace(language, overlong="truncate")
    made = synthetic_texts(count, language.format, learner.classes, random, most_words=language.context // 12)
    examples = learner.words.encode(made, cut, learner.kind)
    return examples, np.arange(len(examples))


def _given(
    plan: Plan, texts: TextMap, learner: LanguageLearner, table: pa.Table, site: str
) -> tuple[Examples, NDArray[np.int64]]:
    """Return an owner's rows, and whose unit each is, by numbers below that of the rows."""
    found = tokenised(plan, texts, learner, rows=lambda: table, evaluation=None, site=site)
    units = np.arange(len(found.train))
    for number, rows in enumerate(found.units):
        units[rows] = number
    return found.train, units


def _together(parts: Sequence[Examples]) -> Examples:
    """Return the rows of all parts, one after the other."""
    from cloister.learning.torch.language.examples import Examples

    starts, at = [np.zeros(1, dtype=np.int64)], 0
    for part in parts:
        starts.append(part.starts[1:] + at)
        at += len(part.ids)
    places = None
    if any(part.places is not None for part in parts):
        places = np.concatenate([_places(part) for part in parts])
    return Examples(
        ids=np.concatenate([part.ids for part in parts]),
        starts=np.concatenate(starts),
        counted=np.concatenate([part.counted for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        pad=parts[0].pad,
        places=places,
    )


def _places(part: Examples) -> NDArray[np.int32]:
    """Return each token's place in its own text, of rows that are one text each too."""
    if part.places is not None:
        return part.places
    return np.concatenate([np.arange(n, dtype=np.int32) for n in part.lengths.tolist()])
