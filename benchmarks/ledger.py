"""Reservations a second that 8 processes make through the elected writer, each durable before its answer.

    python -m benchmarks.ledger [--quick] [--folder DIR]

Each process starts blocks of an admission of its own, one after the other, as a study does before a round's
first byte leaves; every start is a row that is hashed, signed in its group and committed by SQLite in WAL
mode with synchronous=FULL. Then all of them spend what is left, which suffices for 50 of the 160 queries that
they ask: `overdraft` is how many more were granted, and by how much the cap is exceeded where it is. At the
end the ledger is read whole; `lost` is how many starts were acknowledged and are not in it.

`fsync_ms` is what the same disk takes to make 4 KiB durable, measured before and after. Nobody is answered
earlier than that, so 8 processes that ask one thing at a time cannot get more answers a second than
`physical_limit.groups_of_8`, nor without group commit more than `physical_limit.one_by_one`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, emit
from cloister.crypto import Identity, ScryptCost
from cloister.errors import PolicyRefused
from cloister.privacy.ledger import Cap, Cost, Ledger

PROCESSES = 8
PASSPHRASE = "benchmark"  # noqa: S105  # of an identity that lives as long as the benchmark
POPULATION = "rows"
QUERIES = 20
AFFORDABLE = 50


def fsync_seconds(folder: Path, repeats: int) -> list[float]:
    """Return how long each of `repeats` appends of 4 KiB took to be durable."""
    path, times = folder / "fsync", []
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(repeats):
            begin = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
            times.append(time.perf_counter() - begin)
    finally:
        os.close(descriptor)
        path.unlink()
    return times


def work(folder: Path, number: int, blocks: int) -> None:
    """Start `blocks` blocks, then spend while it is granted; print what each start took."""
    identity = Identity.load(folder / "identity.json", PASSPHRASE)
    with Ledger.open(folder / "ledger", identity) as ledger:
        order = ledger.order(POPULATION)
        cost = Cost(1e-6, 1e-15, order)
        admission = ledger.admit(POPULATION, f"{number:064x}", f"process {number}", cost, blocks)
        print("ready", flush=True)
        sys.stdin.readline()
        times = []
        for block in range(blocks):
            begin = time.perf_counter()
            ledger.start(admission, block)
            times.append(time.perf_counter() - begin)
        print(json.dumps(times), flush=True)
        share = float(sys.stdin.readline())
        granted = 0
        for _ in range(QUERIES):
            with contextlib.suppress(PolicyRefused):
                ledger.spend(POPULATION, "mean age", Cost(share, 0.0, order))
                granted += 1
        print(json.dumps({"granted": granted, "writer": ledger.writer_pid}), flush=True)
        sys.stdin.readline()  # whoever writes stays until all are done


def reserve(folder: Path, blocks: int) -> dict[str, Any]:
    """Run the processes; return their figures."""
    identity = Identity.generate("bench")
    identity.save(folder / "identity.json", PASSPHRASE, cost=ScryptCost(n=1024))
    cap = Cap.of(3.0, 1e-5)
    with Ledger.open(folder / "ledger", identity) as ledger:
        ledger.declare(POPULATION, cap)
    command = [sys.executable, "-m", "benchmarks.ledger", "--folder", str(folder), "--blocks", str(blocks)]
    started = [
        subprocess.Popen(
            [*command, "--work", str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        begin = time.perf_counter()
        waits = sorted(wait for times in _all(started, "go") for wait in times)
        seconds = time.perf_counter() - begin
        with Ledger.open(folder / "ledger", identity) as ledger:
            share = ledger.status(POPULATION).left.rdp / (AFFORDABLE + 0.5)
        found = _all(started, repr(share))
        _tell(started, "end")
        for process in started:
            process.wait(60)
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
    begin = time.perf_counter()
    with Ledger.open(folder / "ledger", identity) as ledger:
        opening = time.perf_counter() - begin
        view = ledger.verify()
    status = view.status(POPULATION)
    spent = sum(entry.count for entry in status.entries if entry.kind == "study")
    granted = sum(each["granted"] for each in found)
    over = max(0.0, status.spent.rdp - status.cap.rdp)
    asked = PROCESSES * blocks
    return {
        "reservations_per_second": round(asked / seconds, 1),
        "reservations": asked,
        "seconds": round(seconds, 3),
        "wait_ms": {
            "median": round(statistics.median(waits) * 1e3, 3),
            "p99": round(waits[int(len(waits) * 0.99)] * 1e3, 3),
            "worst": round(waits[-1] * 1e3, 3),
        },
        "processes": PROCESSES,
        "writers": len({each["writer"] for each in found}),
        "overdraft": max(0, granted - AFFORDABLE) + over,
        "granted_of_affordable": [granted, AFFORDABLE],
        "lost": asked - spent,
        "rows": view.size,
        "open_seconds": round(opening, 3),
    }


def _tell(processes: list[subprocess.Popen[str]], line: str) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()


def _all(processes: list[subprocess.Popen[str]], line: str) -> list[Any]:
    """Say a line to all processes, and return what each of them answers."""
    _tell(processes, line)
    return [json.loads(process.stdout.readline()) for process in processes if process.stdout]


def _options() -> argparse.Namespace:
    parser = arguments("reservations a second through the ledger's writer")
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--blocks", type=int, default=None, help="reservations of each process")
    parser.add_argument("--work", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    parsed = _options()
    blocks = parsed.blocks or (400 if parsed.quick else 4000)
    if parsed.work is not None:
        work(parsed.folder, parsed.work, blocks)
        return
    with tempfile.TemporaryDirectory(dir=parsed.folder) as name:
        folder = Path(name)
        before = fsync_seconds(folder, 200)
        figures = reserve(folder, blocks)
        times = before + fsync_seconds(folder, 200)
    fsync = statistics.median(times)
    figures["fsync_ms"] = {"median": round(fsync * 1e3, 3), "worst": round(max(times) * 1e3, 3)}
    figures["physical_limit"] = {
        "one_by_one": round(1 / fsync, 1),
        "groups_of_8": round(PROCESSES / fsync, 1),
    }
    emit("ledger", {**figures, "synchronous": "FULL"})


if __name__ == "__main__":
    main()
