"""A process that reserves from a ledger until it is ended; says what was acknowledged, one line each.

    python -m tests.privacy.ledger.client_process FOLDER NAME

FOLDER holds ledger/ and identity.json. Lines: "start BLOCK WRITER", "spend WHAT WRITER", "failed ERROR".
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

from cloister.crypto import Identity
from cloister.errors import CloisterError
from cloister.privacy.ledger import Cost, Ledger

PASSPHRASE = "test"
POPULATION = "rows"


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def study_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def main(folder: Path, name: str) -> None:
    identity = Identity.load(folder / "identity.json", PASSPHRASE)
    with Ledger.open(folder / "ledger", identity) as ledger:
        cost = Cost(1e-9, 1e-15, ledger.order(POPULATION))
        admission = ledger.admit(POPULATION, study_of(name), name, cost, 100_000)
        for number in itertools.count():
            ledger.start(admission, number)
            say("start", number, ledger.writer_pid)
            ledger.spend(POPULATION, f"{name}-{number}", cost)
            say("spend", f"{name}-{number}", ledger.writer_pid)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except CloisterError as error:
        say("failed", error)
