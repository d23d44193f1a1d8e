"""What `cloister up` shows of its processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli.up import _Words


def test_a_refusal_is_shown_once_and_in_the_sites_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, hub = _Words(tmp_path / "site", "north"), _Words(tmp_path / "hub", None)
    (tmp_path / "site").write_text("Site north: waiting for hub.\nstudy: Stopped: 12 rows are too long (te")
    (tmp_path / "hub").write_text(
        "north is connected.\nRefused a message of north: takes no part: it leaves\n"
    )
    site.tell()
    hub.tell()
    with (tmp_path / "site").open("a") as more:
        more.write("xt).\n")
    with (tmp_path / "hub").open("a") as more:
        more.write("the study stopped")
    for words in (site, hub):
        words.tell()
        words.tell(ended=True)
        words.tell(ended=True)
    assert capsys.readouterr().err.splitlines() == [
        "north is connected.",
        "north: study: Stopped: 12 rows are too long (text).",
        "the study stopped",
    ]
