"""What a test starts and kills: a site that goes through attempts, and tells what has left it.

    python -m tests.runtime.journal.dying DISK MEMORY EPOCH_FILE

Each line it prints is something that left: "upload ATTEMPT DIGEST" or "choice ATTEMPT LIST". It was kept before.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import msgspec

from cloister.crypto import Identity, sha256
from cloister.runtime.journal import EpochKept, SiteJournal

PLAN = bytes(range(32))
PASSPHRASE = "only for this test"


def main(disk: Path, memory: Path, home: Path) -> None:
    identity = Identity.load(home / "identity.json", PASSPHRASE)
    kept = msgspec.msgpack.decode((home / "epoch").read_bytes(), type=EpochKept)
    journal = SiteJournal(disk, memory, identity, PLAN)
    journal.begin_epoch(kept)
    for attempt in itertools.count():
        journal.entered(attempt, attempt + 1)
        upload = sha256(attempt.to_bytes(4, "big")) * 20_000
        journal.uploaded(attempt, upload)
        print("upload", attempt, sha256(upload).hex(), flush=True)  # noqa: T201
        journal.chosen(attempt, (0, 1, attempt % 100 + 2))
        print("choice", attempt, attempt % 100 + 2, flush=True)  # noqa: T201
        journal.applied(upload[:1000])
        if attempt % 7 == 0:
            journal.checkpoint(upload[:5000])


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
