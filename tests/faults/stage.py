"""Processes of a network that are started, watched, killed and started again.

Each party is forked from a server that has everything imported, so a killed one is back within a fraction of a
second, and a kill meets the study and not the interpreter's start. Every process ends with the test's.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.faults.homes import Homes
from tests.faults.party import Options, run

from cloister.runtime.nats import LocalServer

__all__ = ["Stage", "figure", "model_of", "staged"]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.party"])


def _live(root: Path, name: str, options: Options) -> None:
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(3)

    threading.Thread(target=end_with_parent, daemon=True).start()
    errors = os.open(root / "said" / f"{name}.errors", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(errors, 2)
    run(root, name, options)


class Stage:
    """Homes, a server, and the processes between them.

    Attributes:
        homes: of everybody.
        server: of the network.
        defaults: what a process is told unless `start` says otherwise.
    """

    def __init__(self, homes: Homes, server: LocalServer) -> None:
        self.homes, self.server = homes, server
        self.defaults = Options(urls=server.urls)
        self.processes: dict[str, Any] = {}
        self._read: dict[str, int] = {}

    @property
    def sites(self) -> list[str]:
        return self.homes.sites

    def start(self, *names: str, **options: Any) -> None:
        """Start processes of these parties."""
        for name in names:
            process = _FORKS.Process(
                target=_live,
                args=(self.homes.root, name, replace(self.defaults, **options)),
                name=name,
                daemon=True,
            )
            process.start()
            self.processes[name] = process

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal, by default one that nothing survives, and wait until it has acted."""
        process = self.processes[name]
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
                os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.join(10)
            assert not process.is_alive()

    def end(self) -> None:
        for name in self.processes:
            self.kill(name)

    def said(self, name: str, event: str | None = None, **fields: object) -> list[dict[str, Any]]:
        """Return what a party's processes have reported, of one kind if it is named, with these fields."""
        path = self.homes.root / "said" / name
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [
            each
            for each in found
            if event in (None, each["event"]) and all(each.get(key) == value for key, value in fields.items())
        ]

    def wait(self, condition: Callable[[], Any], seconds: float = 60.0, *, what: str = "") -> Any:
        """Return what `condition` returns as soon as it is true; fail with everybody's last words else."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            for name, process in self.processes.items():
                failed = self.said(name, "failed", pid=process.pid)
                assert not failed, self.story()
            assert time.monotonic() < until, f"waited in vain {what}\n{self.story()}"
            time.sleep(0.01)
        return found

    def outcome(self, number: int, seconds: float = 60.0) -> dict[str, Any]:
        """Wait for the end of a study at the hub; return what it reported."""
        name = f"study-{number}"
        found: list[dict[str, Any]] = self.wait(
            lambda: self.said("hub", "end", study=name), seconds, what=f"for the end of {name}"
        )
        return found[-1]

    def models(self, number: int, names: list[str], seconds: float = 20.0) -> list[NDArray[np.float64]]:
        """Wait until these sites have ended the study; return the models they hold."""
        study = f"study-{number}"
        ends = [
            self.wait(
                lambda name=name: self.said(name, "end", study=study), seconds, what=f"for {name}'s end"
            )
            for name in names
        ]
        return [model_of(each[-1]) for each in ends]

    def rounds(self) -> int:
        """Return how many sums the hub has reported, in all studies and processes."""
        return len(self.said("hub", "round"))

    def story(self) -> str:
        """Return everybody's last words."""
        words = []
        for path in sorted((self.homes.root / "said").iterdir()):
            lines = path.read_text(errors="replace").splitlines()[-25:]
            words += [f"--- {path.name}", *(line[:300] for line in lines)]
        return "\n".join(words)


def figure(text: str) -> None:
    """Show what was measured; pytest hides it unless it is asked with -s."""
    sys.stdout.write(f"\n{text}\n")


def model_of(end: dict[str, Any]) -> NDArray[np.float64]:
    """Return the model in what a party reported at its end."""
    return np.frombuffer(bytes.fromhex(end["model"]), "<f8")


@contextmanager
def staged(root: Path, sites: int, *, budgets: bool = False, servers: int = 1) -> Iterator[Stage]:
    """Make homes and run a server for them; end every process at the end."""
    homes = Homes.prepare(root, sites, budgets=budgets)
    with ExitStack() as stack:
        server = stack.enter_context(LocalServer(root / "server", "hub", homes.sites, servers=servers))
        stage = Stage(homes, server)
        stack.callback(stage.end)
        yield stage
