"""Under privacy, memory that is too small ends a site's work before a row is opened, not at somebody's long row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from tests.runtime.languageparties import base, parties, plan_for, schema, table

from cloister.crypto import Identity
from cloister.errors import StorageError
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.torch.bookkeeping import Bookkeeping
from cloister.learning.torch.language.passing import Passes
from cloister.runtime.languageworker import LanguageWorker

CONTEXT = 64
QUIET = {"noise_multiplier": 1e-4, "delta": 1e-4, "clip": 1.0, "rate": 1.0, "microbatch": 16}
PERSON = {"unit": "person", "sites_per_unit": 1, "expected_units": 12}


class Site:
    """A worker whose texts are short, and what it opened."""

    def __init__(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        persons, hub, folder = "unit" in changes, Identity.generate("hub"), base(tmp_path)
        members = parties(tmp_path, "text-classifier", [6, 6, 6], folder, persons=persons)
        plan = plan_for(
            hub,
            members,
            "text-classifier",
            folder,
            privacy=QUIET | changes,
            training={"rounds": 2, "local_steps": 1, "batch": 16},
        )
        self.opened = 0
        own = schema("text-classifier", persons=persons)
        self._rows = table("text-classifier", 9, 1, persons=persons)
        self.worker = LanguageWorker(plan, own, self._open, folder, site="north", device="cpu")
        self.terms = PrivacyTerms.of(plan, plan.params(3), self.worker.bounded)

    def _open(self) -> pa.Table:
        self.opened += 1
        return self._rows

    def sum(self) -> np.ndarray:
        return self.worker.private_sum(self.worker.initial, 1.0, self.terms)


def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory end where several rows of the whole context go through at once."""
    passes, losses = Bookkeeping.passes, Passes.losses

    def clipped(books: Bookkeeping, rows: torch.Tensor, *rest: Any) -> Any:
        if len(rows) >= 16 and rows.shape[-1] == CONTEXT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return passes(books, rows, *rest)

    def trained(given: Passes, examples: Any, rows: Any) -> Any:
        if len(rows) >= 16 and examples.lengths[rows].max() == CONTEXT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return losses(given, examples, rows)

    monkeypatch.setattr(Bookkeeping, "passes", clipped)
    monkeypatch.setattr(Passes, "losses", trained)


@pytest.mark.parametrize("changes", [{}, PERSON], ids=["record", "person"])
def test_memory_for_the_longest_rows_is_asked_for_before_any_is_opened(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, changes)
    short_of_memory(monkeypatch)
    with pytest.raises(StorageError, match=r"not enough memory.*north"):
        site.sum()
    assert site.opened == 0


@pytest.mark.parametrize("changes", [{}, PERSON], ids=["record", "person"])
def test_what_was_made_up_is_in_no_sum(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, changes)
    first = site.sum()
    assert site.opened == 1
    assert np.abs(first).max() > 0
    short_of_memory(monkeypatch)  # nothing so long comes again
    again = site.sum()
    slack = 64 if not changes else np.abs(first).max()  # rounding at random; order of rows
    assert np.abs(again - first).max() <= slack
