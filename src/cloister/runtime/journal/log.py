"""An append-only file of encrypted records, for one process at a time.

    header   magic | id | generation | salt | GCM tag over these
    record   sealed (length | salt | label) under the record's number | its pieces (`pieces.py`)

The key that is given is never used itself: each file has its own, from it and the header's salt. A record
that is moved, repeated, altered, left out from the middle, or taken from another file does not open.

A process that is killed leaves a record half-written; so does a machine that loses power, mostly as sectors
of zeros. Such a tail is cut off when the file is opened. Anything else that does not fit is an
IntegrityError. A file cut off cleanly after a record, or an old copy put in its place, looks whole: whoever
must see that keeps `generation` and `count` elsewhere; the pair only ever grows.

Nothing is on the disk before `sync`, or `replace`, returns; what was appended survives the process all the
same. When the disk is full the file is as it was before.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from cloister.crypto import NONCE_BYTES, TAG_BYTES, Buffer, HoldsSecret, decrypt, encrypt, hkdf
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.files import atomic_file
from cloister.runtime.bodies import Body, body_of
from cloister.runtime.journal.lock import locked
from cloister.runtime.journal.pieces import SALT_BYTES, opened, opened_pieces, sealed, sealed_bytes

__all__ = ["EncryptedLog"]

_MAGIC: Final = b"cloister log v1\n"
_HEADER: Final = struct.Struct(f">{len(_MAGIC)}s16sQ16s")
_HEADER_BYTES: Final = _HEADER.size + NONCE_BYTES + TAG_BYTES
LABEL_BYTES: Final = 24
_PREFIX: Final = struct.Struct(f">Q{SALT_BYTES}sB{LABEL_BYTES}s")
_PREFIX_BYTES: Final = _PREFIX.size + NONCE_BYTES + TAG_BYTES
_SECTOR: Final = bytes(512)


class EncryptedLog(HoldsSecret):
    """An open log; made by `create` or `open`.

    Attributes:
        generation: how often the records were replaced.
        count: how many records there are.
        size: bytes of the file.
    """

    def __init__(self, path: Path, key: bytes, lock: int) -> None:
        self._path, self._key, self._lock = path, key, lock
        self._file = -1
        self._file_key = b""
        self._id = b""
        self._broken = False
        self.generation = self.count = self.size = 0

    @classmethod
    def create(cls, path: Path, key: bytes) -> EncryptedLog:
        """Make an empty log.

        Args:
            path: where; beside it lies a lock file, `NAME.lock`.
            key: 32 secret bytes.

        Raises:
            InputError: there is a file, or another process works with it.
            StorageError: it cannot be written.
        """
        log = cls(path, key, locked(path.with_name(f"{path.name}.lock")))
        with log._or_closed():
            with atomic_file(path, mode=0o600, replace=False) as file:
                file.write(_new_header(key, os.urandom(16), 0)[1])
            log._load()
        return log

    @classmethod
    def open(cls, path: Path, key: bytes) -> EncryptedLog:
        """Open a log, read and check all of it, and cut off a tail that was never wholly written.

        Raises:
            InputError: there is none, or another process works with it.
            IntegrityError: it was altered, or the key is another one.
            StorageError: it cannot be read or written.
        """
        if not path.is_file():
            raise InputError("there is no such log", where=str(path), fix="Check the path")
        log = cls(path, key, locked(path.with_name(f"{path.name}.lock")))
        with log._or_closed():
            log._load()
        return log

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self._path.parent

    def append(self, record: Buffer | Body, *, label: bytes = b"") -> None:
        """Add a record; it survives the process when this returns.

        Args:
            record: read where it lies, never copied.
            label: at most 24 bytes that say what it is; sealed with it.

        Raises:
            StorageError: it cannot be written; nothing was added.
        """
        self._check_usable()
        salt, end = os.urandom(SALT_BYTES), self.size
        prefix = _prefix(self._file_key, self.count, record, salt, label)
        try:
            for piece in sealed(self._file_key, salt, record):
                end = _write(self._file, (prefix, piece), end)
                prefix = b""
        except BaseException as error:
            self._cut(self.size)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        self.size = end
        self.count += 1

    def records(self) -> Iterator[bytearray]:
        """Yield the records, oldest first; not to be mixed with `replace`.

        Raises:
            IntegrityError: the file was altered since it was opened.
        """
        for _, record in self.entries():
            yield record

    def entries(self, *, skip: bytes | None = None) -> Iterator[tuple[bytes, bytearray]]:
        """Yield labels and records, oldest first, but for those labelled `skip`, which are not opened; not to
        be mixed with `replace`.

        Raises:
            IntegrityError: the file was altered since it was opened.
        """
        position = _HEADER_BYTES
        for number in range(self.count):
            label, record, position = self._record(number, position, skip=skip)
            if record is not None:
                yield label, record
            del record  # the next one may be as large

    def sync(self) -> None:
        """Return when everything appended is on the disk. Raises StorageError."""
        self._check_usable()
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = True  # the system may have dropped what it could not write
            raise self._failed(error) from error

    def replace(self, records: Iterable[Buffer | Body | tuple[bytes, Buffer | Body]]) -> None:
        """Put these in the place of all records, as one step that is on the disk when it returns.

        Args:
            records: those without a label as they are, others as (label, record).

        Raises:
            StorageError: it cannot be written; the old ones are intact.
        """
        self._check_usable()
        key, header = _new_header(self._key, self._id, self.generation + 1)
        try:
            with atomic_file(self._path, mode=0o600) as file:
                file.write(header)
                for number, entry in enumerate(records):
                    label, record = entry if isinstance(entry, tuple) else (b"", entry)
                    salt = os.urandom(SALT_BYTES)
                    file.write(_prefix(key, number, record, salt, label))
                    for piece in sealed(key, salt, record):
                        file.write(piece)
        finally:
            if not os.path.samestat(self._path.stat(), os.fstat(self._file)):
                self._load()  # it took place, even where the folder could not be synced afterwards

    def close(self) -> None:
        """Let others open it. May be called again."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1
        self._key = self._file_key = b""

    # --- inside -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _or_closed(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def _load(self) -> None:
        """Read header and records of the file that is there now."""
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        header = os.pread(self._file, _HEADER_BYTES, 0)
        if len(header) != _HEADER_BYTES or not header.startswith(_MAGIC):
            raise IntegrityError("this file is not a log", where=str(self._path), fix="Check the path")
        _, self._id, self.generation, salt = _HEADER.unpack_from(header)
        self._file_key = _file_key(self._key, salt)
        try:
            decrypt(self._file_key, header[_HEADER.size :], header[: _HEADER.size])
        except IntegrityError:
            raise self._altered() from None
        self._scan()

    def _scan(self) -> None:
        self.count, position, end = 0, _HEADER_BYTES, os.fstat(self._file).st_size
        while position < end:
            try:
                position = self._checked(self.count, position)
            except _TornError:
                self._cut(position)
                break
            self.count += 1
        self.size = position

    def _record(
        self, number: int, position: int, *, skip: bytes | None = None
    ) -> tuple[bytes, bytearray | None, int]:
        """Return a label, its record, None where the label is `skip`, and where the next one begins."""
        with self._whole(position):
            label, salt, length, body = self._head(number, position)
            if label == skip:
                return label, None, body + sealed_bytes(length)
            record = opened(self._file_key, salt, length, _reader(self._file, body))
            return label, record, body + sealed_bytes(length)

    def _checked(self, number: int, position: int) -> int:
        """Return where the next record begins; this one opens, and is not held."""
        with self._whole(position):
            _, salt, length, body = self._head(number, position)
            for _ in opened_pieces(self._file_key, salt, length, _reader(self._file, body)):
                pass
            return body + sealed_bytes(length)

    def _head(self, number: int, position: int) -> tuple[bytes, bytes, int, int]:
        """Return a record's label, salt and length, and where its pieces begin."""
        prefix = os.pread(self._file, _PREFIX_BYTES, position)
        if len(prefix) < _PREFIX_BYTES:
            raise _TornError
        length, salt, size, label = _PREFIX.unpack(decrypt(self._file_key, prefix, _number(number)))
        body = position + _PREFIX_BYTES
        if body + sealed_bytes(length) > os.fstat(self._file).st_size:
            raise _TornError
        return label[:size], salt, length, body

    @contextlib.contextmanager
    def _whole(self, position: int) -> Iterator[None]:
        """Turn what does not open into a torn tail, or an altered file."""
        try:
            yield
        except IntegrityError:
            if self._lost_power(position):
                raise _TornError from None
            raise self._altered() from None

    def _lost_power(self, position: int) -> bool:
        """Tell whether what follows was never wholly written: a sector, or the last tag, is zeros."""
        read = _reader(self._file, position)
        before = b""
        while chunk := read(1 << 20):
            if _SECTOR in before + chunk:
                return True
            before = (before + chunk)[-len(_SECTOR) :]
        return before.endswith(bytes(TAG_BYTES))

    def _cut(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError:
            self._broken = True  # what follows the last whole record is cut when it is opened next

    def _check_usable(self) -> None:
        if self._file < 0 or self._broken:
            raise StorageError(
                "the log is closed" if self._file < 0 else "the log could not be written before",
                where=str(self._path),
                fix="Open it again",
            )

    def _failed(self, error: OSError) -> StorageError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return StorageError(
            f"cannot write: {reason}",
            where=str(self._path),
            fix="Free space; what was written before is whole",
        )

    def _altered(self) -> IntegrityError:
        return IntegrityError(
            "the log was altered, or its key is another one", where=str(self._path), fix="Bring it back"
        )


class _TornError(Exception):
    """The rest of the file was never wholly written."""


def _file_key(key: bytes, salt: bytes) -> bytes:
    return hkdf(key, salt=salt, info=b"cloister/journal/file/v1")


def _new_header(key: bytes, identity: bytes, generation: int) -> tuple[bytes, bytes]:
    """Return a fresh file key, and the header that stands for it."""
    salt = os.urandom(16)
    header = _HEADER.pack(_MAGIC, identity, generation, salt)
    file_key = _file_key(key, salt)
    return file_key, header + encrypt(file_key, b"", header)


def _prefix(key: bytes, number: int, record: Buffer | Body, salt: bytes, label: bytes) -> bytes:
    if len(label) > LABEL_BYTES:
        raise InputError(f"a label has {len(label)} bytes", fix=f"Take at most {LABEL_BYTES}")
    plain = _PREFIX.pack(body_of(record).size, salt, len(label), label)
    return encrypt(key, plain, _number(number))


def _number(number: int) -> bytes:
    return b"record" + number.to_bytes(8, "big")


def _write(file: int, parts: tuple[Buffer, ...], position: int) -> int:
    """Write all of it at `position`; return where it ends."""
    written = os.pwritev(file, parts, position)
    due = sum(len(part) for part in parts)
    while written < due:  # the disk is nearly full, or a signal came
        rest = b"".join(parts)[written:]
        written += os.pwrite(file, rest, position + written)
    return position + due


def _reader(file: int, position: int) -> Callable[[int], bytes]:
    """Return a function that reads on from a position."""

    def read(size: int) -> bytes:
        nonlocal position
        data = os.pread(file, size, position)
        position += len(data)
        return data

    return read
