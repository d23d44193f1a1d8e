"""A file of encrypted Parquet on one descriptor, checked against its digests before anybody parses it.

Order:
1. the file is opened once, and no link is followed;
2. it has the expected length, and the encrypted magic at both ends: a plain file has another one;
3. the footer has the expected digest, and so has the key material beside it.

Afterwards the footer and the key material are served from the memory that was digested. The pages between
are not covered by the checks here: they are served from the descriptor as they are, and whoever decrypts
them authenticates them.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto import constant_time_equal, digest_file, sha256
from cloister.errors import IntegrityError
from cloister.files import read_bytes

__all__ = ["DATA_NAME", "KEY_MATERIAL_NAME", "CheckedFile", "FileDigests", "altered", "digest_files"]

DATA_NAME: Final = "data.parquet"
KEY_MATERIAL_NAME: Final = f"_KEY_MATERIAL_FOR_{DATA_NAME}.json"  # where the library looks for it
_MAX_KEY_MATERIAL: Final = 64 << 20
_MAX_FOOTER: Final = 256 << 20
_MAGIC: Final = b"PARE"
_TAIL_BYTES: Final = 8  # the footer's length in four bytes, and the magic

_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class FileDigests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What pins an encrypted file: its length in bytes, and SHA-256 digests in hexadecimal.

    The footer is taken with its length and the closing magic.
    """

    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: _Hex32
    footer_sha256: _Hex32
    key_material_sha256: _Hex32


class CheckedFile:
    """A dataset's data and key material, opened and checked.

    Args:
        folder: where both lie.
        digests: what they must be, from a signed manifest.

    Attributes:
        material: the key material.

    Raises:
        IntegrityError: a check fails; the message says which.
    """

    def __init__(self, folder: Path, digests: FileDigests) -> None:
        self._folder, self._digests = folder, digests
        self._descriptor = _open(folder / DATA_NAME)  # 1
        try:
            self._footer = self._check_data()  # 2, 3
            self.material = self._check_material()  # 3
        except BaseException:
            self.close()
            raise

    def reader(self) -> io.RawIOBase:
        """Return a readable, seekable view of the data; it does not close the descriptor."""
        return _View(self._descriptor, self._digests.size, self._footer)

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _check_data(self) -> bytes:
        size = os.fstat(self._descriptor).st_size
        if size != self._digests.size:
            raise altered(self._folder, f"its data has {size} bytes instead of {self._digests.size}")
        tail = _read_at(self._descriptor, max(size - _TAIL_BYTES, 0), _TAIL_BYTES)
        if _read_at(self._descriptor, 0, 4) != _MAGIC or tail[4:] != _MAGIC:
            raise altered(self._folder, "its data is not an encrypted Parquet file")
        length = int.from_bytes(tail[:4], "little") + _TAIL_BYTES
        if length > min(size, _MAX_FOOTER):
            raise altered(self._folder, "its footer's length is out of range")
        footer = _read_at(self._descriptor, size - length, length)
        if not _same(footer, self._digests.footer_sha256):
            raise altered(self._folder, "its footer is not the one that was signed")
        return footer

    def _check_material(self) -> bytes:
        path = self._folder / KEY_MATERIAL_NAME
        material = read_bytes(path, limit=_MAX_KEY_MATERIAL, what="key material") if path.is_file() else b""
        if not _same(material, self._digests.key_material_sha256):
            raise altered(self._folder, "its key material is missing or not the one that was signed")
        return material


class _View(io.RawIOBase):
    """A file of which the end comes from memory and the rest from a descriptor."""

    def __init__(self, descriptor: int, size: int, end: bytes) -> None:
        super().__init__()
        self._descriptor, self._size, self._end = descriptor, size, end
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the start, the position or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""
        start = min(self._position, self._size)
        stop = self._size if size < 0 else min(start + size, self._size)
        border = self._size - len(self._end)
        data = _read_at(self._descriptor, start, min(stop, border) - start)
        if stop > border:
            data += self._end[max(start - border, 0) : stop - border]
        self._position = start + len(data)
        return data


def altered(folder: Path, what: str) -> IntegrityError:
    """Return the error that says a dataset is not what was signed."""
    return IntegrityError(
        f"the dataset was altered: {what}", where=str(folder), fix="Restore its folder from a backup"
    )


def digest_files(folder: Path) -> FileDigests:
    """Return the digests of a data file and its key material, freshly written."""
    path = folder / DATA_NAME
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(_read_at(descriptor, size - _TAIL_BYTES, 4), "little") + _TAIL_BYTES
        footer = _read_at(descriptor, size - length, length)
    finally:
        os.close(descriptor)
    material = read_bytes(folder / KEY_MATERIAL_NAME, limit=_MAX_KEY_MATERIAL, what="key material")
    return FileDigests(size, digest_file(path).hex(), sha256(footer).hex(), sha256(material).hex())


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: a pipe put in the file's place must not hang; the length check refuses it
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise altered(path.parent, f"its data cannot be opened ({error.strerror})") from None


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Return up to `length` bytes at `offset`; fewer only at the end of the file."""
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _same(data: bytes, digest: str) -> bool:
    return constant_time_equal(sha256(data), bytes.fromhex(digest))
