"""Arrays of a study on disk, readable by its members alone.

File: magic | AES-256-GCM of safetensors under the study's key. The associated data binds magic, plan and
round, so a checkpoint of another plan or round does not open: the reader says which round it expects, and an
older file put back in its place is refused. The file is replaced as one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloister.crypto import decrypt, encrypt, framed
from cloister.errors import InputError, IntegrityError
from cloister.files import read_bytes, write_atomic

__all__ = ["load_checkpoint", "save_checkpoint"]

_MAGIC = b"cloister checkpoint v1\n"
_MAX_BYTES = 2**31 - 1


def save_checkpoint(
    path: Path, key: bytes, *, plan_digest: bytes, round: int, arrays: Mapping[str, NDArray[np.float64]]
) -> None:
    """Write arrays as they are after a round.

    Args:
        path: the file; replaced.
        key: 32 bytes, the study's own.
        plan_digest: 32 bytes.
        round: how many rounds are done.
        arrays: float64, by name; at most 2 GiB in all.

    Raises:
        InputError: an array is not float64, or they are too large.
        StorageError: the file system refused; the old checkpoint is intact.
    """
    if any(array.dtype != np.float64 for array in arrays.values()):
        raise InputError("a checkpoint holds float64 alone", fix="Convert the array first")
    plain = save({name: np.ascontiguousarray(array, dtype="<f8") for name, array in arrays.items()})
    write_atomic(path, _MAGIC + encrypt(key, plain, _bound_to(plan_digest, round)), mode=0o600)


def load_checkpoint(
    path: Path, key: bytes, *, plan_digest: bytes, round: int
) -> dict[str, NDArray[np.float64]]:
    """Return the arrays that `save_checkpoint` wrote under the same key, plan and round.

    Raises:
        InputError: the file cannot be read.
        IntegrityError: it is not that checkpoint, or was altered.
    """
    data = memoryview(read_bytes(path, limit=_MAX_BYTES, what="checkpoint"))
    if data[: len(_MAGIC)] != _MAGIC:
        raise IntegrityError(
            "not a checkpoint of this version", where=str(path), fix="Resume from another one"
        )
    plain = decrypt(key, data[len(_MAGIC) :], _bound_to(plan_digest, round))
    try:
        arrays: dict[str, NDArray[np.float64]] = load(plain)
    except SafetensorError as error:
        raise _malformed(path) from error
    if any(array.dtype != np.float64 for array in arrays.values()):
        raise _malformed(path)
    return arrays


def _bound_to(plan_digest: bytes, round: int) -> bytes:
    return framed(_MAGIC, plan_digest, round.to_bytes(8, "big"))


def _malformed(path: Path) -> IntegrityError:
    return IntegrityError(
        "the checkpoint does not hold float64 arrays", where=str(path), fix="Resume from another one"
    )
