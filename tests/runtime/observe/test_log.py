from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.parties import parties, plan_for

from cloister.crypto import Identity
from cloister.errors import InputError, StorageError
from cloister.runtime import Burnt, Refused, RoundDone, Stalled, Study
from cloister.runtime.events import Connected, Ended, Traffic
from cloister.runtime.observe import EventLog, LogReader, Observer, log_path
from cloister.runtime.observe import log as log_module


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def opened(logs: Path, **settings: Any) -> EventLog:
    return EventLog(logs, study="s", party="hub", **{"clock": Clock(), **settings})


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_says_when_who_and_what(tmp_path: Path) -> None:
    log = opened(tmp_path / "logs")
    log(Stalled(2, ("c",)))
    log.close()
    log(Stalled(3, ("c",)))
    assert records(log.path) == [
        {
            "time": "2026-01-02T03:04:05.678Z",
            "party": "hub",
            "study": "s",
            "event": "stalled",
            "round": 2,
            "missing": ["c"],
        }
    ]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_nothing_of_the_rows_or_the_keys_of_a_study_is_in_its_log(tmp_path: Path) -> None:
    hub, members = Identity.generate("hub"), parties(tmp_path, [20, 20, 20])
    plan = plan_for(hub, members, data={"public_rows": False})
    with Observer.of(tmp_path / "logs", study="s", party="hub") as observer:
        result = Study(plan, hub, members).run(observer)
        observer(Refused("site0", f"cannot read ({tmp_path}/site0/rows.csv): {result.study_key.hex()}"))
        done = result.rounds[-1]
        observer(RoundDone(done.round, done.attempt, done.survivors, 1.0, {"canary": 0.123456}, None))
    text = log_path(tmp_path / "logs", "s").read_text()
    assert text.count("round_done") == len(result.rounds) + 1
    values = {
        f"{value:.6g}"
        for member in members
        for column in member.vault.open("train", purpose=plan.study.purpose).table().to_pydict().values()
        for value in column
        if isinstance(value, float) and len(f"{value:.6g}") >= 6
    }
    assert values
    canaries = {"canary", "0.123456", result.study_key.hex(), str(tmp_path), *values}
    assert [canary for canary in canaries if canary in text] == []
    known = {"time", "party", "study", "event", "epoch", "members", "setup_digest", "round", "attempt"}
    known |= {"survivors", "seconds", "peer", "reason", "rounds"}
    assert {key for record in records(log_path(tmp_path / "logs", "s")) for key in record} <= known


def test_files_rotate_and_stay_bounded(tmp_path: Path) -> None:
    log = opened(tmp_path, limit=2000)
    for number in range(200):
        log(Burnt(number, 0, "x" * 30))
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["s.jsonl", "s.jsonl.1", "s.jsonl.2", "s.jsonl.3"]
    assert all(
        path.stat().st_size <= 2000 and path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir()
    )
    assert records(log.path)[-1]["round"] == 199
    with LogReader(tmp_path, "s") as reader:
        rounds = [line.round for line in reader.read()]
    assert rounds == list(range(rounds[0], 200))


def test_a_reader_misses_nothing_and_repeats_nothing_while_files_rotate(tmp_path: Path) -> None:
    log = opened(tmp_path, limit=1500)
    log(Burnt(0, 0, "x"))
    with LogReader(tmp_path, "s") as reader:
        seen = [line.round for line in reader.read()]
        for number in range(1, 300):
            log(Burnt(number, 0, "x"))
            if number % 17 == 0:
                seen += [line.round for line in reader.read()]
        seen += [line.round for line in reader.read()]
    assert seen == list(range(300))
    assert reader.unreadable == 0


def test_two_processes_share_a_log(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from cloister.runtime.events import Burnt; from cloister.runtime.observe import EventLog\n"
        "log = EventLog(pathlib.Path(sys.argv[1]), study='s', party=sys.argv[2], limit=60_000)\n"
        "for number in range(500): log(Burnt(number, 0, 'x' * 50))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*command, party]) for party in ("hub", "standby")]
    assert [each.wait(60) for each in both] == [0, 0]
    with LogReader(tmp_path, "s") as reader:
        lines = reader.read()
    assert reader.unreadable == 0
    for party in ("hub", "standby"):
        assert [line.round for line in lines if line.party == party] == list(range(500))


def test_what_a_killed_process_left_of_a_line_is_closed_off(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log(Connected("a"))
    log.close()
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026-')
    again = opened(tmp_path)
    again(Connected("b"))
    again.close()
    with LogReader(tmp_path, "s") as reader:
        assert [line.peer for line in reader.read()] == ["a", "b"]
        assert reader.unreadable == 1


def test_a_full_disk_stops_nothing_and_is_told_of_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path)
    log(Connected("a"))
    size = log.path.stat().st_size
    real = os.write

    def short(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[:10])

    monkeypatch.setattr(log_module.os, "write", short)
    log(Connected("b"))
    log(Connected("c"))
    assert log.lost == 2
    assert log.path.stat().st_size == size
    monkeypatch.undo()
    log(Connected("d"))
    log.close()
    told = [(record["event"], record.get("peer", record.get("count"))) for record in records(log.path)]
    assert told == [("connected", "a"), ("lines_lost", 2), ("connected", "d")]


def test_a_loud_peer_cannot_push_the_history_out(tmp_path: Path) -> None:
    clock = Clock()
    log = opened(tmp_path, clock=clock)
    for _ in range(100):
        log(Refused("eve", "signature"))
    log(Connected("a"))
    clock.now += timedelta(seconds=61)
    log(Refused("eve", "signature"))
    log.close()
    kinds = [record["event"] for record in records(log.path)]
    assert kinds == ["refused"] * 60 + ["connected", "refused_more", "refused"]
    assert records(log.path)[61]["count"] == 40


def test_a_log_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(StorageError, match="cannot write the event log"):
        opened(tmp_path / "logs")


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        opened(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_study_without_a_log_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no event log of a study 'other'"):
        LogReader(tmp_path, "other")
    with pytest.raises(InputError, match="not allowed"):
        LogReader(tmp_path, "../other")


def test_an_observer_hands_on_in_order_and_closes_in_the_other(tmp_path: Path) -> None:
    told: list[str] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, event: object) -> None:
            told.append(f"{self.name} {type(event).__name__}")

        def close(self) -> None:
            told.append(f"{self.name} closed")

    with Observer([Told("a"), Told("b")]) as observer:
        observer(Ended(3))
        observer(Traffic({}, {}))
    observer.close()
    assert told == ["a Ended", "b Ended", "a Traffic", "b Traffic", "b closed", "a closed"]
