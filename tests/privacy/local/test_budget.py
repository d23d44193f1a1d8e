from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError, PolicyRefused, StorageError
from cloister.privacy.local import BoundedLaplace, Charge, PersonalBudget, ValueGrid, release

KEY = bytes(range(32))
CANARY = "CANARY-PERSON-4711"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "local" / "budget.sqlite"


@pytest.fixture
def budget(path: Path) -> Iterator[PersonalBudget]:
    with PersonalBudget.create(path, KEY) as made:
        made.declare(epsilon=1.0, per_metre=0.05)
        yield made


def test_epsilons_add_and_the_last_one_is_refused(budget: PersonalBudget) -> None:
    for number in range(10):
        budget.charge(["ann"], Charge(epsilon=0.1))
        assert budget.spent("ann").epsilon == pytest.approx((number + 1) / 10)
    assert budget.left("ann").epsilon == 0.0  # ten tenths are one, to the last digit
    with pytest.raises(PolicyRefused, match="1 of 1 people have too little of their epsilon left") as raised:
        budget.charge(["ann"], Charge(epsilon=1e-3))
    assert raised.value.exit_code == 3
    assert "ann" not in str(raised.value)
    budget.charge(["ben"], Charge(epsilon=1.0))


def test_the_smallest_price_is_not_free(budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=1e-15, delta=1e-36, per_metre=1e-20))
    assert budget.spent("ann") == Charge(1e-12, 1e-18, 1e-15)


def test_kinds_have_budgets_of_their_own(budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=1.0, delta=4e-10))
    budget.charge(["ann"], Charge(per_metre=0.05, delta=4e-10))
    for price in (Charge(per_metre=0.001), Charge(epsilon=0.001), Charge(delta=3e-10)):
        with pytest.raises(PolicyRefused):
            budget.charge(["ann"], price)
    budget.charge(["ann"], Charge(delta=2e-10))


def test_a_person_with_several_rows_pays_for_each(budget: PersonalBudget) -> None:
    budget.charge(["ann", "ben", "ann"], Charge(epsilon=0.4))
    assert budget.spent("ann").epsilon == pytest.approx(0.8)
    assert budget.spent("ben").epsilon == pytest.approx(0.4)
    with pytest.raises(PolicyRefused, match="2 rows 2 times that"):
        budget.charge(["carl", "carl"], Charge(epsilon=0.6))
    assert budget.people == 2


def test_a_refusal_charges_nobody(budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=0.9))
    with pytest.raises(PolicyRefused, match="1 of 3 people"):
        budget.charge(["ben", "ann", "carl"], Charge(epsilon=0.5))
    assert budget.spent("ben") == Charge()
    assert budget.spent("ann").epsilon == pytest.approx(0.9)


def test_people_with_too_little_can_be_left_out(budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=0.9))
    paid = budget.charge(["ben", "ann", "carl", "ann"], Charge(epsilon=0.5), leave_out=True)
    assert paid.tolist() == [True, False, True, False]
    assert budget.spent("ann").epsilon == pytest.approx(0.9)
    with pytest.raises(PolicyRefused):
        budget.charge(["ann"], Charge(epsilon=0.5), leave_out=True)


def test_nothing_may_be_spent_before_it_is_declared(path: Path) -> None:
    with PersonalBudget.create(path, KEY) as budget:
        for price in (Charge(epsilon=0.001), Charge(per_metre=0.001)):
            with pytest.raises(PolicyRefused, match="has been declared"):
                budget.charge(["ann"], price)
        assert (budget.cap.epsilon, budget.cap.per_metre, budget.cap.delta) == (0.0, 0.0, 1e-9)


