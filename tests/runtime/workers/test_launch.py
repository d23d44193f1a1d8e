"""How a worker that did not come up, or did not stay, is told."""

from __future__ import annotations

import re
import signal
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import Identity
from cloister.errors import PolicyRefused, ProtocolError
from cloister.runtime.workers import launch
from cloister.runtime.workers.session import Session


class Ended:
    """A child that has ended."""

    def __init__(self, code: int | None, words: str = "") -> None:
        self.socket, self._other = socket.socketpair()
        self._other.close()
        self._code, self._words = code, words

    def wait(self, timeout: float) -> int | None:
        return self._code

    def last_words(self) -> str:
        return self._words

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    children: list[Ended] = []

    def make(code: int | None, words: str = "") -> Ended:
        child = Ended(code, words)
        children.append(child)
        monkeypatch.setattr(launch, "spawn", lambda module: child)
        return child

    yield make
    for child in children:
        child.close()


def test_a_machine_without_a_wall_is_a_refusal_that_names_it(ended: Any) -> None:
    child = ended(3, "some warning\nno user namespace can be had here: Operation not permitted. Allow it.")
    with pytest.raises(PolicyRefused, match="no user namespace can be had here") as error:
        Session(launch.sandbox(), Identity.generate("site"), bytes(32))
    assert "--worker inside" in str(error.value)
    assert "warning" not in str(error.value)
    assert child.socket.fileno() == -1


def test_a_process_that_does_not_come_up_says_its_last_line(ended: Any) -> None:
    ended(1, "Traceback\nModuleNotFoundError: No module named 'numpy'")
    with pytest.raises(ProtocolError, match="did not come up: ModuleNotFoundError"):
        Session(launch.sandbox(), Identity.generate("site"), bytes(32))
    ended(-9)
    with pytest.raises(ProtocolError, match="it said nothing"):
        Session(launch.sandbox(), Identity.generate("site"), bytes(32))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ""),
        (0, ""),
        (1, "exit code 1"),
        (-int(signal.SIGKILL), "killed by SIGKILL"),
        (-int(signal.SIGSYS), "killed for a system call that only an attack needs"),
        (-63, "killed by signal 63"),
    ],
)
def test_how_a_worker_ended(ended: Any, code: int | None, words: str) -> None:
    ended(code, "ROW 1234567")
    assert launch.sandbox()().why() == words


def test_the_base_install_brings_what_walls_need() -> None:
    """Commands that open rows wall their worker off by default, so a plain install must be able to."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    base = {re.split(r"[>=\[ ]", each)[0] for each in project["dependencies"]}
    assert "pyseccomp" in base
    assert "scikit-learn" in base  # which brings threadpoolctl
