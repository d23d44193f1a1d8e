"""Rows of a rehearsed study: what is planted, beside rows that nobody wrote or that an owner gave, as tokens.

Each secret is at one site, with all its copies, behind the site's other rows; its rows are one unit. A site
has about as many rows as it is said to have.
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
    """
    language, texts = plan_texts(plan, schema)
    cut = msgspec.structs.replace(language, overlong="truncate")
    random = StreamRandom.system()
    parts: list[Examples] = []
    sites: list[SiteRows] = []
    at = background = 0
    for number, (name, count) in enumerate(counts.items()):
        here = [each for place, each in enumerate(plant.canaries) if place % len(counts) == number]
        told = [each.secret for each in here for _ in range(each.copies)]
        whose = [owner for owner, each in enumerate(here) for _ in range(each.copies)]
        table = None if tables is None else tables.get(name)
        others = (
            synthetic_texts(
                max(1, count - len(told)),
                language.format,
                learner.classes,
                random,
                most_words=language.context // 12,
            )
            if table is None
            else texts.rows(table)
        )
        rows = [learner.words.encode(others, cut, learner.kind, site=name)]
        if told:
            rows.append(encoded(learner, text_rows(told, language.format)))
        own = len(rows[0])
        background += own
        parts += rows
        total = own + len(told)
        units = np.array([*range(own), *(own + owner for owner in whose)], dtype=np.int64)
        sites.append(SiteRows(np.arange(at, at + total), units))
        at += total
    return _together(parts), sites, background


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
