"""One encrypted file of a sealed model: its key, its chunks, and how it is read; see `sealed` for the whole.

    key of a file      HKDF(data key, salt = SHA-256 of model id, digest, number, name and size, framed)
    chunk of a file    1 MiB of plaintext (the last: less, and none in an empty file) under AES-256-GCM: the
                       nonce is its number, the associated data number and "last or not"

A file is opened once, by a name of the format and never by one that a manifest chose. It is no link, a
regular file, and has exactly the length that its size makes, before anything is allocated for it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cloister.crypto import TAG_BYTES, HoldsSecret, framed, hkdf, sha256
from cloister.crypto.aead import Numbered
from cloister.errors import InputError, IntegrityError
from cloister.inference.models.manifest import CHUNK, SealedFile, chunks_of, encrypted_size, stored_name

__all__ = ["EncryptedFile", "altered", "chunk_label", "commitment", "file_key"]

_COMMIT: Final = b"cloister/model/v1/commitment"
_FILE: Final = b"cloister/model/v1/file"
_CHUNK: Final = b"cloister/model/v1/chunk"


def commitment(data_key: bytes) -> bytes:
    """Return the 32 bytes by which a manifest commits to a data key."""
    return hkdf(data_key, info=_COMMIT)


def file_key(data_key: bytes, model_id: str, digest: str, number: int, name: str, size: int) -> bytes:
    """Return the 32-byte key of one file of one sealing; see the module's docstring."""
    place = (number.to_bytes(4, "big"), name.encode(), size.to_bytes(8, "big"))
    salt = sha256(framed(bytes.fromhex(model_id), bytes.fromhex(digest), *place))
    return hkdf(data_key, info=_FILE, salt=salt)


def chunk_label(number: int, *, last: bool) -> bytes:
    """Return the associated data of a chunk."""
    return _CHUNK + number.to_bytes(8, "big") + bytes([last])


def altered(folder: Path | str, what: str) -> IntegrityError:
    """Return the error that says a sealed model is not what was sealed."""
    return IntegrityError(
        f"the sealed model was altered: {what}", where=str(folder), fix="Restore its folder from a backup"
    )


class EncryptedFile(HoldsSecret):
    """An encrypted file, open.

    Args:
        folder: the sealed model's.
        number: which of its files.
        file: what the manifest says of it.

    Attributes:
        name: in the model.
        size: bytes in the clear.

    Raises:
        IntegrityError: it is not there, or not such a file.
    """

    __slots__ = ("_cipher", "_descriptor", "name", "size")

    def __init__(self, folder: Path, number: int, file: SealedFile) -> None:
        self.name, self.size = file.name, file.size
        self._cipher: Numbered | None = None
        self._descriptor = _opened(folder, stored_name(number))
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != encrypted_size(file.size):
            self.close()
            raise altered(folder, f"{stored_name(number)} is no file, or not of the length that was signed")

    def unlock(self, key: bytes) -> None:
        """Take the key that `file_key` gave."""
        self._cipher = Numbered(key)

    def length(self, number: int) -> int:
        """Return the bytes of a chunk in the clear."""
        return min(CHUNK, self.size - number * CHUNK)

    def chunk_into(self, number: int, out: memoryview, scratch: memoryview) -> None:
        """Write a chunk to `out`, which has exactly its length; `scratch` has room for it and its tag.

        Raises:
            InputError: it cannot be read.
            IntegrityError: it does not open; `out` is zeros then, or untouched.
        """
        if self._cipher is None or self._descriptor < 0:
            raise InputError("the model is closed", where=self.name, fix="Open it again")
        sealed = scratch[: len(out) + TAG_BYTES]
        last = number == chunks_of(self.size) - 1
        try:
            count = os.preadv(self._descriptor, [sealed], number * (CHUNK + TAG_BYTES))
        except OSError as error:
            raise InputError(
                "cannot read a file of the model", where=self.name, fix="Check the disk"
            ) from error
        if count != len(sealed):
            raise altered(self.name, "it was cut while it was read")
        try:
            self._cipher.open_into(number, sealed, chunk_label(number, last=last), out)
        except IntegrityError:
            raise altered(self.name, f"chunk {number} does not open") from None

    def close(self) -> None:
        """Close it and drop its key; may be called again."""
        descriptor, self._descriptor, self._cipher = self._descriptor, -1, None
        if descriptor >= 0:
            os.close(descriptor)


def _opened(folder: Path, name: str) -> int:
    try:
        # O_NONBLOCK: a pipe put in the file's place must not hang; the check of its kind refuses it
        return os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise altered(folder, f"{name} cannot be opened ({os.strerror(error.errno or 0)})") from None
