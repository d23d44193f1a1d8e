"""What stands between Arrow's Parquet encryption and the key service: the key client and the key material.

The library wants a client that wraps and unwraps data keys, and a file system in which the key material
(the wrapped data keys) lies. The client here serves one KEK and no other, so a file of another dataset is
refused by the name of its key already. The file system here is a dictionary in memory, so that what the
library reads is what was digested before, and what it writes is written by us.
"""

from __future__ import annotations

import base64
import errno
import io
from typing import NoReturn

import msgspec
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet.encryption as pq_encryption

from cloister.errors import IntegrityError
from cloister.types import KeyService

__all__ = ["KeyClient", "KeyMaterial"]


class KeyClient(pq_encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
    """Wraps and unwraps data keys under one KEK.

    An error inside the library's calls may end the process, so that nothing may fail there: a reader first
    calls `prepare` with the key material, and the library then finds the data keys in memory.

    Args:
        keys: the key service.
        kek_id: the only KEK that is served.

    Attributes:
        asked: the wrapped data keys that the library asked for since the list was last cleared.
    """

    def __init__(self, keys: KeyService, kek_id: str) -> None:
        super().__init__()
        self._keys = keys
        self._kek_id = kek_id
        self._opened: dict[str, bytes] = {}
        self.asked: list[str] = []

    def prepare(self, material: bytes) -> frozenset[str]:
        """Unwrap the data keys of a file's key material; return them, wrapped, without the footer's.

        Raises:
            IntegrityError: this is no key material under this KEK alone, with different keys for footer and
                columns.
            InputError: the key service does not have the KEK.
        """
        entries = _entries(material)
        wrapped = {name: entry.wrappedDEK for name, entry in entries.items()}
        if (
            "footerKey" not in wrapped
            or len(set(wrapped.values())) != len(wrapped)
            or any(entry.masterKeyID != self._kek_id or entry.doubleWrapping for entry in entries.values())
        ):
            raise _not_ours()
        for text in wrapped.values():
            self._opened[text] = self._keys.unwrap(self._kek_id, _decode(text))
        return frozenset(text for name, text in wrapped.items() if name != "footerKey")

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        """Return the wrapped data key in base64."""
        return base64.b64encode(self._keys.wrap(self._kek_id, key_bytes))

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        """Return a data key that was prepared."""
        self.asked.append(wrapped_key)
        return self._opened[wrapped_key]

    def forget(self) -> None:
        """Drop the data keys from memory."""
        self._opened.clear()


class _Entry(msgspec.Struct, frozen=True):
    """One wrapped key in the library's key material, as far as it is checked."""

    masterKeyID: str  # noqa: N815  # these are the names in the file
    wrappedDEK: str  # noqa: N815
    doubleWrapping: bool  # noqa: N815


def _entries(material: bytes) -> dict[str, _Entry]:
    try:
        texts = msgspec.json.decode(material, type=dict[str, str])
        return {name: msgspec.json.decode(text, type=_Entry) for name, text in texts.items()}
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_ours() from None


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise _not_ours() from None


def _not_ours() -> IntegrityError:
    return IntegrityError("a dataset's key material is not its own", fix="Restore its folder from a backup")


class _Out(io.BytesIO):
    """A buffer that hands its content over when it is closed."""

    def __init__(self, files: dict[str, bytes], path: str) -> None:
        super().__init__()
        self._files, self._path = files, path

    def close(self) -> None:
        if not self.closed:
            self._files[self._path] = self.getvalue()
        super().close()


def _refuse(*_: object) -> NoReturn:
    raise OSError(errno.EROFS, "the key material is only read and written")


class KeyMaterial(pa_fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Files in memory, for the library to keep its key material in.

    Args:
        files: name to content; what the library writes is added.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def get_type_name(self) -> str:
        """Return a name for messages."""
        return "memory"

    def normalize_path(self, path: str) -> str:
        """Return the path as it is."""
        return path

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Return the content of a file. Raises FileNotFoundError."""
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, "no such key material")
        return pa.BufferReader(self._files[path])

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Return a stream whose content is kept when it is closed."""
        return pa.PythonFile(_Out(self._files, path), "w")

    open_input_stream = open_input_file
    open_append_stream = get_file_info = get_file_info_selector = create_dir = _refuse
    delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _refuse
