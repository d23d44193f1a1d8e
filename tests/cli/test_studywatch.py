from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.cli import studywatch
from cloister.runtime.events import (
    Burnt,
    Connected,
    Ended,
    RosterAgreed,
    RoundDone,
    SetupDone,
    Spent,
    Started,
    Stopped,
    Traffic,
)
from cloister.runtime.observe import EventLog

SITES = ("site0", "site1", "site2")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path))
    monkeypatch.setattr(studywatch, "_POLL", 0.02)


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "logs", study="flu", party="hub", public=True, limit=2000)
    log(Started("hub", 5, SITES))
    for site in SITES:
        log(Connected(site))
    log(RosterAgreed(0, SITES))
    log(SetupDone(0, bytes(32)))
    log(RoundDone(0, 0, SITES, 1.5, {"log_loss": 0.6931}))
    log(Traffic({"site0": 4_000_000}, {"site0": 1_500}))
    log(Spent("patients", 0.5, 2.0, 1e-6, 0.25))
    return log


def test_once_in_words(cloister: Callable, log: EventLog) -> None:
    done = cloister("study", "watch", "flu", "--once")
    assert (done.code, done.err) == (0, "")
    text = done.out.replace("\u00a0", " ")
    assert "flu runs, seen from hub.\n1 of 5 rounds, the last in 1.5 s, about 6.0 s left." in text
    assert "  site0: connected, last in round 1, sent 4.0 MB, received 1.5 kB\n" in text
    assert "Model before the last round: log_loss 0.6931." in text
    assert "Budget of patients: epsilon 0.5 of 2 at delta 1e-06 (25.0% of the budget)." in text


def test_once_as_json(cloister: Callable, log: EventLog) -> None:
    done = cloister("study", "watch", "flu", "--once", "--json")
    assert done.code == 0
    assert done.json["done"] == 1
    assert list(done.json["sites"]) == list(SITES)


def test_without_a_log_one_sentence(cloister: Callable) -> None:
    done = cloister("study", "watch", "flu", "--once")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("there is no event log of a study 'flu' here (")
    assert done.err.count("\n") == 1


def _write_later(log: EventLog, *, stopped: bool) -> threading.Thread:
    def write() -> None:
        for number in range(1, 41):
            log(RoundDone(number, number, SITES[:2], 0.5, {"log_loss": 0.5}))
            log(Burnt(number + 1, number + 1, "too few answered"))
            time.sleep(0.005)
        log(Stopped("nobody came") if stopped else Ended(41))

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_lines_follow_through_rotations_until_the_end(cloister: Callable, log: EventLog) -> None:
    writer = _write_later(log, stopped=False)
    done = cloister("study", "watch", "flu")
    writer.join()
    assert log.path.with_name("flu.jsonl.1").exists()
    assert done.code == 0
    lines = [line.partition(" ")[2].replace("\u00a0", " ") for line in done.out.splitlines()]
    assert "Round 41 done in 500 ms, with 2 sites: log_loss 0.5." in lines
    assert lines[-1] == "Ended after 41 rounds."
    told = [line for line in lines if line.startswith("Round ") and "done" in line]
    numbers = [int(line.split()[1]) for line in told]
    assert numbers == list(range(numbers[0], 42))


def test_json_is_an_object_a_change_and_a_stop_is_exit_code_one(cloister: Callable, log: EventLog) -> None:
    writer = _write_later(log, stopped=True)
    done = cloister("study", "watch", "flu", "--json")
    writer.join()
    assert done.code == 1
    told = [json.loads(line) for line in done.out.splitlines()]
    assert told[-1]["state"] == "stopped"
    assert told[-1]["reason"] == "nobody came"
    rounds = [each["done"] for each in told]
    assert rounds == sorted(rounds)
    assert rounds[-1] == 41


def test_a_log_that_was_tampered_with_moves_no_cursor(cloister: Callable, log: EventLog) -> None:
    line = {"time": "2026-01-02T03:04:05Z", "party": "hub\x1b[2J", "study": "flu", "event": "stopped"}
    with log.path.open("a") as file:
        file.write(json.dumps(line | {"reason": "\x1b]0;title\x07 [bold]x[/bold]"}) + "\n")
        file.write(json.dumps(line | {"event": "connected", "peer": "\x1b[31m"}) + "\n")
    done = cloister("study", "watch", "flu")
    assert "\x1b" not in done.out
    assert "[bold]x[/bold]" in done.out


def _on_terminal(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    environment = os.environ | {
        "CLOISTER_HOME": str(tmp_path),
        "TERM": "xterm",
        "COLUMNS": "100",
        "LINES": "40",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cloister", "study", "watch", "flu"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def _read(terminal: int, until: bytes) -> bytes:
    text = b""
    while until not in text:
        try:
            text += os.read(terminal, 65536)
        except OSError:  # the other end was closed
            break
    return text


def test_a_terminal_gets_a_live_table_and_ctrl_c_ends_it_cleanly(tmp_path: Path, log: EventLog) -> None:
    process, terminal = _on_terminal(tmp_path)
    try:
        shown = _read(terminal, b"log_loss")
        assert b"site2" in shown
        process.send_signal(signal.SIGINT)
        rest = _read(terminal, b"\x1b[?25h")
        assert b"\x1b[?25h" in rest  # the cursor is back
        assert process.wait(10) == 130
        assert process.stderr is not None
        error = process.stderr.read().decode()
        assert error.count("\n") == 1
        assert "Interrupted" in error
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        os.close(terminal)


def test_a_terminal_is_left_when_the_study_ends(tmp_path: Path, log: EventLog) -> None:
    process, terminal = _on_terminal(tmp_path)
    try:
        _read(terminal, b"site2")
        log(Ended(5))
        shown = _read(terminal, b"has ended")
        assert b"has ended" in shown
        _read(terminal, b"\x1b[?25h")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        os.close(terminal)
