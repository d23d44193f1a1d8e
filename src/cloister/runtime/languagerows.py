"""A site's texts as tokens, for the worker of a language model; they stay in memory.

Every row is tokenised, or refused with a number of rows and never a value. Under privacy no row to train on
is refused: one that does not fit is cut, or contributes nothing, for a refusal would tell of it. Held-out
rows are opened where the plan has public rows, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.learning import Plan
from cloister.learning.language.texts import TextMap
from cloister.learning.units import unit_rows

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["OpenRows", "TokenRows", "tokenised"]

OpenRows: TypeAlias = Callable[[], pa.Table]
"""Opens a dataset's rows."""


@dataclass(frozen=True)
class TokenRows:
    """A site's rows as tokens: those to train on, which of them belong to one unit, and those held out."""

    train: Examples
    units: list[NDArray[np.int64]]
    held_out: Examples | None


def tokenised(
    plan: Plan,
    texts: TextMap,
    learner: LanguageLearner,
    *,
    rows: OpenRows,
    evaluation: OpenRows | None,
    site: str,
) -> TokenRows:
    """Open a site's rows and return their tokens.

    Args:
        plan: the study's plan.
        texts: how its rows become texts.
        learner: whose tokenizer it is.
        rows: opens the training rows.
        evaluation: opens held-out rows, or None where the site has none.
        site: whose rows they are, for errors.

    Raises:
        SchemaError: rows do not fit the plan, of which nothing is claimed.
        InputError: the tokenizer lacks what the plan's format needs.
    """
    table = rows()
    privacy, units = plan.privacy, []
    if privacy is not None and not privacy.by_record:
        units = unit_rows(table.column(privacy.unit), privacy.unit)
    held_out = None
    # where nothing of them may leave, neither may a refusal
    if evaluation is not None and plan.data.public_rows:
        held_out = _encoded(texts, learner, evaluation(), site)
    # a refusal would tell of a row what no ledger is charged for
    train = _encoded(texts, learner, table, site, forgiving=privacy is not None)
    return TokenRows(train, units, held_out)


def _encoded(
    texts: TextMap, learner: LanguageLearner, table: pa.Table, site: str, *, forgiving: bool = False
) -> Examples:
    rows = texts.rows(table, forgiving=forgiving)
    examples = learner.words.encode(rows, learner.language, learner.kind, site=site, forgiving=forgiving)
    # the base has no vector for such a token, and the learner would say so
    return examples.emptied(examples.beyond(learner.vocabulary)) if forgiving else examples
