"""What each person has had released already, durably, and the refusal of what would be too much.

Composition is the simplest there is: for one person epsilons add, deltas add, and epsilons for each metre
add, whatever the mechanisms and however they were chosen. The same question twice is charged twice. Nothing
is remembered of a release but its price: no value, no answer, no id.

`charge`, in this order:
1. ids become tags: HMAC-SHA-256 under the owner's key. The file holds no id, and cannot be tried out without
   the key.
2. The file is held alone; what these people have spent is read, every row authenticated.
3. Each person's price (times the rows that are theirs) is added. Whoever would exceed a cap is refused: all
   of the release, or, with `leave_out`, these people's rows.
4. The new amounts are committed, fsync included. Only then does it return, and only then may noise be drawn.
A crash after step 4 leaves the price paid and nothing shown.

Caps are declared by the owner once, for each kind, and later only lowered. Amounts are whole numbers of
units: charges are rounded up, caps down, so that ten times 0.1 is 1 and never less.

The same person must have the same id everywhere. A vault's pseudonyms differ between datasets of different
purposes: such datasets keep separate budgets for the same person, and their sum is what was released.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import HoldsSecret, framed, hkdf, hmac_sha256
from cloister.errors import InputError, PolicyRefused
from cloister.privacy.local.budgetfile import UNITS, Amounts, BudgetFile, Totals
from cloister.privacy.local.mechanism import Charge

__all__ = ["DEFAULT_DELTA", "PersonalBudget"]

DEFAULT_DELTA: Final = 1e-9
"""Each person's delta where none was declared: room for the tables of Laplace noise."""

_KINDS: Final = ("epsilon", "delta", "epsilon for each metre")
_MOST: Final = (1000.0, 0.1, 100.0)


class PersonalBudget(HoldsSecret):
    """The personal budgets of one owner. Use `create` once, then `open`; close it after use."""

    __slots__ = ("_file", "_tag_key")

    def __init__(self, file: BudgetFile, tag_key: bytes) -> None:
        self._file = file
        self._tag_key = tag_key

    @classmethod
    def create(cls, path: Path, key: bytes) -> PersonalBudget:
        """Make a new store.

        Args:
            path: the file; its folder is made where missing.
            key: 32 secret bytes of the owner, the same for ever; without them the store is of no use.

        Raises:
            InputError: there is one, or the key has another length.
            StorageError: the file system refused.
        """
        tag_key, mac_key = _keys(key)
        return cls(BudgetFile(path, mac_key, create=True), tag_key)

    @classmethod
    def open(cls, path: Path, key: bytes) -> PersonalBudget:
        """Open the store and check that it adds up.

        Raises:
            InputError: there is none, or it is of another version.
            IntegrityError: it was altered, or the key is another one.
            StorageError: the file system refused.
        """
        tag_key, mac_key = _keys(key)
        return cls(BudgetFile(path, mac_key), tag_key)

    def declare(
        self, *, epsilon: float | None = None, delta: float | None = None, per_metre: float | None = None
    ) -> None:
        """Set what each person may spend at most; what is None stays as it is.

        Args:
            epsilon: above 0, at most 1000.
            delta: above 0, at most 0.1; 1e-9 where it is never declared.
            per_metre: above 0, at most 100.

        Raises:
            InputError: one is out of range.
            PolicyRefused: one is larger than what was declared before. Nothing changes then.
        """
        wanted = (epsilon, delta, per_metre)
        for value, most, kind in zip(wanted, _MOST, _KINDS, strict=True):
            if value is not None and not 0 < value <= most:
                raise InputError(f"a person's {kind} must be above 0 and at most {most:g}", fix="Correct it")
        with self._file.writing():
            totals = self._file.totals()
            caps = list(totals.caps)
            for i, value in enumerate(wanted):
                if value is None:
                    continue
                new, old = _units(value, i, up=False), caps[i]
                if old is not None and new > old:
                    raise PolicyRefused(
                        f"a person's {_KINDS[i]} was declared as {_text(old, i)} and may only be lowered",
                        fix="Leave it out, or give a lower one",
                    )
                caps[i] = new
            self._file.put_totals(Totals((caps[0], caps[1], caps[2]), totals.people, totals.spent))

    @property
    def cap(self) -> Charge:
        """What each person may spend at most; 0 for a kind that was not declared."""
        return _charge(_allowed(self._file.totals()))

    @property
    def people(self) -> int:
        """How many people have spent something."""
        return self._file.totals().people

    def spent(self, person: str) -> Charge:
        """Return what was spent on a person, rounded up to units."""
        tag = self._tag(person)
        return _charge(self._file.spent([tag]).get(tag, (0, 0, 0)))

    def left(self, person: str) -> Charge:
        """Return what a person has left."""
        tag = self._tag(person)
        return _charge(_minus(_allowed(self._file.totals()), self._file.spent([tag]).get(tag, (0, 0, 0))))

    def least_left(self) -> Charge:
        """Return what everybody has left at least."""
        return _charge(_minus(_allowed(self._file.totals()), self._file.most()))

    def charge(self, people: Sequence[str], price: Charge, *, leave_out: bool = False) -> NDArray[np.bool_]:
        """Pay for one release a row; return bool[n], which rows are paid for: all, but with `leave_out`.

        Args:
            people: n ids, whose row each is; a person with k rows pays k times.
            price: of one row.
            leave_out: rows of people with too little left are not paid for, instead of refusing all rows.

        Raises:
            InputError: no row, an empty id, or a price that is not a number of 0 or more.
            PolicyRefused: somebody has too little left (without `leave_out`), or everybody. Nothing is paid.
            IntegrityError: the store was altered.
            StorageError: it cannot be written. Nothing is paid.
        """
        if not people:
            raise InputError("there is no row to release", fix="Choose a dataset with rows")
        cost = _cost(price)
        tags = [self._tag(person) for person in people]  # 1
        rows = Counter(tags)
        with self._file.writing():  # 2
            totals = self._file.totals()
            caps = _allowed(totals)
            before = self._file.spent(list(rows))
            after: dict[bytes, Amounts] = {}
            for tag, count in rows.items():  # 3
                old = before.get(tag, (0, 0, 0))
                after[tag] = (old[0] + count * cost[0], old[1] + count * cost[1], old[2] + count * cost[2])
            over = {tag for tag, new in after.items() if any(n > c for n, c in zip(new, caps, strict=True))}
            if over and not (leave_out and len(over) < len(after)):
                raise _refusal(
                    price, caps, [before.get(tag, (0, 0, 0)) for tag in over], len(rows), max(rows.values())
                )
            paid = {tag: amounts for tag, amounts in after.items() if tag not in over}
            self._file.put(paid.items())
            number = sum(rows[tag] for tag in paid)
            sums = [str(int(s) + number * c) for s, c in zip(totals.spent, cost, strict=True)]
            new_people = sum(tag not in before for tag in paid)
            self._file.put_totals(
                Totals(totals.caps, totals.people + new_people, (sums[0], sums[1], sums[2]))
            )
        return np.array([tag not in over for tag in tags], np.bool_)  # 4

    def close(self) -> None:
        """Close the store."""
        self._file.close()

    def __enter__(self) -> PersonalBudget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tag(self, person: str) -> bytes:
        if not isinstance(person, str) or not person:
            raise InputError("a row does not say whose it is", fix="Give every row a person's id, as text")
        return hmac_sha256(self._tag_key, person.encode())


