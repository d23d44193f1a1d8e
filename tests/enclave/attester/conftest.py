"""Software TPMs for tests; skipped, with the reason, where this machine can run none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm

from cloister.enclave.attester import SoftwareTpm, Tpm


@pytest.fixture
def software(tmp_path: Path) -> Iterator[SoftwareTpm]:
    needs_swtpm()
    with SoftwareTpm(tmp_path / "state") as tpm:
        yield tpm


@pytest.fixture
def tpm(software: SoftwareTpm) -> Tpm:
    return software.tpm
