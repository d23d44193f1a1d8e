"""Writing files so that a crash, a full disk or Ctrl-C leaves either the old state or the new one.

Order: write beside the target, fsync, rename over it, fsync the folder. What was begun and not finished is
removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cloister.errors import InputError, StorageError

__all__ = ["atomic_file", "exclusive", "new_directory", "read_bytes", "write_atomic"]


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write: {os.strerror(error.errno) if error.errno else type(error).__name__}",
            where=str(path),
            fix="Free space or choose another folder; nothing was left half-written",
        ) from error


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no Ctrl-C in, and SIGTERM wait: half a removal or half an exchange would stay. Both reach the main
    thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: held.append(number)),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if held:
            signal.raise_signal(signal.SIGTERM)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o644, replace: bool = True) -> Iterator[BinaryIO]:
    """Write a file that takes `path`'s place when the block ends, and leaves no trace when it raises.

    Args:
        path: the target; its folder is made where missing.
        mode: permissions from the first byte on (0o600 for anything secret).
        replace: whether an existing file may go. If not, of two writers at once one gets the error.

    Yields:
        The file to write. An OSError within the block counts as a failure to write it.

    Raises:
        InputError: something that is not a file, such as a folder or a device, is there; or a file that
            must stay.
        StorageError: the file system refused; the old content is intact.
    """
    if path.exists() and not path.is_file():
        raise InputError("the target is not a file", where=str(path), fix="Choose another name")
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _beside(path)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            _put(part, path, replace=replace)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _fsync_path(path.parent)


def _put(part: Path, path: Path, *, replace: bool) -> None:
    if replace:
        part.replace(path)
        return
    try:
        path.hardlink_to(part)  # fails where something is there; a look beforehand could not promise that
    except FileExistsError:
        raise InputError("the file exists", where=str(path), fix="Choose another name") from None
    part.unlink()


def write_atomic(
    path: Path, data: bytes | bytearray | memoryview, *, mode: int = 0o644, replace: bool = True
) -> None:
    """Replace `path` with `data` as one step.

    Args:
        path: the target; its folder is made where missing.
        data: the whole content.
        mode: permissions from the first byte on (0o600 for anything secret).
        replace: whether an existing file may go.

    Raises:
        StorageError: the file system refused; the old content is intact.
    """
    with atomic_file(path, mode=mode, replace=replace) as file:
        file.write(data)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (made where missing, never removed) while the block runs; others wait.

    Raises:
        StorageError: it cannot be made.
    """
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_directory(
    path: Path,
    *,
    mode: int = 0o755,
    replace: Callable[[Path], bool] = lambda path: False,
    placed: Callable[[], None] = lambda: None,
) -> Iterator[Path]:
    """Build a new folder beside its place; it appears whole, or not at all.

    Args:
        path: where the finished folder shall be; must not exist, unless as an empty folder.
        mode: permissions of the folder.
        replace: says of a folder that exists whether the new one may take its place. The old one stays until
            the new one is whole.
        placed: called once the folder is in its place, before a Ctrl-C can come: what belongs to it is not to
            be undone any more, whatever is raised then.

    Yields:
        The folder to fill. Every file in it is fsynced before the rename.

    Raises:
        InputError: `path` exists, is not an empty folder and may not be replaced; or it is a link.
        StorageError: the file system refused, or somebody else has made `path` meanwhile; nothing remains.
    """
    filled = path.is_dir() and any(path.iterdir())
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (filled and not replace(path)):
        raise InputError("the target exists", where=str(path), fix="Choose another place, or remove it first")
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _beside(path)
        part.mkdir(mode=mode)
        try:
            yield part
            for folder, _, names in os.walk(part):
                for name in names:
                    _fsync_path(Path(folder) / name)
                _fsync_path(Path(folder))
            with _undisturbed():
                _take_place(part, path, exchange=filled)
                placed()
        except BaseException:
            with _undisturbed():
                shutil.rmtree(part, ignore_errors=True)
            raise
        _fsync_path(path.parent)


def _take_place(part: Path, path: Path, *, exchange: bool) -> None:
    if not exchange:
        part.rename(path)  # the system refuses where more than an empty folder has come to be there
        return
    old = _beside(path)
    path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def read_bytes(path: Path, *, limit: int, what: str = "file") -> bytes:
    """Read a whole file that must not be larger than `limit` bytes.

    Raises:
        InputError: it is missing, unreadable, a folder, or larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(
            f"cannot read the {what}: {reason}", where=str(path), fix="Check the path"
        ) from error
    if len(data) > limit:
        raise InputError(
            f"the {what} is larger than {limit} bytes", where=str(path), fix="Check that it is the right file"
        )
    return data
