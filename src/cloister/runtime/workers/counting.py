"""Statistics in a walled worker: it opens the rows and gives back exact sums, which get their noise outside.

Exact sums are private; they exist in the worker and in the process of the rows' owner, for the length of one
call, and whoever asks for them debits the ledger before and adds noise after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity, sha256
from cloister.errors import IntegrityError, ProtocolError
from cloister.privacy.statistics.release import Question, exact_sums
from cloister.runtime.queryplan import describe
from cloister.runtime.workers.asking import KeyLender
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.messages import Count, Integers, Place, as_bytes
from cloister.runtime.workers.session import Session
from cloister.vault import Vault
from cloister.vault.handover import OpenDataKey, open_handed

__all__ = ["ExactSums", "counted", "sums_inside", "sums_sandboxed"]

ExactSums = Callable[[Sequence[Question], Sequence[str], Sequence[int]], list[NDArray[np.int64]]]
"""Takes queries with their grids, the columns they need and the sizes of their sums; returns the sums."""

_ROOM = 1024


def sums_inside(vault: Vault, dataset: str, envelope: bytes, *, purpose: str) -> ExactSums:
    """Return what reads a dataset and adds up in this process.

    Raises (the function returned):
        IntegrityError: the dataset is not the one whose manifest is `envelope`, or was altered.
    """

    def sums(
        questions: Sequence[Question], columns: Sequence[str], sizes: Sequence[int]
    ) -> list[NDArray[np.int64]]:
        with vault.open(dataset, purpose=purpose) as opened:
            if opened.envelope != envelope:
                raise _replaced(dataset)
            table = opened.table(columns or opened.columns[:1])
            return exact_sums(questions, table, describe(opened.schema, opened.rows))

    return sums


def sums_sandboxed(
    vault: Vault, dataset: str, envelope: bytes, *, purpose: str, identity: Identity
) -> ExactSums:
    """Return what has a walled worker read a dataset and add up; a worker serves one call.

    Args:
        vault: keeps the dataset's keys; stays here.
        dataset: its name.
        envelope: its manifest, as it was shown.
        purpose: what the answers are for.
        identity: the owner's own keys.

    Raises (the function returned):
        IntegrityError: as `sums_inside`. PolicyRefused: the machine lacks a wall.
        ProtocolError: the worker ended, or answered what it was not asked.
    """

    def sums(
        questions: Sequence[Question], columns: Sequence[str], sizes: Sequence[int]
    ) -> list[NDArray[np.int64]]:
        handed = vault.hand_over(dataset, purpose=purpose)
        if handed.envelope != envelope:
            raise _replaced(dataset)
        place = Place(str(handed.folder.resolve()), handed.envelope)
        queries, grids = [query for query, _ in questions], [grid for _, grid in questions]
        lender = KeyLender(handed.data_key, len(handed.manifest.schema.columns))
        session = Session(sandbox(), identity, sha256(envelope), read=[handed.folder])
        try:
            question = Count(place, purpose, list(columns), queries, grids)
            answer = session.ask(question, most=8 * sum(sizes) + _ROOM, lenders=[lender])
        finally:
            session.close()
        if not isinstance(answer, Integers) or len(answer.values) != 8 * sum(sizes):
            raise ProtocolError("the worker answered something else than it was asked")
        values = np.frombuffer(answer.values, "<i8").astype(np.int64)
        return np.split(values, np.cumsum(sizes)[:-1])

    return sums


def counted(question: Count, owner: PublicIdentity, data_key: OpenDataKey) -> Integers:
    """Return the exact sums a site asks for: the worker's side.

    Raises:
        CloisterError: the dataset is not what its manifest says, or a query does not fit it.
    """
    place = question.rows
    with open_handed(
        Path(place.folder), place.envelope, owner, purpose=question.purpose, data_key=data_key
    ) as opened:
        table = opened.table(question.columns or opened.columns[:1])
        pairs = list(zip(question.queries, question.grids, strict=True))
        return Integers(
            as_bytes(np.concatenate(exact_sums(pairs, table, describe(opened.schema, opened.rows))))
        )


def _replaced(dataset: str) -> IntegrityError:
    return IntegrityError(
        "the dataset was replaced after its manifest was shown", where=dataset, fix="Ask again"
    )
