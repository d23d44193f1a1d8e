"""Starting a worker: a Python module in a process of its own, with a channel to its starter, nothing else.

The child runs `python -I -m ...` (no PYTHON* variable, no user site, no current folder), inherits one end of
a socket pair as descriptor 3 and the further sockets that its starter names as 5, 6 and so on, reads nothing
on standard input, and says what it prints into a bounded memory of last words. Its environment is a few
variables. It is isolated before its module is imported, and dies with its starter: when the `Child` is closed
or the starter ends, in whatever way.

Last words are the worker's own and may hold anything it has seen: show them to the site's own operator, and
never send them to anybody.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Final

from cloister.errors import StorageError

__all__ = ["LAST_WORDS_BYTES", "Child", "spawn"]

LAST_WORDS_BYTES: Final = 16 * 1024
_PASSED_ON: Final = ("TMPDIR", "LD_LIBRARY_PATH", "TZ")
_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    "LANG": "C.UTF-8",
    # one thread until confined: Landlock holds the threads that are started after it
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_PATIENCE_S: Final = 5.0


class Child:
    """A worker's process, seen from its starter.

    Attributes:
        pid: of the process that guards it; the worker itself has another one.
        socket: this end of the channel; a stream socket.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._words = bytearray()
        self.pid = process.pid
        self.socket = channel
        assert process.stdout is not None  # noqa: S101 - asked for as a pipe
        self._listener = threading.Thread(target=self._listen, args=(process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := pipe.read1(4096):  # type: ignore[attr-defined]
                self._words += chunk
                del self._words[:-LAST_WORDS_BYTES]

    @property
    def returncode(self) -> int | None:
        """How it ended: an exit code, or minus the signal that killed it; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it ends, at most `timeout` seconds; its `returncode`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.returncode

    def kill(self) -> None:
        """End it now, and wait until it is gone. Its scratch space goes with it."""
        self._let_go()
        if self.wait(_PATIENCE_S) is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Close the channel, end the process, and collect its last words."""
        self.socket.close()
        self.kill()
        self._listener.join(_PATIENCE_S)

    def last_words(self) -> str:
        """The end of what it printed, at most `LAST_WORDS_BYTES`. For the site's own operator alone."""
        if self.returncode is not None:
            self._listener.join(_PATIENCE_S)
        return self._words.decode("utf-8", "replace").strip()

    def _let_go(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spawn(
    module: str,
    *,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    extra: Sequence[socket.socket] = (),
) -> Child:
    """Start `module` in a sandboxed process; it still has to `confine` itself before it sees data.

    Args:
        module: a module's dotted name, run as `__main__`.
        arguments: its `sys.argv[1:]`.
        environment: variables beside the few it gets. Keep OPENBLAS_NUM_THREADS at 1: a thread that runs
            before `confine` is a refusal.
        extra: further sockets; the worker finds them at descriptors 5, 6 and so on. The caller's copies stay
            open, for the caller to close.

    Raises:
        StorageError: the process cannot be started.
    """
    ours, theirs = socket.socketpair()
    watch, lifeline = os.pipe()
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    further = [each.fileno() for each in extra]
    command = [sys.executable, "-I", "-m", "cloister.enclave.sandbox.start"]
    try:
        process = subprocess.Popen(
            [*command, *map(str, (theirs.fileno(), watch)), ",".join(map(str, further)), module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), watch, *further),
            env={**passed, **_ENVIRONMENT, **dict(environment)},
            cwd="/",
            start_new_session=True,  # no terminal of its own, and Ctrl-C is its starter's to answer
        )
    except OSError as error:
        ours.close()
        os.close(lifeline)
        raise StorageError(f"a worker's process cannot be started: {error.strerror}") from error
    finally:
        theirs.close()
        os.close(watch)
    return Child(process, ours, lifeline)
