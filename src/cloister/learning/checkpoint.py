"""Arrays of a study on disk, readable by its members alone.

File: magic | AES-256-GCM of safetensors under the study's key. The associated data binds magic, plan and
round, so a checkpoint of another plan or round does not open: the reader says which round it expects, and an
older file put back in its place is refused. The file is replaced as one step. Models are large: arrays are
encrypted from where they lie, and what is read lies in memory once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import NONCE_BYTES, TAG_BYTES, Buffer, framed
from cloister.crypto.aead import decrypt_parts, encrypt_parts
from cloister.errors import InputError, IntegrityError
from cloister.files import atomic_file

__all__ = ["load_checkpoint", "save_checkpoint"]

_MAGIC = b"cloister checkpoint v1\n"
_MAX_BYTES = 2**31 - 1
_MAX_HEADER: Final = 1 << 20
_PART: Final = 1 << 20
_TYPES: Final = {"F64": "<f8", "F32": "<f4"}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def save_checkpoint(
    path: Path, key: bytes, *, plan_digest: bytes, round: int, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays as they are after a round.

    Args:
        path: the file; replaced.
        key: 32 bytes, the study's own.
        plan_digest: 32 bytes.
        round: how many rounds are done.
        arrays: float64 or float32, by name; at most 2 GiB in all.

    Raises:
        InputError: an array is neither, or they are too large.
        StorageError: the file system refused; the old checkpoint is intact.
    """
    if any(array.dtype not in (np.float64, np.float32) for array in arrays.values()):
        raise InputError("a checkpoint holds float64 and float32 alone", fix="Convert the array first")
    if sum(array.nbytes for array in arrays.values()) + _MAX_HEADER > _MAX_BYTES:
        raise InputError(f"a checkpoint is longer than {_MAX_BYTES} bytes", fix="Train fewer parameters")
    with atomic_file(path, mode=0o600) as file:
        file.write(_MAGIC)
        for part in encrypt_parts(key, _stored(arrays), _bound_to(plan_digest, round)):
            file.write(part)


def load_checkpoint(path: Path, key: bytes, *, plan_digest: bytes, round: int) -> dict[str, NDArray[Any]]:
    """Return the arrays that `save_checkpoint` wrote under the same key, plan and round.

    Raises:
        InputError: the file cannot be read.
        IntegrityError: it is not that checkpoint, or was altered.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(f"the checkpoint is longer than {_MAX_BYTES} bytes", where=str(path))
        with path.open("rb") as file:
            length = size - len(_MAGIC) - NONCE_BYTES - TAG_BYTES
            if file.read(len(_MAGIC)) != _MAGIC or length < 0:
                raise IntegrityError(
                    "not a checkpoint of this version", where=str(path), fix="Resume from another one"
                )
            plain = bytearray(length)
            decrypt_parts(key, file, _bound_to(plan_digest, round), memoryview(plain))
    except OSError as error:
        raise InputError(
            f"cannot read the checkpoint: {error.strerror}", where=str(path), fix="Check the path"
        ) from error
    try:
        return _read(plain)
    except (ValueError, msgspec.MsgspecError) as error:
        raise _malformed(path) from error


def _stored(arrays: Mapping[str, NDArray[Any]]) -> Iterator[Buffer]:
    """Yield the safetensors file of the arrays, a part at a time."""
    kinds = {np.dtype(kind): name for name, kind in _TYPES.items()}
    header, end = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):  # as the library has them
        start, end = end, end + arrays[name].nbytes
        kind = kinds[arrays[name].dtype.newbyteorder("<")]
        header[name] = {"dtype": kind, "shape": list(arrays[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, entry in header.items():
        flat = np.ascontiguousarray(arrays[name], _TYPES[str(entry["dtype"])]).reshape(-1).view(np.uint8)
        for at in range(0, flat.size, _PART):
            yield flat[at : at + _PART].data


def _read(plain: bytearray) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file, where they lie in it. Raises ValueError where it is none."""
    size = int.from_bytes(plain[:8], "little")
    if not 0 < size <= min(_MAX_HEADER, len(plain) - 8):
        raise ValueError("no header")
    header = msgspec.json.decode(plain[8 : 8 + size], type=dict[str, _Entry])
    arrays = {}
    for name, entry in header.items():
        start, stop = (8 + size + offset for offset in entry.data_offsets)
        dtype = np.dtype(_TYPES.get(entry.dtype, "V0"))
        count = int(np.prod(entry.shape, dtype=object)) if entry.shape else 1
        if not dtype.itemsize or not 8 + size <= start <= stop <= len(plain):
            raise ValueError("no array of floats")
        if min(entry.shape, default=0) < 0 or stop - start != count * dtype.itemsize:
            raise ValueError("another shape than bytes")
        flat = np.frombuffer(plain, dtype, count, start)
        arrays[name] = flat.astype(dtype.newbyteorder("="), copy=False).reshape(entry.shape)
    return arrays


def _bound_to(plan_digest: bytes, round: int) -> bytes:
    return framed(_MAGIC, plan_digest, round.to_bytes(8, "big"))


def _malformed(path: Path) -> IntegrityError:
    return IntegrityError(
        "the checkpoint does not hold arrays", where=str(path), fix="Resume from another one"
    )
