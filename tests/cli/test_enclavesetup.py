"""`cloister enclave setup`: what is missing is said, and installed only where that may be done."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from cloister.cli import enclavesetup
from cloister.cli.enclavesetup import PACKAGES

Ran = list[list[str]]


@pytest.fixture
def setup() -> Callable[..., Result]:
    app = typer.Typer()
    app.command()(enclavesetup.setup)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A Debian machine with nothing of it, where installing succeeds without doing anything."""
    ran: Ran = []

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        ran.append(list(command))
        return subprocess.CompletedProcess(command, 0)

    find = importlib.util.find_spec
    absent = {module for module, _ in enclavesetup._PYTHON.values()}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in absent else find(name, *more)
    )
    monkeypatch.setattr(enclavesetup, "find_library", lambda name: None)
    monkeypatch.setattr(
        enclavesetup.shutil, "which", lambda name: None if name == "swtpm" else f"/usr/bin/{name}"
    )
    monkeypatch.setattr(enclavesetup, "_machine", list)
    monkeypatch.setattr(enclavesetup.subprocess, "run", run)
    return ran


def test_check_installs_nothing_and_says_what_would(setup: Callable[..., Result], bare: Ran) -> None:
    done = setup("--check", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert bare == []
    assert found["complete"] is False
    assert found["system"]["swtpm"] == "no software TPM can be started"
    assert found["python"]["tpm2-pytss"] == "not installed"
    assert all(package in found["commands"][0] for package in PACKAGES)


def test_root_installs_packages_and_then_the_python_ones(
    setup: Callable[..., Result], bare: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = setup()
    assert [command[0] for command in bare] == ["apt-get", "apt-get", sys.executable]
    assert bare[0][-1] == "update"
    assert set(PACKAGES) <= set(bare[1])
    assert bare[2][1:4] == ["-m", "pip", "install"]
    assert done.exit_code == 1  # this twin of a machine still has nothing: what counts is what is there


def test_others_are_told_what_root_would_do(
    setup: Callable[..., Result], bare: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = setup()
    assert all(command[0] != "apt-get" for command in bare)
    assert "apt-get" in done.output
    assert "installed by root" in done.output


def test_a_command_that_fails_or_is_not_there_is_said(
    setup: Callable[..., Result], bare: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        if command[0] == "apt-get":
            return subprocess.CompletedProcess(command, 100)
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(enclavesetup.subprocess, "run", run)
    done = setup("--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["installed"] == []
    assert "It ended with 100" in done.stderr
    assert "did not run to its end" in done.stderr


def test_on_this_machine(setup: Callable[..., Result]) -> None:
    done = setup("--check")
    assert done.exit_code in {0, 1}
    assert "confidential guest" in done.output
    assert "Traceback" not in done.output


def test_the_makefile_installs_the_same_packages() -> None:
    makefile = Path(__file__).parents[2] / "Makefile"
    line = next(each for each in makefile.read_text().splitlines() if each.startswith("PACKAGES :="))
    assert tuple(line.split()[2:]) == PACKAGES
