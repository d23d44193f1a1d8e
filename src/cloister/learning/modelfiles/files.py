"""The files of a model, whoever keeps them: a plain folder here, a sealed one elsewhere.

A model is read through `ModelFiles` alone, so what was not listed cannot be loaded. `PlainFolder` admits:

1. names of letters, digits, ".", "_" and "-", at most one folder deep; hidden ones are left out;
2. regular files; a link only where it stays within the folder;
3. no pickle and no code, for reading either runs it;
4. documentation is left out, so that a corrected README is no other model.

Invariants: what a read returns is what `digest` was made of, even where a file is changed on disk meanwhile:
each chunk is hashed again when it is read. Files are opened once, before the walls are up, and stay open.

What this does not do: it knows no kind of model; `folder` checks language models. It opens nothing
sealed and verifies nobody's signature.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from cloister.crypto import framed, sha256
from cloister.errors import InputError
from cloister.learning.modelfiles.openfile import OpenFile, check_range

__all__ = [
    "ModelFiles",
    "PlainFolder",
    "check_name",
    "check_range",
    "is_documentation",
    "no_such_file",
    "set_digest",
]

_MAX_FILES: Final = 4096
_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,128}(?:/(?!\.)[A-Za-z0-9._-]{1,128})?", re.ASCII)
_DOMAIN: Final = b"cloister/model-files/v1"
_DOCUMENTATION: Final = (".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
_DOCUMENTS: Final = ("license", "notice", "readme", "use_policy", "license.txt", "notice.txt", "readme.txt")
_PICKLED: Final = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".mar", ".nemo",
)  # fmt: skip
_CODE: Final = (
    ".py",
    ".pyc",
    ".pyd",
    ".pyx",
    ".ipynb",
    ".so",
    ".dll",
    ".dylib",
    ".sh",
    ".exe",
    ".keras",
    ".h5",
)


class ModelFiles(Protocol):
    """The files of one model, readable at any place.

    Attributes:
        digest: of the whole set, as `set_digest` makes it: 64 hex digits.
        names: sorted, with "/" between folders.
    """

    @property
    def digest(self) -> str:
        """See above."""

    @property
    def names(self) -> tuple[str, ...]:
        """See above."""

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises InputError where there is none of that name."""

    def read(self, name: str) -> bytes:
        """Return a whole file.

        Raises:
            InputError: there is none of that name, or it cannot be read.
            IntegrityError: it is not what the digest was made of.
        """

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; raises as `read`, and InputError beyond the end."""

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out`, which is writable and contiguous, with the bytes from `offset` on: the way for large
        tensors; raises as `read_at`. Where an error is raised, what is in it is to be thrown away."""


def no_such_file(name: str) -> InputError:
    """Return the error for a file that a model does not have."""
    return InputError("the model has no such file", where=name[:200], fix="Check the model folder")


def set_digest(files: Iterable[tuple[str, int, bytes]]) -> str:
    """Return the digest of a set of files: SHA-256 over name, size and SHA-256 of each, by name, framed.

    Args:
        files: name, bytes, and the 32-byte SHA-256 of each, in any order.
    """
    parts = [
        part
        for name, size, digest in sorted(files)
        for part in (name.encode(), size.to_bytes(8, "big"), digest)
    ]
    return sha256(framed(_DOMAIN, *parts)).hex()


def check_name(name: str) -> None:
    """Raise InputError unless a file of this name may be one of a model's: steps 1 and 3."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "a file's name does not fit a model folder",
            where=repr(name)[:200],
            fix="Use letters, digits, '.', '_' and '-', at most one folder deep",
        )
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLED:
        raise InputError(
            "the model folder holds a file that may be pickled, and reading a pickle runs code",
            where=name,
            fix="Save the weights as safetensors and remove this file",
        )
    if suffix in _CODE:
        raise InputError(
            "the model folder holds code, which is never run", where=name, fix="Remove it from the folder"
        )


def is_documentation(name: str) -> bool:
    """Tell whether a file only describes the model, and is no part of it."""
    base = name.lower().rpartition("/")[2]
    return base.endswith(_DOCUMENTATION) or base in _DOCUMENTS


class PlainFolder:
    """The files of a model in a folder, in the clear.

    Args:
        path: the folder.

    Raises:
        InputError: there is no such folder, it is empty or too full, or steps 1 to 3 refuse a file.

    Attributes:
        digest: as of `ModelFiles`.
        names: as of `ModelFiles`.
    """

    def __init__(self, path: Path) -> None:
        self._files: dict[str, OpenFile] = {}
        try:
            for name, place in sorted(_listed(path)):
                self._files[name] = OpenFile(name, place)
        except BaseException:
            self.close()
            raise
        if not self._files:
            raise InputError("the model folder is empty", where=str(path), fix="Check the path")
        self.names = tuple(sorted(self._files))
        self.digest = set_digest((name, file.size, file.digest) for name, file in self._files.items())

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises InputError where there is none of that name."""
        return self._file(name).size

    def read(self, name: str) -> bytes:
        """Return a whole file; raises as `read_at`."""
        return self.read_at(name, 0, self.size(name))

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            InputError: there is no such file, it has no such bytes, or it cannot be read.
            IntegrityError: the file was changed since its folder was opened.
        """
        return self._file(name).read_at(offset, length)

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on; raises as `read_at`."""
        self._file(name).read_into(offset, out.cast("B"))

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, name: str) -> OpenFile:
        found = self._files.get(name)
        if found is None:
            raise no_such_file(name)
        return found


def _listed(root: Path) -> Iterable[tuple[str, Path]]:
    """Yield name and place of each file that belongs to the model: steps 1 to 4."""
    count = 0
    try:
        home = root.resolve(strict=True)
        if not home.is_dir():
            raise InputError("the model is not a folder", where=str(root), fix="Give the folder it lies in")
        for folder, inner, names in os.walk(home, onerror=_raised):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for entry in inner:
                if (Path(folder) / entry).is_symlink():
                    raise _linked(entry)
            for entry in names:
                place = Path(folder) / entry
                name = place.relative_to(home).as_posix()
                if entry.startswith(".") or is_documentation(name):
                    continue
                check_name(name)
                if not place.resolve(strict=True).is_relative_to(home):
                    raise _linked(name)
                count += 1
                if count > _MAX_FILES:
                    raise InputError(f"the model folder holds more than {_MAX_FILES} files", where=str(root))
                yield name, place.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            "cannot read the model folder", where=str(root), fix="Check the path and its permissions"
        ) from error


def _raised(error: OSError) -> None:
    raise error


def _linked(name: str) -> InputError:
    return InputError(
        "a link leads out of the model folder",
        where=name,
        fix="Copy the folder with its links resolved: cp -rL",
    )
