"""An append-only log in one file.

    magic          16 bytes, "CLOISTER-LOG-1" and two line feeds
    log id         2 bytes of length, then UTF-8
    entries        each: 4 bytes of length, 32 bytes of leaf hash, the entry

An entry counts once it is fsynced; only then `append` returns. A crash in the middle of an append leaves an
incomplete last entry that nobody was told about: opening the log notices it, moves it to a file beside
(NAME.torn) and says so in `torn_bytes`. A length that was altered can look like that too, which is why the
bytes are kept. An entry that is complete and does not fit its hash, or is longer than any, is no crash:
IntegrityError.

The file proves nothing against its own owner, who can rewrite it whole: heads that others have cosigned do
(see `cosign`). Several processes may append; each takes the file's lock and first reads what the others
wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto.canonical import canonical_bytes
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.files import write_atomic
from cloister.log.merkle import HASH_BYTES, MerkleTree, leaf_hash

__all__ = ["MAX_ENTRY", "Log", "TreeHead"]

MAX_ENTRY: Final = 64 << 20
_MAGIC: Final = b"CLOISTER-LOG-1\n\n"
_PREFIX: Final = 4 + HASH_BYTES


class TreeHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a log contained at one moment."""

    log_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    size: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    root: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, which are what is signed."""
        return canonical_bytes(self)


def _write(file: FileIO, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


class Log:
    """The log in the file `path`, made where it is missing.

    Args:
        path: the file.
        log_id: who keeps which log, such as the hub's fingerprint; in every head.

    Raises:
        InputError: the file is not a log, or another one's.
        IntegrityError: an entry was altered.
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path, log_id: str) -> None:
        self.path: Final = path
        self.log_id: Final = log_id
        self.torn_bytes = 0
        self._tree = MerkleTree()
        self._offsets: list[int] = []
        self._end = 0
        name = log_id.encode()
        if not 0 < len(name) <= 256:
            raise InputError("a log's id must have 1 to 256 bytes", fix="Use its keeper's fingerprint")
        self._header = b"".join((_MAGIC, len(name).to_bytes(2, "big"), name))
        if not path.exists():
            with contextlib.suppress(InputError):  # somebody else has made it meanwhile
                write_atomic(path, self._header, replace=False)
        with self._locked():
            pass

    def __len__(self) -> int:
        return len(self._tree)

    def append(self, entry: bytes) -> int:
        """Add an entry of at most 64 MiB and return its index, once it is on the disk.

        Raises:
            InputError: it is too long.
            StorageError: it could not be written; it is not in the log then.
        """
        if len(entry) > MAX_ENTRY:
            raise InputError(f"a log entry is longer than {MAX_ENTRY} bytes", fix="Log its digest instead")
        leaf = leaf_hash(entry)
        with self._locked() as file:
            try:
                _write(file, b"".join((len(entry).to_bytes(4, "big"), leaf, entry)), self._end)
                os.fsync(file.fileno())
            except OSError as error:
                with contextlib.suppress(
                    OSError
                ):  # what cannot be cut now is cut when the log is next opened
                    os.ftruncate(file.fileno(), self._end)
                raise StorageError(
                    f"cannot write the log: {error.strerror}",
                    where=str(self.path),
                    fix="Free space and try again",
                ) from error
            return self._take(leaf, len(entry))

    def entry(self, index: int) -> bytes:
        """Return entry `index`, checked against its hash.

        Raises:
            InputError: there is none.
            IntegrityError: it was altered since the log was opened.
        """
        if not 0 <= index < len(self._offsets):
            raise InputError(
                f"the log has no entry {index}", where=str(self.path), fix=f"It has {len(self)} entries"
            )
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._offsets[index])
            length = int.from_bytes(file.read(4), "big")
            leaf, data = file.read(HASH_BYTES), file.read(length)
        if leaf != self._tree.leaf(index) or leaf_hash(data) != leaf:
            raise self._altered(index)
        return data

    def head(self, size: int | None = None) -> TreeHead:
        """Return the head over the first `size` entries (None: all). Raises InputError beyond the log."""
        count = len(self) if size is None else size
        return TreeHead(self.log_id, count, self._tree.root(count))

    def inclusion_proof(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that entry `index` is among the first `size`. Raises InputError."""
        return self._tree.inclusion_proof(index, size)

    def consistency_proof(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the first `new` entries begin with the first `old`. Raises InputError."""
        return self._tree.consistency_proof(old, new)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FileIO]:
        """Open the file, take its lock, and read what is new in it."""
        try:
            file = self.path.open("r+b", buffering=0)
        except OSError as error:
            raise StorageError(
                f"cannot open the log: {error.strerror}", where=str(self.path), fix="Check its permissions"
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file)
            yield file

    def _catch_up(self, file: FileIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if self._end == 0:
            if file.read(len(self._header)) != self._header:
                raise InputError(
                    "this is not the expected log", where=str(self.path), fix="Check which file it is"
                )
            self._end = len(self._header)
        if size < self._end:
            raise IntegrityError(
                "the log has become shorter", where=str(self.path), fix="Restore it from a copy"
            )
        file.seek(self._end)
        while self._end < size:
            prefix = file.read(_PREFIX)
            length = int.from_bytes(prefix[:4], "big")
            if length > MAX_ENTRY and len(prefix) >= 4:
                raise self._altered(len(self))
            if len(prefix) < _PREFIX or self._end + _PREFIX + length > size:
                self._cut(file, size)
                return
            if leaf_hash(file.read(length)) != prefix[4:]:
                raise self._altered(len(self))
            self._take(prefix[4:], length)

    def _cut(self, file: FileIO, size: int) -> None:
        self.torn_bytes = size - self._end
        file.seek(self._end)
        write_atomic(self.path.with_name(f"{self.path.name}.torn"), file.read())
        os.ftruncate(file.fileno(), self._end)

    def _take(self, leaf: bytes, length: int) -> int:
        self._offsets.append(self._end)
        self._end += _PREFIX + length
        return self._tree.append_hash(leaf)

    def _altered(self, index: int) -> IntegrityError:
        return IntegrityError(
            f"entry {index} of the log was altered", where=str(self.path), fix="Restore it from a copy"
        )
