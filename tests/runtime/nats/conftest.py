from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.runtime.nats import LocalServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server with accounts of "hub" and the sites "alice" and "bob"."""
    with LocalServer(tmp_path_factory.mktemp("nats"), "hub", ["alice", "bob"], leaf=True) as running:
        yield running
