"""Which walls this machine has, and what is missing, in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Final

from cloister.enclave.sandbox.namespaces import NAMESPACES
from cloister.errors import PolicyRefused

__all__ = ["OPTIONAL", "REQUIRED", "available", "require"]

REQUIRED: Final = ("processor", *NAMESPACES, "mounts", "Landlock", "seccomp")
"""Walls without which `confine` refuses."""

OPTIONAL: Final = ("locked memory", "secret memory")
"""What `Confinement` reports as missing instead."""

_PATIENCE_S: Final = 20.0


def available() -> dict[str, str | None]:
    """For every wall of `REQUIRED` and `OPTIONAL`: None where this machine has it, else why not, in words."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "cloister.enclave.sandbox.trial"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=True,
            cwd="/",
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
            | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        )
        found = json.loads(done.stdout)
        return {wall: found[wall] for wall in (*REQUIRED, *OPTIONAL)}
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return dict.fromkeys(
            (*REQUIRED, *OPTIONAL), "it could not be tried: the trial process did not end well"
        )


def require() -> None:
    """Nothing, where every required wall is there.

    Raises:
        PolicyRefused: one is missing; names it and says why.
    """
    lacking = {wall: why for wall, why in available().items() if why is not None and wall in REQUIRED}
    for wall, why in lacking.items():
        raise PolicyRefused(
            f"this machine cannot wall in a worker: {wall} is missing: {why.rstrip('.')}",
            fix="`cloister enclave setup --check` lists what is missing; nothing runs with less",
        )
