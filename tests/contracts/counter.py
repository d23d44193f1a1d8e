"""What every `Counter` must do, inherited by the tests of each implementation; and a twin in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cloister.types import Counter


class CounterContract(ABC):
    """Subclass it and say how to make one that was never incremented, and how to find it again."""

    @abstractmethod
    def fresh(self) -> Counter: ...

    @abstractmethod
    def again(self, counter: Counter) -> Counter: ...

    def test_it_is_0_until_it_is_incremented(self) -> None:
        assert self.fresh().read() == 0

    def test_it_only_goes_up(self) -> None:
        counter = self.fresh()
        seen = [counter.increment() for _ in range(5)]
        assert seen[0] > 0
        assert seen == sorted(set(seen))
        assert counter.read() == seen[-1]
        assert counter.read() == seen[-1]

    def test_it_steps_by_one_once_it_is_in_use(self) -> None:
        counter = self.fresh()
        first = counter.increment()
        assert [counter.increment() for _ in range(3)] == [first + 1, first + 2, first + 3]

    def test_it_is_found_again(self) -> None:
        counter = self.fresh()
        counter.increment()
        assert self.again(counter).read() == counter.read()
        assert self.again(counter).increment() == counter.read()


class MemoryCounter:
    """A counter that outlives every copy of a disk, and no process."""

    def __init__(self, first: int = 1) -> None:
        self.value = 0
        self.first = first

    def read(self) -> int:
        return self.value

    def increment(self) -> int:
        self.value = self.value + 1 if self.value else self.first
        return self.value
