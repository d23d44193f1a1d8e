"""A machine's counter: opened late, closed with whoever held it, and never made of software unasked."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from tests.contracts.counter import CounterContract
from tests.enclave.attester.machine import needs_swtpm

from cloister.enclave.attester import MachineCounter, SoftwareTpm
from cloister.errors import InputError, PolicyRefused
from cloister.types import Counter


class TestMachineCounter(CounterContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        needs_swtpm()
        self.folder = tmp_path / "counter"
        self.device = tmp_path / "tpmrm0"

    def fresh(self) -> Counter:
        return MachineCounter(self.folder, "it", software_allowed=True, device=self.device)

    def again(self, counter: Counter) -> Counter:
        assert isinstance(counter, MachineCounter)
        counter.close()
        counter.close()
        return Both(counter, self.device, self.folder)


class Both:
    """Two holders in turn, as two processes have it: each lets go before the other counts."""

    def __init__(self, first: MachineCounter, device: Path, folder: Path) -> None:
        self.first = first
        self.second = MachineCounter(folder, "it", device=device)  # what is there was allowed before

    def read(self) -> int:
        self.first.close()
        value = self.second.read()
        self.second.close()
        return value

    def increment(self) -> int:
        self.first.close()
        value = self.second.increment()
        self.second.close()
        return value


def test_no_software_tpm_is_made_unasked(tmp_path: Path) -> None:
    counter = MachineCounter(tmp_path / "counter", "it", device=tmp_path / "tpmrm0")
    with pytest.raises(PolicyRefused, match="no TPM"):
        counter.read()
    assert not (tmp_path / "counter").exists()


def test_nothing_is_opened_before_it_is_asked_and_dropping_it_lets_go(tmp_path: Path) -> None:
    needs_swtpm()
    folder, device = tmp_path / "counter", tmp_path / "tpmrm0"
    counter = MachineCounter(folder, "it", software_allowed=True, device=device)
    assert not folder.exists()
    counter.increment()
    del counter
    gc.collect()
    SoftwareTpm(folder).close()  # its lock is free


def test_a_device_that_may_not_be_used_is_no_reason_for_software(tmp_path: Path) -> None:
    device = tmp_path / "tpmrm0"
    device.mkdir()
    counter = MachineCounter(tmp_path / "counter", "it", software_allowed=True, device=device)
    assert counter.hardware
    with pytest.raises(InputError):
        counter.read()
    assert not (tmp_path / "counter").exists()
