"""One writer, many clients: groups, retries, take-overs, forks, and disks that refuse."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.privacy.ledger.world import CAP, STUDY, cost, filled, owner

from cloister.errors import InputError, PolicyRefused, StorageError
from cloister.privacy.ledger import Ledger, LedgerInDoubt, engine, link, read_ledger
from cloister.privacy.ledger.engine import Engine
from cloister.privacy.ledger.rows import Admit, Charge, Declare, Spend, Start, new_id, now
from cloister.privacy.ledger.store import Store
from cloister.privacy.ledger.wire import Done, Refused
from cloister.privacy.ledger.writer import Writer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def opened(folder: Path) -> Iterator[Engine]:
    folder.mkdir()
    made = Engine.open(folder, owner())
    made.handle([Declare(id=new_id(), at=now(), population="north", cap=CAP)])
    yield made
    made.close()


def spend(share: float = 0.01, what: str = "count") -> Spend:
    charge = Charge.of(cost(share))
    return Spend(id=new_id(), at=now(), populations=("north",), what=what, cost=charge)


def test_a_request_that_is_made_again_takes_effect_once(folder: Path, opened: Engine) -> None:
    """As after a crash between the commit and the reply: before, within a group, and at the next writer."""
    admit = Admit(
        id=new_id(), at=now(), populations=("north",), study=STUDY, name="x", cost=Charge.of(cost()), blocks=3
    )
    (first,) = opened.handle([admit])
    start = Start(id=new_id(), at=now(), admission=opened.book.size, block=0)
    query = spend()
    assert opened.handle([start, query, start, query]) == opened.handle([start, query, start, query])
    size = opened.book.size
    opened.close()
    again = Engine.open(folder, owner())
    try:
        assert again.handle([admit]) == [first]
        assert all(isinstance(reply, Done) for reply in again.handle([start, query]))
        assert again.book.size == size
        other = Start(id=new_id(), at=now(), admission=start.admission, block=0)
        assert isinstance(again.handle([other])[0], Refused)
    finally:
        again.close()


def test_a_group_is_one_commit_and_one_signature(opened: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    commit = Store.commit
    monkeypatch.setattr(Store, "commit", lambda self: (commits.append(1), commit(self)))
    replies = opened.handle([spend(0.3, f"q{number}") for number in range(5)])
    assert len(commits) == 1
    assert [type(reply) for reply in replies] == [Done, Done, Done, Refused, Refused]
    opened.handle([spend(0.3)])
    assert len(commits) == 1  # a refusal writes nothing


def test_a_checkpoint_shortens_what_is_read_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_ROWS", 7)
    filled(folder)
    with Store(folder, write=False) as store:
        short, whole = store.load(), store.load(whole=True)
    assert 0 < short.begin < whole.book.size
    assert len(short.hashes) < len(whole.hashes) == whole.book.size
    assert (short.book, short.hash) == (whole.book, whole.hash)
    assert short.hash_after(whole.book.size) == whole.hash_after(whole.book.size) == whole.hash
    assert short.hash_after(1) is None
    with Ledger.open(folder, owner()) as ledger:
        assert ledger.verify().loaded.book == whole.book


@pytest.mark.parametrize("step", ["add", "commit"])
def test_a_disk_that_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Nobody is told yes; the next writer reads what is on the disk and goes on."""
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        study = ledger.admit("north", STUDY, "x", cost(), 3)

        def full(*_: object) -> None:
            raise StorageError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(Store, step, full)
            with pytest.raises(StorageError, match="no space"):
                ledger.start(study, 0)
        ledger.start(study, 0)
        ledger.start(study, 1)
        assert ledger.verify().status("north").entries[0].count == 2


def test_a_defect_is_told_and_not_swallowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)

        def broken(*_: object) -> None:
            raise ZeroDivisionError("a secret value")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "_write", broken)
            with pytest.raises(StorageError, match="ZeroDivisionError") as caught:
                ledger.spend("north", "count", cost())
        assert "a secret value" not in str(caught.value)
        ledger.spend("north", "count", cost())
        assert ledger.verify().status("north").entries[0].count == 1


