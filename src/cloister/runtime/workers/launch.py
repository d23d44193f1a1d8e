"""Starting a worker's process behind the walls of `cloister.enclave.sandbox`."""

from __future__ import annotations

import contextlib
import signal
from typing import Final

from cloister.enclave.sandbox import Child, spawn
from cloister.errors import CloisterError, PolicyRefused, ProtocolError
from cloister.runtime.workers.session import Running, StartWorker

__all__ = ["MODULE", "sandbox"]

MODULE: Final = "cloister.runtime.workers.process"
_WHY_SECONDS: Final = 5.0
_LAST_LINE: Final = 300


def sandbox(module: str = MODULE) -> StartWorker:
    """Return what starts sandboxed workers, one for each call; `module` is what runs in them."""

    def start() -> Running:
        return _Process(spawn(module))

    return start


class _Process:
    """A `Running`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.socket = child.socket

    def why(self) -> str:
        """Return how it ended, in a few words."""
        code = self._child.wait(_WHY_SECONDS)
        if code is None or code == 0:
            return ""
        if code > 0:
            return f"exit code {code}"
        if -code == signal.SIGSYS:
            return "killed for a system call that only an attack needs"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def refusal(self) -> CloisterError:
        """Return why it did not come up: what it last printed. Nothing but libraries was in it by then."""
        code, words = self._child.wait(_WHY_SECONDS), self._child.last_words()
        last = words.splitlines()[-1][:_LAST_LINE] if words else "it said nothing"
        if code == PolicyRefused.exit_code:
            return PolicyRefused(
                f"no worker can be walled off on this machine: {last.rstrip('.')}",
                fix="Mend that; or, if you accept that rows and code share this process: --worker inside",
            )
        return ProtocolError(f"the worker's process did not come up: {last.rstrip('.')}")

    def close(self) -> None:
        """Kill it and forget its channel."""
        self._child.close()
