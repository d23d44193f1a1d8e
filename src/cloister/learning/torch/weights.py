"""safetensors into tensors of torch, one tensor at a time: no file is ever held as a whole beside them.

The header is untrusted: 8 bytes of length, then JSON. It is read strictly, by the format's own rules: at most
100 MB, no tensor twice, shapes that fit the bytes, bytes that cover the file without hole or overlap. Formats
that torch cannot compute with are refused; float16 becomes float32, for a CPU computes in it slowly and
overflows; bfloat16 stays.

Source: https://huggingface.co/docs/safetensors, section Format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta

from cloister.errors import InputError
from cloister.learning.modelfiles.files import ModelFiles

__all__ = ["read_weights", "stored"]

_MAX_HEADER: Final = 100_000_000
_MAX_ELEMENTS: Final = 1 << 48
_TYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SINGLE: Final = (torch.float16, torch.float64)


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 48)]], Meta(max_length=8)]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


def read_weights(files: ModelFiles, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return every tensor of these files by name, in memory of its own.

    Raises:
        InputError: a header breaks the format, a tensor is there twice, or its type cannot be computed with.
        IntegrityError: as reading does.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        for key, tensor in _tensors(files, name):
            if key in tensors:
                raise InputError("two files of the model hold the same tensor", where=name)
            tensors[key] = tensor
    return tensors


def stored(files: ModelFiles, names: tuple[str, ...]) -> tuple[int, int]:
    """Return how many tensors these files hold, and how many numbers; only headers are read.

    Raises:
        InputError: a header breaks the format, or a type cannot be computed with.
        IntegrityError: as reading does.
    """
    found = [entry for name in names for entry, _, _ in _entries(files, name).values()]
    return len(found), sum(math.prod(entry.shape) for entry in found)


def _entries(files: ModelFiles, name: str) -> dict[str, tuple[_Entry, torch.dtype, int]]:
    """Return a file's tensors by name, in the order they lie in: as its header says, of which type, and from
    which byte on. Together they are all of the file."""
    size = files.size(name)
    length = int.from_bytes(files.read_at(name, 0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise _broken(name)
    try:
        header = msgspec.json.decode(files.read_at(name, 8, length), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = {key: msgspec.json.decode(raw, type=_Entry) for key, raw in header.items()}
    except (msgspec.DecodeError, RecursionError):
        raise _broken(name) from None
    found, data, reached = {}, 8 + length, 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, end = entry.data_offsets
        dtype = _TYPES.get(entry.dtype)
        if dtype is None:
            raise InputError(
                f"the weights are of a type that cannot be computed with here: {entry.dtype[:16]}",
                where=name,
                fix="Use the model in bfloat16 or float32",
            )
        whole = end - start == math.prod(entry.shape) * dtype.itemsize and data + end <= size
        if start != reached or not whole or math.prod(filter(None, entry.shape)) > _MAX_ELEMENTS:
            raise _broken(name)
        reached = end
        found[key] = entry, dtype, data + start
    if data + reached != size:
        raise _broken(name)
    return found


def _tensors(files: ModelFiles, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    for key, (entry, dtype, begin) in _entries(files, name).items():
        start, end = entry.data_offsets
        tensor = _read(files, name, begin, end - start).view(dtype).reshape(entry.shape)
        yield key, tensor.to(torch.float32) if dtype in _SINGLE else tensor


def _read(files: ModelFiles, name: str, offset: int, length: int) -> torch.Tensor:
    """Return bytes of a file as a tensor of uint8; they are written, or decrypted, straight into it."""
    tensor = torch.empty(length, dtype=torch.uint8)
    files.read_into(name, offset, tensor.numpy().data)
    return tensor


def _broken(name: str) -> InputError:
    return InputError("the weights are not safetensors", where=name, fix="Copy the model again")
