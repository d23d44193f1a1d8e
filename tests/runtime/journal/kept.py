"""A site of a secure sum with its journal, as the site of a study uses them: written first, then sent."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.secagg.network import MODEL, PLAN, Network, context, identity

from cloister.runtime.journal import EpochKept, SiteJournal, SiteKept
from cloister.runtime.journal.volatile import why_not_volatile
from cloister.secagg import SecureSumSite

SHM = Path("/dev/shm")
_numbers = itertools.count()


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """A private folder in memory, away afterwards."""
    folder = SHM / f"cloister-test-{os.getpid()}-{next(_numbers)}"
    if not SHM.is_dir() or (why := why_not_volatile(folder)) is not None:
        pytest.skip(f"no tmpfs: {'/dev/shm is missing' if not SHM.is_dir() else why}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Kept:
    """Site 0 of a network, and where it writes; `restart` is what a kill and a start do."""

    def __init__(self, disk: Path, memory: Path | None, net: Network | None = None) -> None:
        self.disk, self.memory = disk, memory
        self.net = net or Network(context(4, attempts=6, view="none"))
        self.site = self.net.sites["site-0"]
        self.journal = self.opened()
        self.used = 0

    def opened(self) -> SiteJournal:
        return SiteJournal(self.disk, self.memory, identity(0), PLAN)

    def begin(self) -> None:
        self.journal.promised(self.net.context.epoch)
        self.journal.begin_epoch(EpochKept(b"offer", b"closed", self.site.snapshot()))

    def enter(self, attempt: int) -> None:
        if attempt != self.site.attempt:
            self.used += 1
            self.journal.entered(attempt, self.used)

    def upload(self, attempt: int, vector: np.ndarray) -> bytes:
        before = self.site.uploaded if attempt == self.site.attempt else None
        self.enter(attempt)
        message = self.site.upload(attempt, vector, MODEL)
        if before is None:
            self.journal.uploaded(attempt, message)
        return message

    def answer(self, request: bytes) -> bytes:
        reply = self.site.answer(request)
        self.journal.chosen(self.site.attempt, self.site.choice)
        return reply

    def restart(self) -> SiteKept | None:
        self.journal.close()  # writes nothing
        self.journal = self.opened()
        kept = self.journal.load()
        if kept is not None and kept.epoch is not None:
            self.site = SecureSumSite.restore(
                self.net.context, identity(0), kept.epoch.secure_sum, kept.attempt, kept.upload, kept.choice
            )
            self.net.sites["site-0"] = self.site
        return kept


def files(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
