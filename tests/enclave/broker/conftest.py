from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.broker.world import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "broker")
    yield made
    made.close()