def test_caps_are_only_lowered(budget: PersonalBudget) -> None:
    with pytest.raises(PolicyRefused, match="only be lowered"):
        budget.declare(epsilon=1.1)
    with pytest.raises(PolicyRefused, match="only be lowered"):
        budget.declare(epsilon=0.5, per_metre=1.0)
    assert budget.cap.epsilon == 1.0  # all or nothing
    budget.declare(epsilon=0.5, delta=1e-5)
    budget.declare(epsilon=0.5)
    assert budget.cap == Charge(0.5, 1e-5, 0.05)
    for wrong in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InputError):
            budget.declare(epsilon=wrong)


def test_the_same_question_twice_is_charged_twice(budget: PersonalBudget) -> None:
    """The averaging attack: ask again and again, and take the mean. It ends with the budget."""
    mechanism = BoundedLaplace(ValueGrid.of(0.0, 1.0), 0.1)
    answers = [float(release(mechanism, np.array([0.25]), ["ann"], budget)[0]) for _ in range(10)]
    with pytest.raises(PolicyRefused):
        release(mechanism, np.array([0.25]), ["ann"], budget)
    assert len(answers) == 10
    assert len(set(answers)) == 10
    assert budget.spent("ann").epsilon == pytest.approx(1.0)


def test_what_is_spent_survives_closing(path: Path, budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=0.25))
    budget.close()
    with PersonalBudget.open(path, KEY) as again:
        assert again.spent("ann").epsilon == 0.25
        assert again.least_left().epsilon == 0.75


def test_commits_wait_for_the_disk(budget: PersonalBudget) -> None:
    connection = budget._file._db
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_the_file_holds_no_id_and_cannot_be_tried_out(path: Path, budget: PersonalBudget) -> None:
    import hashlib

    budget.charge([CANARY], Charge(epsilon=0.5))
    budget.close()
    content = b"".join(each.read_bytes() for each in path.parent.iterdir())
    assert CANARY.encode() not in content
    assert hashlib.sha256(CANARY.encode()).digest() not in content
    assert path.stat().st_mode & 0o077 == 0
    assert "secret" in repr(budget)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(1e-6, 0.6)), max_size=25))
@settings(max_examples=25, deadline=None)
def test_nobody_is_ever_overdrawn(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, float]]
) -> None:
    path = tmp_path_factory.mktemp("budget") / "budget.sqlite"
    shown: dict[str, float] = {}
    with PersonalBudget.create(path, KEY) as budget:
        budget.declare(epsilon=1.0)
        for person, price in asked:
            try:
                budget.charge([person], Charge(epsilon=price))
            except PolicyRefused:
                assert shown.get(person, 0.0) + price > 1.0 - 1e-9
            else:
                shown[person] = shown.get(person, 0.0) + price
    with PersonalBudget.open(path, KEY) as budget:
        for person, total in shown.items():
            assert total - 1e-9 <= budget.spent(person).epsilon <= 1.0


