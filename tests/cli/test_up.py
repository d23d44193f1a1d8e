"""What `cloister up` shows of its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.cli.up import _Running, _Words


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


def python(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code])


def test_where_the_hub_fails_sites_may_leave_and_their_last_words_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = _Running(tmp_path / "secret", "tls://127.0.0.1:1", tmp_path)
    log = tmp_path / "north.log"
    log.touch()
    running._words = [_Words(log, "north")]
    leaves = f"import time; time.sleep(1); open({str(log)!r}, 'w').write('study: Stopped: the hub failed.')"
    acting = python("raise SystemExit(3)")
    running._processes = [python(leaves), acting]
    assert running.wait(acting) == 3
    running.stop()
    assert [process.returncode for process in running._processes] == [0, 3]
    assert capsys.readouterr().err == "north: study: Stopped: the hub failed.\n"


def test_a_site_that_waits_on_is_not_waited_for_long_where_the_hub_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.cli.up._LEAVE_SECONDS", 0.2)
    running = _Running(tmp_path / "secret", "tls://127.0.0.1:1", tmp_path)
    acting = python("raise SystemExit(3)")
    running._processes = [python("import time; time.sleep(60)"), acting]
    begun = time.monotonic()
    assert running.wait(acting) == 3
    running.stop()
    assert time.monotonic() - begun < 10
