from __future__ import annotations

import pytest

from cloister.crypto import Identity, ScryptCost


@pytest.fixture(scope="session")
def alice() -> Identity:
    return Identity.generate("alice")


@pytest.fixture(scope="session")
def bob() -> Identity:
    return Identity.generate("bob")


@pytest.fixture(scope="session")
def cheap() -> ScryptCost:
    return ScryptCost(n=16, r=1, p=1)
