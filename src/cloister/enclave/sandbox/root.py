"""A file system of the worker's own: memory, and in it only what it may read or write.

What is allowed is bound into an empty root at the path it always had (symbolic links on the way are made
again); then that root takes the place of the machine's, which is let go. A path that is not allowed does not
exist: there is nothing to open, to list, to change the mode of, or to connect to. All is read-only but the
scratch space and the named folders; no device but null, zero, full and random; no set-user-ID.

`runtime_paths` is what Python needs to load its own libraries late: library folders of the interpreter and
of the virtual environment, this package, the system's library folders, time zones. Never a home folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloister.enclave.sandbox import kernel
from cloister.errors import InputError, PolicyRefused

__all__ = ["DEVICES", "PROC", "enter_root", "runtime_paths"]

DEVICES: Final = tuple(Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom"))

PROC: Final = tuple(Path("/proc") / name for name in ("self", "cpuinfo", "meminfo", "stat", "version"))
"""What is readable of the worker's own /proc, which shows its own PID namespace alone."""

_SYSTEM: Final = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",  # how much memory there is, for who plans with it
)
_QUIET: Final = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
_MOST_LINKS: Final = 40  # as many as the kernel follows


def runtime_paths() -> list[Path]:
    """What the interpreter may need to read after `confine`, as far as it exists here."""
    prefixes = dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix))
    libraries = [Path(prefix) / name for prefix in prefixes for name in ("lib", "lib64")]
    installed = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    package = Path(__file__).resolve().parents[2]
    wanted = (*libraries, *installed, package, *map(Path, _SYSTEM))
    return [path for path in wanted if path.exists()]


def enter_root(root: Path, *, libraries: Sequence[Path], read: Sequence[Path], write: Sequence[Path]) -> bool:
    """Make `root` a file system that holds these paths only, and enter it.

    Args:
        root: an empty folder in this mount namespace's own memory.
        libraries: read-only, may be mapped as code.
        read: read-only, never code. Wins over `libraries` where it is the narrower path.
        write: may be written, never code.

    Returns:
        Whether a /proc of this PID namespace could be mounted; there is none otherwise.

    Raises:
        InputError: a path of `read` or `write` does not exist, or is the whole file system.
        PolicyRefused: the kernel does not allow the mounts.
    """
    for path in (*read, *write):
        if not path.exists() or path.resolve() == Path("/"):
            raise InputError("there is nothing here that a worker could be shown", where=str(path))
    code = _QUIET | kernel.MOUNT_ATTR_RDONLY
    data = code | kernel.MOUNT_ATTR_NOEXEC
    device = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC
    wanted = [(path, code) for path in libraries]
    wanted += [(path, data) for path in read]
    wanted += [(path, device) for path in DEVICES if path.exists()]
    wanted += [(path, _QUIET | kernel.MOUNT_ATTR_NOEXEC) for path in write]
    try:
        kernel.mount("root", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=1m")
        placed = [(_place(root, path), attributes) for path, attributes in wanted]
        for real, attributes in sorted(placed, key=lambda each: len(each[0].parts)):
            _bind(root, real, attributes)
        own_proc = _mount_proc(root)
        kernel.restrict_mount(root, code, recursive=False)
        kernel.pivot_here(root)
    except OSError as error:
        raise PolicyRefused(
            f"no file system of the worker's own can be set up here: {error.strerror}",
            where=str(error.filename or ""),
        ) from error
    return own_proc


def _place(root: Path, path: Path) -> Path:
    """Make the symbolic links on the way to `path` again under `root`; the path without links.

    The folders on the way, and an empty file or folder to mount on, are made too.
    """
    left = list(path.absolute().parts[1:])
    seen, links = Path("/"), 0
    while left:
        source = seen / left.pop(0)
        target = root / source.relative_to("/")
        if source.is_symlink():
            links += 1
            if links > _MOST_LINKS:
                raise InputError("too many symbolic links", where=str(path))
            link = source.readlink()
            if not target.is_symlink():
                target.symlink_to(link)
            left = [*Path(os.path.normpath(seen / link)).parts[1:], *left]
            seen = Path("/")
        elif source.is_dir():
            target.mkdir(mode=0o755, exist_ok=True)
            seen = source
        else:
            target.touch()
            seen = source
    return seen


def _bind(root: Path, real: Path, attributes: int) -> None:
    target = root / real.relative_to("/")
    kernel.mount(real, target, "", kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(target, attributes, recursive=True)


def _mount_proc(root: Path) -> bool:
    target = root / "proc"
    target.mkdir()
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    with contextlib.suppress(
        OSError
    ):  # a container that masks parts of /proc gets no new one: then none at all
        kernel.mount("proc", target, "proc", flags)
        return True
    return False
