"""A TPM's counter, by the contract of all counters."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.contracts.counter import CounterContract, MemoryCounter

from cloister.enclave.attester import SoftwareTpm
from cloister.enclave.attester.nv import NvCounter
from cloister.errors import InputError
from cloister.types import Counter


class TestNvCounter(CounterContract):
    @pytest.fixture(autouse=True)
    def _machine(self, software: SoftwareTpm) -> None:
        self.tpm = software.tpm
        self.names = map(str, itertools.count())

    def fresh(self) -> Counter:
        return NvCounter(self.tpm, next(self.names))

    def again(self, counter: Counter) -> Counter:
        assert isinstance(counter, NvCounter)
        return NvCounter(self.tpm, counter.name)


class TestMemoryCounter(CounterContract):
    def fresh(self) -> Counter:
        return MemoryCounter(first=7)

    def again(self, counter: Counter) -> Counter:
        return counter


def test_counters_of_other_names_are_others(software: SoftwareTpm) -> None:
    one, two = NvCounter(software.tpm, "one"), NvCounter(software.tpm, "two")
    one.increment()
    assert (two.read(), two.exists()) == (0, False)


def test_it_outlives_its_tpms_process(software: SoftwareTpm, tmp_path: Path) -> None:
    with SoftwareTpm(tmp_path / "kept") as first:
        value = NvCounter(first.tpm, "ledger").increment()
    with SoftwareTpm(tmp_path / "kept") as second:
        assert NvCounter(second.tpm, "ledger").increment() == value + 1


def test_names_have_a_length(software: SoftwareTpm) -> None:
    for name in ("", "x" * 129):
        with pytest.raises(InputError, match="1 to 128"):
            NvCounter(software.tpm, name)
