from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.homes import be, make_homes

from cloister.cli.main import run
from cloister.crypto import Identity


@dataclass(frozen=True)
class Ending:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Ending]


@pytest.fixture(scope="session")
def people() -> dict[str, Identity]:
    return {name: Identity.generate(name) for name in ("ann", "ben", "eve")}


@pytest.fixture
def homes(tmp_path: Path, people: dict[str, Identity], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the homes of ann, ben and eve, who trust one another; the working directory is a folder in it."""
    make_homes(tmp_path, people)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    be(monkeypatch, tmp_path, "ann")
    return tmp_path


@pytest.fixture
def cloister(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run one command line, as `name` where it is given, and return how it ended; it never prints a traceback."""
    monkeypatch.delenv("CLOISTER_DEBUG", raising=False)

    def call(*arguments: str | Path, home: Path | None = None) -> Ending:
        if home is not None:
            be(monkeypatch, home.parent, home.name)
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Ending(code, captured.out, captured.err)

    return call
