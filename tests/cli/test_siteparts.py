"""What a site keeps of a study that has ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.cli.siteparts import SiteParts


class Journal:
    """Notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def forget(self) -> None:
        self.done.append("forget")

    def close(self) -> None:
        self.done.append("close")


@pytest.mark.parametrize(
    ("concluded", "kept", "done"),
    [(True, True, ["forget", "close"]), (True, False, ["close"]), (False, False, ["close"])],
)
def test_a_journal_stays_until_model_and_record_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concluded: bool, kept: bool, done: list[str]
) -> None:
    """Where the disk was full at the end, the site comes back by its journal and gets them again."""
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path))
    if kept:
        (tmp_path / "studies" / "test").mkdir(parents=True)
    journal = Journal()
    parts: Any = object.__new__(SiteParts)
    parts._journals = {b"digest": journal}
    invitation: Any = SimpleNamespace(plan=SimpleNamespace(digest=b"digest"))
    site: Any = SimpleNamespace(study="test", study_key=b"key", concluded="concluded" if concluded else None)
    parts.on_left(invitation, site)
    assert journal.done == done
