"""kill -9 of the writer, with real processes: nothing acknowledged is lost, nothing is spent twice, others go on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.privacy.ledger.client_process import PASSPHRASE, POPULATION, study_of

from cloister.crypto import Identity, ScryptCost
from cloister.privacy.ledger import Cap, Ledger, read_ledger

ROOT = Path(__file__).resolve().parents[3]


class Clients:
    """Processes that reserve from one ledger, and what each of them was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.count = 0

    def add(self) -> None:
        name = f"client-{self.count}"
        self.count += 1
        with (self.folder / name).open("wb") as output:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.privacy.ledger.client_process", str(self.folder), name],
                cwd=ROOT,
                stdout=output,
            )

    def told(self, name: str) -> list[list[str]]:
        """What a process has said, but for a line that was cut when it was killed."""
        text = (self.folder / name).read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def writer(self) -> str | None:
        """The running process that most of the others last heard of as the writer."""
        last = [lines[-1][2] for name in self.running if (lines := self.told(name))]
        by_pid = {str(process.pid): name for name, process in self.running.items()}
        return next(
            (by_pid[pid] for pid in sorted(last, key=last.count, reverse=True) if pid in by_pid), None
        )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def progress(self) -> int:
        return sum(len(self.told(f"client-{number}")) for number in range(self.count))

    def until_progress(self, more: int) -> None:
        """Wait until so many more acknowledgements have come, from whomever."""
        target, deadline = self.progress() + more, time.monotonic() + 60
        while self.progress() < target:
            assert time.monotonic() < deadline, "nobody goes on"
            assert all(process.poll() is None for process in self.running.values()), "a client ended"
            time.sleep(0.002)


def hunt(folder: Path, kills: int, seed: int) -> Clients:
    """Kill the writer again and again while 4 clients reserve; return what they were told."""
    chance = random.Random(seed)  # noqa: S311  # when to kill, not what to hide
    owner = Identity.generate("owner")
    owner.save(folder / "identity.json", PASSPHRASE, cost=ScryptCost(n=1024))
    with Ledger.open(folder / "ledger", owner) as ledger:
        ledger.declare(POPULATION, Cap.of(3.0, 1e-5))
    clients = Clients(folder)
    try:
        for _ in range(4):
            clients.add()
        for _ in range(kills):
            clients.until_progress(chance.randrange(4, 60))
            time.sleep(chance.uniform(0, 0.02))
            name = clients.writer()
            if name is not None:
                clients.kill(name)
                clients.add()
        clients.until_progress(20)
    finally:
        for name in list(clients.running):
            clients.kill(name)
    return clients


def check(clients: Clients) -> None:
    public = Identity.read_public(clients.folder / "identity.json")
    view = read_ledger(clients.folder / "ledger", public)
    status = view.status(POPULATION)
    queries = {entry.name: entry.count for entry in status.entries if entry.kind == "query"}
    book = view.loaded.book
    for number in range(clients.count):
        name = f"client-{number}"
        lines = clients.told(name)
        assert not [line for line in lines if line[0] == "failed"], lines[-1]
        study = book.studies.get(study_of(name))
        started = book.plan(study).started if study is not None else set()
        told = {int(line[1]) for line in lines if line[0] == "start"}
        assert told <= started  # nothing acknowledged is lost
        assert len(started) <= len(told) + 1  # at most the one that was on its way
        assert {line[1] for line in lines if line[0] == "spend"} <= set(queries)
    assert set(queries.values()) == {1}  # nothing is spent twice by a retry
    # What is reported is what the rows say, each counted once.
    started = sum(entry.count for entry in status.entries if entry.kind == "study")
    assert status.spent.rdp == pytest.approx((started + len(queries)) * 1e-9)
    assert status.spent.rdp >= (started + len(queries)) * 1e-9


def test_the_writer_is_killed_while_four_reserve(tmp_path: Path) -> None:
    check(hunt(tmp_path, kills=4, seed=1))


@pytest.mark.slow
def test_the_writer_is_killed_at_fifty_random_instants(tmp_path: Path) -> None:
    clients = hunt(tmp_path, kills=50, seed=2)
    assert clients.count >= 40
    check(clients)


def test_many_begin_one_ledger_at_once(tmp_path: Path) -> None:
    """Eight processes open a ledger that does not exist yet: there is one, with one beginning."""
    owner = Identity.generate("owner")
    owner.save(tmp_path / "identity.json", PASSPHRASE, cost=ScryptCost(n=1024))
    script = (
        "import sys; from pathlib import Path; from cloister.crypto import Identity; "
        "from cloister.privacy.ledger import Cap, Ledger; folder = Path(sys.argv[1]); "
        f"owner = Identity.load(folder / 'identity.json', {PASSPHRASE!r}); "
        "ledger = Ledger.open(folder / 'ledger', owner); print('open', flush=True); sys.stdin.readline(); "
        "ledger.declare('p' + sys.argv[2], Cap(3.0, 1e-5, 8)); ledger.close()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(4)
    ]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
        for process in processes:
            process.communicate(b"go\n", timeout=60)
            assert process.returncode == 0
    view = read_ledger(tmp_path / "ledger", owner.public)
    assert view.populations() == ("p0", "p1", "p2", "p3")


def test_a_writer_that_is_stopped_is_waited_for(tmp_path: Path) -> None:
    """SIGSTOP is not the end: nobody takes over while the writer may still write."""
    owner = Identity.generate("owner")
    owner.save(tmp_path / "identity.json", PASSPHRASE, cost=ScryptCost(n=1024))
    with Ledger.open(tmp_path / "ledger", owner) as ledger:
        ledger.declare(POPULATION, Cap.of(3.0, 1e-5))
    clients = Clients(tmp_path)
    clients.add()
    try:
        clients.until_progress(4)
        (process,) = clients.running.values()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        clients.add()
        before = clients.told("client-1")
        time.sleep(1.5)
        assert clients.told("client-1") == before == []
        process.send_signal(signal.SIGCONT)
        clients.until_progress(10)
    finally:
        for name in list(clients.running):
            clients.kill(name)
    check(clients)
