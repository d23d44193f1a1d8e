"""A ledger to test with: one owner, rows by number, costs at the order of its cap."""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from cloister.crypto import Identity
from cloister.privacy.ledger import Cap, Cost, Ledger
from cloister.privacy.ledger.store import DATABASE

CAP = Cap.of(3.0, 1e-5)
STUDY = "5" * 64


@functools.cache
def owner(name: str = "ann") -> Identity:
    return Identity.generate(name)


def rows(*numbers: int | Iterable[int]) -> bytes:
    """Return the fingerprints of the rows with these numbers."""
    flat = [each for number in numbers for each in ([number] if isinstance(number, int) else number)]
    return b"".join(hashlib.sha256(str(number).encode()).digest() for number in flat)


def cost(share: float = 0.01, delta: float = 0.0, cap: Cap = CAP) -> Cost:
    """Return a cost that is a share of a cap."""
    return Cost(share * cap.rdp, delta, cap.order)


def filled(folder: Path) -> Path:
    """Make a ledger with a row of every kind but an owner's; return its folder. It is closed."""
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        ledger.declare("south", CAP)
        ledger.declare("south", Cap(2.5, 1e-5, CAP.order))
        ledger.bind("north", "dataset-1", rows(range(100)))
        ledger.bind("south", "dataset-2", rows(range(200, 250)))
        study = ledger.admit("north", STUDY, "heart", cost(0.05), 4)
        ledger.start(study, 0)
        ledger.commit(study, 0)
        ledger.start(study, 1)
        for _ in range(3):
            ledger.spend(("north", "south"), "mean age", cost())
        done = ledger.admit("north", "6" * 64, "short", cost(0.1), 2)
        ledger.start(done, 1)
        ledger.close(done)
    return folder


def edit(folder: Path, *statements: str | tuple[str, tuple[object, ...]]) -> None:
    """Change a ledger's file by hand."""
    sql = sqlite3.connect(folder / DATABASE, isolation_level=None)
    try:
        for statement in statements:
            text, values = (statement, ()) if isinstance(statement, str) else statement
            sql.execute(text, values)
    finally:
        sql.close()


def bodies(folder: Path) -> list[bytes]:
    """Return the rows of a closed ledger as they are stored."""
    sql = sqlite3.connect(folder / DATABASE)
    try:
        return [body for (body,) in sql.execute("SELECT body FROM rows ORDER BY id")]
    finally:
        sql.close()
