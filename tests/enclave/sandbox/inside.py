"""Running a few lines of Python inside the sandbox, half inside, or outside, and what came of it.

The lines are run by `timeit`, a module that every Python has: the sandbox starts modules, and none of the
product's runs code that it is given.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.enclave.sandbox import Child, require, spawn
from cloister.errors import PolicyRefused

_PRELUDE = """
import ctypes, errno, json, os, sys
from pathlib import Path
def say(*what):
    print("SAID " + json.dumps(what), flush=True)
def attempt(name, action):
    try:
        result = action()
    except OSError as error:
        say(name, errno.errorcode[error.errno])
    except Exception as error:
        say(name, type(error).__name__)
    else:
        say(name, "done")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 7
def syscall(number, *arguments):
    result = _libc.syscall(number, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""
_ISOLATE = """
from cloister.enclave.sandbox import isolate, confine
inside = isolate()
"""
_CONFINE = """
confinement = confine(read=[Path(p) for p in {read!r}], write=[Path(p) for p in {write!r}], handed={handed!r})
"""


@functools.cache
def _lacking() -> str | None:
    try:
        require()
    except PolicyRefused as error:
        return str(error)
    return None


def need_walls() -> None:
    """Skip where this machine cannot wall in a worker at all."""
    if (why := _lacking()) is not None:
        pytest.skip(why)


@dataclass(frozen=True)
class Outcome:
    """How it ended, what was said, and all that was printed."""

    returncode: int | None
    said: list[Any]
    words: str

    @property
    def answers(self) -> dict[str, Any]:
        """What `say(name, value)` and `attempt(name, action)` said, by name."""
        return dict(self.said)


def _program(*parts: str) -> str:
    code = "".join(parts)
    return f"exec(compile({code!r}, 'inside', 'exec'), {{'__name__': 'inside'}})"


def _outcome(returncode: int | None, words: str) -> Outcome:
    lines = [line.removeprefix("SAID ") for line in words.splitlines() if line.startswith("SAID ")]
    return Outcome(returncode, [json.loads(line) for line in lines], words)


def start(
    code: str,
    *,
    read: Sequence[Path] = (),
    write: Sequence[Path] = (),
    before: str = "",
    confined: bool = True,
    environment: dict[str, str] | None = None,
    extra: Sequence[socket.socket] = (),
    handed: int | None = None,
) -> Child:
    """Start the lines in the sandbox: `before` isolated only, `code` confined too."""
    need_walls()
    folders = {"read": [str(p) for p in read], "write": [str(p) for p in write]}
    walls = _CONFINE.format(**folders, handed=handed) if confined else ""
    program = _program(_PRELUDE, _ISOLATE, textwrap.dedent(before), walls, textwrap.dedent(code))
    return spawn("timeit", arguments=["-n1", "-r1", program], environment=environment or {}, extra=extra)


def inside(code: str, **options: Any) -> Outcome:
    """Run the lines in the sandbox to their end."""
    with start(code, **options) as child:
        child.wait(60)
        returncode = child.returncode
    return _outcome(returncode, child.last_words())


def outside(code: str, *, cwd: Path | None = None) -> Outcome:
    """The control: the same lines in a plain process."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _program(_PRELUDE, textwrap.dedent(code))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    return _outcome(done.returncode, done.stdout.decode())
