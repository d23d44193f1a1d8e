"""A ledger that a counter anchors: whatever is put back, it is noticed; whatever is killed, it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.contracts.counter import MemoryCounter
from tests.privacy.ledger.world import CAP, STUDY, cost, owner

from cloister.crypto import Identity, declare_successor
from cloister.enclave.attester import SoftwareTpm, why_no_swtpm
from cloister.enclave.attester.nv import NvCounter
from cloister.errors import InputError
from cloister.privacy.ledger import Counters, Ledger, LedgerInDoubt, open_head, read_ledger
from cloister.privacy.ledger.anchors import head_beside
from cloister.types import Counter


class _KilledError(Exception):
    """The process was killed here."""


class Killing(MemoryCounter):
    """A counter whose machine is killed just before it counts, once."""

    armed = False

    def increment(self) -> int:
        if self.armed:
            self.armed = False
            raise _KilledError
        return super().increment()


def by(counter: Counter) -> Counters:
    return Counters(lambda ledger: counter, begin=True)


def copied(folder: Path, to: Path) -> Path:
    """Keep a copy of a closed ledger and of the head beside it: the home, put aside whole."""
    shutil.copytree(folder, to)
    shutil.copy(head_beside(folder).path, head_beside(to).path)
    return to


def restored(folder: Path, kept: Path) -> None:
    shutil.rmtree(folder)
    head_beside(folder).path.unlink()
    copied(kept, folder)


def spent(folder: Path, counter: MemoryCounter, times: int = 1) -> None:
    with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
        for _ in range(times):
            ledger.spend("north", "count", cost())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def counter(folder: Path) -> Killing:
    counter = Killing(first=41)
    with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
        ledger.declare("north", CAP)
    return counter


def test_every_answer_was_counted_before_it_was_given(folder: Path, counter: Killing) -> None:
    with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
        for _ in range(3):
            before = counter.value
            ledger.spend("north", "count", cost())
            assert counter.value == before + 1
            assert open_head(ledger.head(), [owner().public]).counter == counter.value
        assert ledger.status("north").rollback_detected == "against its counter"
        study = ledger.admit("north", STUDY, "x", cost(), 2)
        ledger.start(study, 0)
        ledger.check_head(ledger.head())
        ledger.verify()


def test_a_home_put_back_whole_is_noticed(folder: Path, counter: Killing, tmp_path: Path) -> None:
    kept = copied(folder, tmp_path / "kept")
    spent(folder, counter)
    restored(folder, kept)
    with pytest.raises(LedgerInDoubt, match="older copy: its counter has moved on"):
        Ledger.open(folder, owner(), counters=by(counter))


def test_without_its_counter_nothing_is_spent(folder: Path, counter: Killing) -> None:
    with pytest.raises(LedgerInDoubt, match="opened without it"):
        Ledger.open(folder, owner())
    assert read_ledger(folder, owner().public).populations() == ("north",)  # reading it needs none


def test_another_counter_is_refused(folder: Path, counter: Killing) -> None:
    with pytest.raises(LedgerInDoubt, match="not the one"):
        Ledger.open(folder, owner(), counters=by(MemoryCounter()))
    ahead = MemoryCounter(first=1000)
    ahead.increment()
    with pytest.raises(LedgerInDoubt, match="moved on"):
        Ledger.open(folder, owner(), counters=by(ahead))


def test_a_copy_from_before_the_counter_is_refused(tmp_path: Path) -> None:
    folder, counter = tmp_path / "ledger", MemoryCounter()
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        ledger.spend("north", "count", cost())
    kept = copied(folder, tmp_path / "kept")
    spent(folder, counter, times=2)  # taken into use
    assert counter.value > 0
    restored(folder, kept)
    with pytest.raises(LedgerInDoubt, match="moved on"):
        Ledger.open(folder, owner(), counters=by(counter))


def test_killed_before_it_counted_it_goes_on_and_the_row_counts(folder: Path, counter: Killing) -> None:
    with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
        before = ledger.status("north").spent.rdp
    ledger = Ledger.open(folder, owner(), counters=by(counter))
    counter.armed = True
    with pytest.raises(Exception, match="did not expect"):
        ledger.spend("north", "count", cost())
    ledger.close()
    with Ledger.open(folder, owner(), counters=by(counter)) as again:
        assert again.status("north").spent.rdp > before
        again.spend("north", "count", cost())
        assert open_head(again.head(), [owner().public]).counter == counter.value


@pytest.mark.parametrize("when", [0, 1])
def test_killed_while_the_counter_is_taken_into_use(tmp_path: Path, when: int) -> None:
    folder = tmp_path / "ledger"
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)

    class Dying(MemoryCounter):
        left = when

        def increment(self) -> int:
            if self.left == 0:
                self.left = -1
                raise _KilledError
            self.left -= 1
            return super().increment()

    counter = Dying(first=5)
    with pytest.raises(_KilledError):
        Ledger.open(folder, owner(), counters=by(counter))
    spent(folder, counter)
    spent(folder, counter)


def test_somebody_else_moving_the_counter_stops_the_ledger(folder: Path, counter: Killing) -> None:
    ledger = Ledger.open(folder, owner(), counters=by(counter))
    counter.increment()
    with pytest.raises(LedgerInDoubt, match="somebody else has moved"):
        ledger.spend("north", "count", cost())
    ledger.close()


def test_new_keys_take_over_with_the_counter(tmp_path: Path) -> None:
    folder, counter = tmp_path / "ledger", MemoryCounter(first=3)
    old, new = Identity.generate("ann"), Identity.generate("ann")
    with Ledger.open(folder, old) as ledger:
        ledger.declare("north", CAP)
    chain = [declare_successor(old, new)]
    with Ledger.open(folder, new, successions=chain, counters=by(counter)) as ledger:  # both at once
        assert open_head(ledger.head(), [new.public]).counter == counter.value
    with Ledger.open(folder, new, counters=by(counter)) as ledger:
        ledger.spend("north", "count", cost())


def test_whoever_joins_a_writer_that_does_not_count_is_told(tmp_path: Path) -> None:
    folder, counter = tmp_path / "ledger", MemoryCounter()
    with Ledger.open(folder, owner()) as ledger:
        ledger.declare("north", CAP)
        with pytest.raises(InputError, match="without its counter"):
            Ledger.open(folder, owner(), counters=by(counter))
    assert counter.value == 0


def test_whoever_joins_a_writer_that_counts_is_counted(folder: Path, counter: Killing) -> None:
    with Ledger.open(folder, owner(), counters=by(counter)), Ledger.open(folder, owner()) as second:
        before = counter.value
        second.spend("north", "count", cost())
        assert counter.value == before + 1


def test_anchor_and_counter_together(folder: Path, counter: Killing, tmp_path: Path) -> None:
    place = tmp_path / "usb" / "anchor"
    with Ledger.open(folder, owner(), counters=by(counter), anchor=place) as ledger:
        ledger.spend("north", "count", cost())
        assert ledger.status("north").rollback_detected == f"against its counter and {place}"


def test_a_counter_is_looked_for_only_where_one_anchors_the_ledger(tmp_path: Path) -> None:
    folder, counter = tmp_path / "ledger", MemoryCounter()
    asked: list[str] = []

    def of(ledger: str) -> Counter:
        asked.append(ledger)
        return counter

    with Ledger.open(folder, owner(), counters=Counters(of)) as ledger:
        ledger.declare("north", CAP)
    assert (asked, counter.value) == ([], 0)
    Ledger.open(folder, owner(), counters=Counters(of, begin=True)).close()
    with Ledger.open(folder, owner(), counters=Counters(of)) as ledger:
        before = counter.value
        ledger.spend("north", "count", cost())
        assert counter.value == before + 1
    view = read_ledger(folder, owner().public)
    assert view.counted
    assert asked == [view.ledger] * 2


def test_with_a_tpm(tmp_path: Path) -> None:
    missing = why_no_swtpm()
    if missing is not None:
        pytest.skip(missing)
    folder = tmp_path / "ledger"
    with SoftwareTpm(tmp_path / "tpm") as software:
        counter = NvCounter(software.tpm, "ledger")
        with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
            ledger.declare("north", CAP)
        kept = copied(folder, tmp_path / "kept")
        with Ledger.open(folder, owner(), counters=by(counter)) as ledger:
            ledger.spend("north", "count", cost())
    with SoftwareTpm(tmp_path / "tpm") as software:  # another start of the machine
        counter = NvCounter(software.tpm, "ledger")
        Ledger.open(folder, owner(), counters=by(counter)).close()
        restored(folder, kept)
        with pytest.raises(LedgerInDoubt, match="older copy"):
            Ledger.open(folder, owner(), counters=by(counter))
