"""Every wall tried, one by one, in a process that is thrown away: what `walls.available` starts.

python -I -m cloister.enclave.sandbox.trial      one JSON object: wall -> null, or why it is missing
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from cloister.enclave.sandbox import kernel, landlock, limits, namespaces, seccomp, secretmem
from cloister.enclave.sandbox.namespaces import NAMESPACES
from cloister.enclave.sandbox.root import enter_root, runtime_paths
from cloister.errors import InputError, PolicyRefused

__all__ = ["main"]


def _why(action: Callable[[], object]) -> str | None:
    try:
        action()
    except (PolicyRefused, InputError) as error:
        return str(error)
    except OSError as error:
        return error.strerror or "the kernel refuses it"
    return None


def _processor() -> None:
    if kernel.machine() is None:
        raise PolicyRefused("system calls are known for x86_64 and aarch64 only")


def _secret_memory() -> None:
    if not secretmem.available():
        raise PolicyRefused(
            "this kernel gives no memfd_secret", fix="Use Linux 6.5 or newer, or secretmem.enable=y"
        )


def _locked_memory() -> None:
    if not limits.lock_memory():
        raise PolicyRefused("the limit on locked memory is too low", fix="Raise it: ulimit -l unlimited")


def _mounts(folder: Path) -> None:
    """A new root in the child of a new PID namespace, as `confine` makes one."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            namespaces.unshare("mount namespace")
            namespaces.own_scratch(folder)
            enter_root(folder / "root", libraries=runtime_paths(), read=(), write=(folder / "scratch",))
            code = 0
        except PolicyRefused as error:
            os.write(2, str(error).encode())
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise PolicyRefused("no file system of the worker's own can be set up here")


def main() -> None:
    """Try every wall and print what is missing."""
    namespaces.raise_memory_lock()
    folder = Path(tempfile.mkdtemp(prefix="cloister-probe-"))
    found = {
        "processor": _why(_processor),
        "Landlock": _why(landlock.abi),
        "seccomp": _why(seccomp.prepare),
        "secret memory": _why(_secret_memory),
        "locked memory": _why(_locked_memory),
        "user namespace": _why(namespaces.enter_user_namespace),
    }
    try:
        for name in NAMESPACES:
            if name not in found and name != "mount namespace":
                found[name] = _why(lambda name=name: namespaces.unshare(name))  # type: ignore[misc]
        found["mounts"] = _why(lambda: _mounts(folder))
        found["mount namespace"] = _why(lambda: namespaces.unshare("mount namespace"))
    finally:
        folder.rmdir()
    print(json.dumps(found))  # noqa: T201 - what `available` reads


if __name__ == "__main__":
    main()
