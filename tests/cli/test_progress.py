from __future__ import annotations

import io
import re

import pytest

from cloister.cases import Progress
from cloister.cli.progress import StageProgress
from cloister.report import STAGES


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(progress: StageProgress, *, fail_at: str | None = None) -> None:
    with progress:
        told: Progress = progress
        for name in STAGES:
            with told.stage(name):
                if name == "train":
                    for number in range(1, 9):
                        told.round(number, 8, 0.9 if number % 2 else None)
                    told.note("round 3 waits for [bold]meadow[/bold]")
                if name == fail_at:
                    raise KeyboardInterrupt


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    _run(StageProgress(stream=stream))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("✓")] == [
        line for line in lines if re.match(r"✓ \d/7 [a-z]+ \d+\sms\Z", line)
    ]
    assert sum(line.startswith("✓") for line in lines) == 7
    assert re.fullmatch(r"      Report \d+\sms", lines[-1])
    assert [line.strip() for line in lines if "Round" in line] == [
        "Round 2/8",
        "Round 4/8",
        "Round 6/8",
        "Round 8/8",
    ]
    assert "\x1b" not in stream.getvalue()


def test_notes_are_never_markup() -> None:
    stream = io.StringIO()
    _run(StageProgress(stream=stream))
    assert "round 3 waits for [bold]meadow[/bold]" in stream.getvalue()


def test_live_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = _Terminal()
    _run(StageProgress(stream=stream))
    text = stream.getvalue()
    assert "\x1b" in text
    for name in STAGES:
        assert name in text


def test_json_asks_for_plain_lines_even_on_a_terminal() -> None:
    stream = _Terminal()
    _run(StageProgress(stream=stream, plain=True))
    assert stream.getvalue().splitlines()[0].startswith("✓ 1/7 collect")


def test_a_stage_that_fails_is_marked_and_the_error_goes_on() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        _run(StageProgress(stream=stream), fail_at="infer")
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("✗ 5/7 infer")


def test_a_failure_on_a_terminal_leaves_the_cursor_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = _Terminal()
    with pytest.raises(KeyboardInterrupt):
        _run(StageProgress(stream=stream), fail_at="train")
    assert stream.getvalue().rstrip("\r\n").endswith("\x1b[?25h")


def test_live_the_report_is_the_last_line_and_private_stages_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for private, said in ((False, "a masked sum"), (True, "cut and noised")):
        stream = _Terminal()
        _run(StageProgress(stream=stream, private=private))
        last = stream.getvalue().split("collect")[-1]
        assert "Report" in last
        assert "Comparisons" in last
        assert said in last


def test_chinese() -> None:
    stream = io.StringIO()
    _run(StageProgress(stream=stream, lang="zh"))
    assert "✓ 1/7 采集" in stream.getvalue()