def test_many_threads_and_clients_never_overdraw(folder: Path) -> None:
    """Twelve clients ask for 2 % each until nobody gets any: exactly 50 of them are granted."""
    granted: list[int] = []
    with Ledger.open(folder, owner()) as first:
        first.declare("north", CAP)

        def take() -> None:
            with Ledger.open(folder, owner()) as ledger:
                while True:
                    try:
                        ledger.spend("north", "count", cost(0.0199))
                    except PolicyRefused:
                        return
                    granted.append(1)

        threads = [threading.Thread(target=take) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        status = first.verify().status("north")
    assert len(granted) == 50 == status.entries[0].count
    assert status.spent.rdp <= CAP.rdp


def test_one_object_serves_several_threads(folder: Path) -> None:
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        study = ledger.admit("north", STUDY, "x", cost(1e-4), 80)

        def run(first: int) -> None:
            for block in range(first, 80, 4):
                ledger.start(study, block)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = ledger.resume(STUDY)
        assert found is not None
        assert found.started == tuple(range(80))


def test_when_the_writer_leaves_another_takes_over(folder: Path) -> None:
    first, second, third = (Ledger.open(folder, owner()) for _ in range(3))
    with second, third:
        with first:
            first.declare("north", CAP)
            second.spend("north", "count", cost())
        third.spend("north", "count", cost())
        second.spend("north", "count", cost())
        assert third.status("north").entries[0].count == 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # with threads, from Python 3.12 on
def test_a_fork_leaves_lock_and_link_to_its_parent(folder: Path) -> None:
    """A child of the writer lives on after it: it holds no lock, and finds its own way to the ledger."""
    ledger = Ledger.open(folder, owner())
    ledger.declare("north", CAP)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover  # another process
        code = 1
        try:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            ledger.spend("north", "by the child", cost())
            ledger.close()
            code = 0
        finally:
            os._exit(code)
    os.read(ready[0], 1)
    ledger.close()
    with Ledger.open(folder, owner()) as other:
        other.spend("north", "by another", cost())
        os.write(go[1], b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert {entry.name for entry in other.status("north").entries} == {"by the child", "by another"}
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_nobody_is_elected_beside_a_writer(folder: Path) -> None:
    with Ledger.open(folder, owner()):
        assert Writer.elect(folder, owner()) is None
    writer = Writer.elect(folder, owner())
    assert writer is not None
    writer.close()
    assert writer.ended.is_set()
    writer.close()


def test_a_writer_that_does_not_answer_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds the lock and serves nobody: the caller is told, and must release nothing."""
    monkeypatch.setattr(link, "PATIENCE", 0.2)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="does not answer"):
            Ledger.open(folder, owner())
    finally:
        os.close(descriptor)


def test_an_interrupt_in_the_middle_of_a_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply that still comes is not taken for that of the next request."""
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        ledger.declare("south", CAP)

        def interrupted(_: object) -> bytes:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(link, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ledger.status("north")
        assert ledger.status("south").population == "south"


def test_a_long_path(tmp_path: Path) -> None:
    """The system takes 107 bytes for the address of a socket; homes may be deeper."""
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20) / "ledger"
    with Ledger.open(folder, owner()) as ledger, Ledger.open(folder, owner()) as other:
        ledger.declare("north", CAP)
        other.spend("north", "count", cost())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, InputError)):
        Ledger.open(tmp_path / "file" / "ledger", owner())


def test_the_head_beside_is_written_when_the_writer_pauses(folder: Path) -> None:
    from cloister.privacy.ledger.anchors import head_beside

    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        for _ in range(200):
            view = read_ledger(folder, owner().public)
            seen = head_beside(folder).read(view.ledger, view.loaded.book.owners)
            if seen.size == view.size:
                return
            threading.Event().wait(0.02)
    raise AssertionError("it was never written")


@pytest.mark.parametrize("kept", [True, False])
def test_a_crash_while_a_ledger_is_begun(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """Between the file and the head beside it: the next one goes on. A second row without a head is refused."""
    with monkeypatch.context() as patch:

        def crash(self: Engine) -> None:
            raise RuntimeError

        patch.setattr(Engine, "save_head", crash)
        with pytest.raises(RuntimeError):
            Ledger.open(folder, owner())
    if kept:
        with Ledger.open(folder, owner()) as ledger:
            ledger.declare("north", CAP)
        return
    with Store(folder, write=True) as store:
        made = Engine(folder, owner(), store, store.load())
        made.handle([Declare(id=new_id(), at=now(), population="north", cap=CAP)])
    with pytest.raises(LedgerInDoubt):
        Ledger.open(folder, owner())