def _keys(key: bytes) -> tuple[bytes, bytes]:
    if len(key) != 32:
        raise InputError("the key of personal budgets must be 32 bytes", fix="Derive it with hkdf")
    tag, mac = (hkdf(key, info=framed(b"cloister personal budget v1", use)) for use in (b"tag", b"mac"))
    return tag, mac


def _units(value: float, kind: int, *, up: bool) -> int:
    """Return a number of units; the number is taken as it is written in decimal, so that 0.1 is a tenth."""
    scaled = Decimal(repr(float(value))) * UNITS[kind]
    return int(scaled.to_integral_value(ROUND_CEILING if up else ROUND_FLOOR))


def _cost(price: Charge) -> Amounts:
    values = (price.epsilon, price.delta, price.per_metre)
    if not all(math.isfinite(value) and 0 <= value <= 1e4 for value in values) or not any(values):
        raise InputError(
            "a price must be numbers of 0 or more, not all of them 0", fix="Take a mechanism's cost"
        )
    epsilon, delta, metre = (_units(value, i, up=True) for i, value in enumerate(values))
    return epsilon, delta, metre


def _allowed(totals: Totals) -> Amounts:
    epsilon, delta, metre = totals.caps
    return epsilon or 0, _units(DEFAULT_DELTA, 1, up=False) if delta is None else delta, metre or 0


def _minus(caps: Amounts, spent: Amounts) -> Amounts:
    epsilon, delta, metre = (max(c - s, 0) for c, s in zip(caps, spent, strict=True))
    return epsilon, delta, metre


def _charge(amounts: Amounts) -> Charge:
    epsilon, delta, metre = (float(Decimal(a) / u) for a, u in zip(amounts, UNITS, strict=True))
    return Charge(epsilon, delta, metre)


def _text(units: int, kind: int) -> str:
    return f"{float(Decimal(units) / UNITS[kind]):.6g}"


def _refusal(price: Charge, caps: Amounts, spent: list[Amounts], people: int, rows: int) -> PolicyRefused:
    """Say how many have too little left, of what, and what would still be paid; no id."""
    cost = _cost(price)
    undeclared = next((i for i in (0, 2) if cost[i] and not caps[i]), None)
    if undeclared is not None:
        option = ("epsilon", "", "per_metre")[undeclared]
        return PolicyRefused(
            f"no person's {_KINDS[undeclared]} has been declared, so nothing may be spent",
            fix=f"Declare what each person may spend at most ({option})",
        )
    left = [_minus(caps, each) for each in spent]
    kind = next(
        i for i in range(3) if any(cost[i] > each[i] or rows * cost[i] > each[i] for each in left) and cost[i]
    )
    least = min(each[kind] for each in left)
    times = f", for a person with {rows} rows {rows} times that" if rows > 1 else ""
    return PolicyRefused(
        f"{len(left)} of {people} people have too little of their {_KINDS[kind]} left: a row costs "
        f"{_text(cost[kind], kind)}{times}, the least that is left is {_text(least, kind)}",
        fix="Release with less, or leave these people out with --leave-out",
    )
