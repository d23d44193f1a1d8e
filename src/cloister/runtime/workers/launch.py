"""Starting a worker's process behind the walls of `cloister.enclave.sandbox`."""

from __future__ import annotations

import contextlib
import signal
from typing import Final, Protocol

from cloister.enclave.sandbox import Child, spawn
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.runtime.workers.session import Running, StartWorker

__all__ = ["MODULE", "Ending", "how_it_ended", "not_up", "sandbox"]

MODULE: Final = "cloister.runtime.workers.process"
_WHY_SECONDS: Final = 5.0
_LAST_LINE: Final = 300


def sandbox(module: str = MODULE) -> StartWorker:
    """Return what starts sandboxed workers, one for each call; `module` is what runs in them."""

    def start() -> Running:
        return _Process(spawn(module))

    return start


class Ending(Protocol):
    """A process that ends; `enclave.sandbox.Child` is one."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Return how it ended."""

    def last_words(self) -> str:
        """Return the end of what it printed."""


def how_it_ended(process: Ending) -> str:
    """Return in a few words how a worker ended; empty where that is not known."""
    code = process.wait(_WHY_SECONDS)
    if code is None or code == 0:
        return ""
    if code > 0:
        return f"exit code {code}"
    if -code == signal.SIGSYS:
        return "killed for a system call that only an attack needs"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def not_up(process: Ending, fix: str) -> CloisterError:
    """Return why a worker did not come up: what it last printed. Nothing but libraries was in it by then.

    Args:
        process: of the worker.
        fix: what can be done where the machine lacks a wall.
    """
    code, words = process.wait(_WHY_SECONDS), process.last_words()
    last = words.splitlines()[-1][:_LAST_LINE].rstrip(".") if words else "it said nothing"
    if code == PolicyRefused.exit_code:
        return PolicyRefused(f"no worker can be walled off on this machine: {last}", fix=fix)
    return ProtocolError(f"the worker's process did not come up: {last}")


class _Process:
    """A `Running`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.socket = child.socket

    def why(self) -> str:
        """Return how it ended, in a few words."""
        return how_it_ended(self._child)

    def refusal(self) -> CloisterError:
        """Return why it did not come up."""
        return not_up(
            self._child,
            "Mend that; or, if you accept that rows and code share this process: --worker inside",
        )

    def close(self) -> None:
        """Kill it and forget its channel."""
        self._child.close()