EDITS = {
    "spent less": "UPDATE people SET epsilon = 0",
    "spent as text": "UPDATE people SET epsilon = 'x'",
    "forgotten": "DELETE FROM people",
    "cap": "UPDATE totals SET content = CAST(replace(content, '1000000000000', '9000000000000') AS BLOB)",
    "cap as text": "UPDATE totals SET content = replace(content, '1000000000000', '9000000000000')",
    "no totals": "DELETE FROM totals",
    "other person": "UPDATE people SET tag = zeroblob(32)",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edit_by_hand_is_noticed(path: Path, budget: PersonalBudget, edit: str) -> None:
    budget.charge(["ann"], Charge(epsilon=0.5))
    budget.close()
    with sqlite3.connect(path) as connection:
        connection.execute(edit)
    connection.close()
    with pytest.raises(IntegrityError), PersonalBudget.open(path, KEY) as opened:
        opened.charge(["ann"], Charge(epsilon=0.5))


def test_an_older_row_put_back_is_noticed(path: Path, budget: PersonalBudget) -> None:
    budget.charge(["ann"], Charge(epsilon=0.1))
    budget.close()
    with sqlite3.connect(path) as connection:
        old = connection.execute("SELECT * FROM people").fetchone()
    connection.close()
    with PersonalBudget.open(path, KEY) as opened:
        opened.charge(["ann"], Charge(epsilon=0.8))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE people SET epsilon = ?, delta = ?, metre = ?, mac = ?", old[1:])
    connection.close()
    with pytest.raises(IntegrityError, match="altered"):
        PersonalBudget.open(path, KEY)


def test_another_key_or_no_store_or_no_database(path: Path, budget: PersonalBudget, tmp_path: Path) -> None:
    budget.charge(["ann"], Charge(epsilon=0.1))
    budget.close()
    with pytest.raises(IntegrityError):
        PersonalBudget.open(path, bytes(32))
    with pytest.raises(InputError, match="32 bytes"):
        PersonalBudget.open(path, b"short")
    with pytest.raises(InputError, match="no store"):
        PersonalBudget.open(tmp_path / "none.sqlite", KEY)
    with pytest.raises(InputError, match="exists"):
        PersonalBudget.create(path, KEY)
    (tmp_path / "text.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(IntegrityError):
        PersonalBudget.open(tmp_path / "text.sqlite", KEY)
    (tmp_path / "empty.sqlite").write_bytes(b"")
    with pytest.raises(InputError, match="no store"):
        PersonalBudget.open(tmp_path / "empty.sqlite", KEY)
    PersonalBudget.create(tmp_path / "empty.sqlite", KEY).close()  # of a creation that was interrupted
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        PersonalBudget.create(tmp_path / "file" / "budget.sqlite", KEY)


@pytest.mark.parametrize(
    ("people", "price"),
    [
        ([], Charge(epsilon=0.1)),
        ([""], Charge(epsilon=0.1)),
        (["ann"], Charge()),
        (["ann"], Charge(epsilon=-0.1)),
        (["ann"], Charge(epsilon=float("nan"))),
        (["ann"], Charge(epsilon=float("inf"))),
    ],
)
def test_bad_charges_are_refused(budget: PersonalBudget, people: list[str], price: Charge) -> None:
    with pytest.raises(InputError):
        budget.charge(people, price)
    assert budget.people == 0


def test_two_writers_do_not_overdraw(path: Path, budget: PersonalBudget) -> None:
    budget.close()
    code = (
        "import sys; from pathlib import Path\n"
        "from cloister.errors import PolicyRefused\n"
        "from cloister.privacy.local import Charge, PersonalBudget\n"
        "done = 0\n"
        "with PersonalBudget.open(Path(sys.argv[1]), bytes(range(32))) as budget:\n"
        "    try:\n"
        "        while True:\n"
        "            budget.charge(['ann'], Charge(epsilon=0.02)); done += 1\n"
        "    except PolicyRefused:\n"
        "        print(done)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sum(int(each.communicate(timeout=60)[0]) for each in running) == 50


def _killed_once(path: Path, wait: float) -> int:
    """Charge and show in another process; kill it after a while; return how many were shown."""
    code = (
        "import sys; from pathlib import Path\n"
        "from cloister.privacy.local import Charge, PersonalBudget\n"
        "with PersonalBudget.open(Path(sys.argv[1]), bytes(range(32))) as budget:\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        budget.charge(['ann'], Charge(epsilon=0.00001)); print('shown', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(wait)
        os.kill(child.pid, signal.SIGKILL)
        return child.stdout.read().count("shown")


@pytest.mark.parametrize("times", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_what_was_shown_is_paid_for_whenever_it_is_killed(
    path: Path, budget: PersonalBudget, times: int
) -> None:
    budget.close()
    shown = 0
    generator = np.random.default_rng(times)
    for kill in range(times):
        shown += _killed_once(path, float(generator.uniform(0.0, 0.05)))
        with PersonalBudget.open(path, KEY) as opened:
            spent = round(opened.spent("ann").epsilon / 0.00001)
            assert shown <= spent <= shown + kill + 1  # each kill may leave one paid for and not shown
    assert shown > 0
