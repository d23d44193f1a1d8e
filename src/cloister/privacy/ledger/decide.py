"""What the writer answers to one request, and the rows it makes for it.

`change` takes the engine and a request, applies its rows to the book, and returns them with the answer.
A refusal is raised, and then nothing was applied; or it is returned beside rows, where refusing changes
something itself (a study that was interrupted is closed by the attempt to admit it again).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import CloisterError, PolicyRefused
from cloister.privacy.ledger.admission import admission_of, debit_of
from cloister.privacy.ledger.fingerprints import FingerprintSet
from cloister.privacy.ledger.head import HeadFile
from cloister.privacy.ledger.rows import Admit, AnchorAt, Bind, Close, Row, new_id
from cloister.privacy.ledger.status import status_of
from cloister.privacy.ledger.wire import (
    AdmissionOf,
    AnchorQuery,
    AnchorRequest,
    BindRequest,
    BoundQuery,
    Change,
    DebitQuery,
    HeadQuery,
    OrderQuery,
    OverlapQuery,
    PopulationsQuery,
    Query,
    StatusQuery,
)

if TYPE_CHECKING:
    from cloister.privacy.ledger.engine import Engine

__all__ = ["Decision", "change", "tell"]

NO_POPULATION: Final = "Declare one with `cloister budget DATASET --epsilon ... --delta ...`"
Decision = tuple[list[Row], object | CloisterError]


def change(engine: Engine, request: Change) -> Decision:
    """Return the rows that a request makes, applied to the engine's book, and the answer.

    Raises:
        CloisterError: it is refused, and nothing was applied.
    """
    match request:
        case Admit():
            return _admit(engine, request)
        case BindRequest():
            return _bind(engine, request)
        case AnchorRequest():
            return _anchor(engine, request)
    return [request], engine.book.apply(request)


def tell(engine: Engine, query: Query) -> object:
    """Return the answer to a query, from what is on the disk. Raises CloisterError."""
    book = engine.book
    match query:
        case StatusQuery():
            return status_of(book, query.population, counted=isinstance(engine.head.counter, int))
        case PopulationsQuery():
            return tuple(sorted(book.accounts))
        case BoundQuery():
            return book.datasets.get(query.dataset, ())
        case OrderQuery():
            return max(book.account(name).cap.order for name in query.populations)
        case OverlapQuery():
            return tuple(sorted(engine.overlapping(FingerprintSet(query.content))))
        case AdmissionOf():
            number = book.studies.get(query.study)
            return None if number is None else admission_of(book, number)
        case DebitQuery():
            return debit_of(book, query.admission, engine.head)
        case AnchorQuery():
            return book.anchor
        case HeadQuery():
            return engine.envelope


def _admit(engine: Engine, request: Admit) -> Decision:
    book, rows = engine.book, list[Row]()
    number = book.studies.get(request.study)
    before = None if number is None else book.plan(number)
    if number is not None and before is not None and before.state != "closed":
        if before.state == "open":
            interrupted = bool(before.started)
            rows.append(Close(id=new_id(), at=request.at, admission=number, interrupted=interrupted))
            book.apply(rows[0])
        if before.state == "interrupted":
            return rows, PolicyRefused(
                f"the study {before.name!r} was interrupted; its {len(before.started)} started blocks are "
                "spent, and what it had reserved beyond them is free again",
                fix="Run it as a new study, with a plan of its own",
            )
    try:
        answer = book.apply(request)
    except CloisterError as error:
        return rows, error
    rows.append(request)
    return rows, answer


def _bind(engine: Engine, request: BindRequest) -> Decision:
    book, content = engine.book, FingerprintSet(request.content)
    digest = content.digest()
    wanted = set(book.datasets.get(request.dataset, ()))
    if request.population is not None:
        book.account(request.population)
        wanted.add(request.population)
    known = any(each.sha256 == digest and wanted.issubset(each.populations) for each in book.sets)
    if known and request.dataset in book.datasets and wanted:
        return [], book.datasets[request.dataset]
    wanted |= engine.overlapping(content)
    if not wanted:
        raise PolicyRefused("no budget covers the rows of this dataset", fix=NO_POPULATION)
    row = Bind(
        id=request.id,
        at=request.at,
        dataset=request.dataset,
        populations=tuple(sorted(wanted)),
        sha256=digest,
        count=len(content),
    )
    for population in row.populations:
        _check_delta(book.account(population).cap.delta, population, len(content))
    answer = book.apply(row)
    engine.keep(content)
    return [row], answer


def _check_delta(delta: float, population: str, rows: int) -> None:
    if delta * rows >= 1:
        raise PolicyRefused(
            f"the delta of {population!r} is 1 / n or more for a dataset of n = {rows} rows, which allows to "
            "publish one of them",
            fix="Lower the cap's delta first",
        )


def _anchor(engine: Engine, request: AnchorRequest) -> Decision:
    if request.path == engine.book.anchor:
        return [], None
    HeadFile(Path(request.path), durable=True).begin(engine.envelope)  # before the row says that it is there
    row = AnchorAt(id=request.id, at=request.at, path=request.path)
    return [row], engine.book.apply(row)
