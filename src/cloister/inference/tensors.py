"""The one file format models come in: safetensors, of one flat float64 vector (a table's model), or of named
float32 tensors (a language model's). Nothing is ever unpickled.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length N | N bytes JSON
| data. The header names `parameters` (F64, [d], the whole data section), or one tensor and more by names of
printable ASCII; and one metadata entry, `cloister`, a JSON text. Reading checks, in this order, before
anything is built from the bytes:

1. size and header length, within limits;
2. the header is JSON without duplicate keys, with those entries and no other;
3. dtypes, shapes and offsets account for every byte of the file; named tensors lie in the order of their
   names;
4. every parameter is finite; of named tensors `learning.language.adapter` says which is not.

What is not exactly that is refused, also where another safetensors reader would accept it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NoReturn

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from safetensors.numpy import save

from cloister.errors import IntegrityError

__all__ = [
    "MODEL_LIMIT",
    "TENSORS_LIMIT",
    "metadata_of",
    "read_tensors",
    "read_vector",
    "write_tensors",
    "write_vector",
]

MODEL_LIMIT: Final = 256 << 20
"""Bytes of a table's model."""
TENSORS_LIMIT: Final = 1 << 30
"""Bytes of a language model's file: a quarter of a billion numbers."""
_HEADER_LIMIT = 4 << 20
_TENSOR = "parameters"
_ENTRY = "cloister"
_METADATA = "__metadata__"
_MOST_TENSORS = 1 << 16

_Extent = Annotated[int, Meta(ge=1, lt=1 << 40)]
_Offset = Annotated[int, Meta(ge=0, lt=1 << 40)]
_Name = Annotated[str, Meta(pattern=r"^[!-~]{1,512}\Z")]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A named tensor in a header."""

    dtype: Literal["F32"]
    shape: Annotated[tuple[_Extent, ...], Meta(max_length=8)]
    data_offsets: tuple[_Offset, _Offset]


_entries: msgspec.json.Decoder[dict[_Name, _Entry]] = msgspec.json.Decoder(dict[_Name, _Entry])


def _refuse(what: str) -> NoReturn:
    raise IntegrityError(
        f"not a model file of Cloister: {what}", fix="Only safetensors files made by a release are read"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse("a key stands in the header twice")
    return result


def _header(data: bytes, limit: int) -> tuple[dict[str, Any], str, int]:
    """Return the header's tensors, the metadata text, and where the data begins: steps 1 and 2."""
    # 1. size and header length
    if not 8 < len(data) <= limit:
        _refuse(f"its size is not within 9 and {limit} bytes")
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_HEADER_LIMIT, len(data) - 8):
        _refuse("its first 8 bytes are not the length of a safetensors header")
    # 2. the header's entries
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        _refuse("its header is not JSON")
    if not isinstance(header, dict) or _METADATA not in header:
        _refuse(f"its header must have '{_METADATA}'")
    metadata = header.pop(_METADATA)
    if not isinstance(metadata, dict) or metadata.keys() != {_ENTRY} or not isinstance(metadata[_ENTRY], str):
        _refuse(f"its metadata must have the one entry '{_ENTRY}'")
    return header, metadata[_ENTRY], 8 + length


def metadata_of(data: bytes) -> str:
    """Return the metadata text of either kind of file; its tensors are not looked at.

    Raises:
        IntegrityError: steps 1 and 2 refuse it.
    """
    return _header(data, TENSORS_LIMIT)[1]


def write_vector(parameters: NDArray[np.float64], metadata: str) -> bytes:
    """Return the bytes of a safetensors file.

    Args:
        parameters: float64[d], finite, d >= 1.
        metadata: text kept in the header.

    Raises:
        IntegrityError: the reader would refuse it.
    """
    data: bytes = save({_TENSOR: np.ascontiguousarray(parameters, dtype="<f8")}, metadata={_ENTRY: metadata})
    read_vector(data)
    return data


def read_vector(data: bytes) -> tuple[NDArray[np.float64], str]:
    """Return (parameters float64[d], metadata text) of a safetensors file, checked as the module says.

    Raises:
        IntegrityError: naming what does not fit.
    """
    header, metadata, begin = _header(data, MODEL_LIMIT)
    if header.keys() != {_TENSOR}:
        _refuse(f"its header must name '{_TENSOR}' and '{_METADATA}', and nothing else")
    # 3. dtype, shape, offsets
    size = len(data) - begin
    tensor, expected = header[_TENSOR], {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, size]}
    # compared as text too: to Python 1, 1.0 and true are equal
    same = tensor == expected and json.dumps(tensor, sort_keys=True) == json.dumps(expected, sort_keys=True)
    if not same or size % 8 or not size:
        _refuse(f"'{_TENSOR}' must be one F64 vector that fills the file")
    parameters = np.frombuffer(data, dtype="<f8", offset=begin).astype(np.float64)
    # 4. finite
    if not np.isfinite(parameters).all():
        _refuse("a parameter is not a finite number")
    return parameters, metadata


def write_tensors(tensors: Mapping[str, NDArray[np.float32]], metadata: str) -> bytes:
    """Return the bytes of a safetensors file of named tensors; the same tensors give the same bytes.

    Args:
        tensors: float32 by name, each of at least one element.
        metadata: text kept in the header.

    Raises:
        IntegrityError: the reader would refuse it.
    """
    data: bytes = save(
        {name: np.ascontiguousarray(tensors[name], dtype="<f4") for name in sorted(tensors)},
        metadata={_ENTRY: metadata},
    )
    read_tensors(data)
    return data


def read_tensors(data: bytes) -> tuple[dict[str, NDArray[np.float32]], str]:
    """Return (tensors by name, metadata text) of a safetensors file, steps 1 to 3.

    The tensors are views of `data`: they cannot be written, and no second copy is made.

    Raises:
        IntegrityError: naming what does not fit.
    """
    header, metadata, begin = _header(data, TENSORS_LIMIT)
    # 3. dtypes, shapes, offsets
    if not 1 <= len(header) <= _MOST_TENSORS:
        _refuse(f"it must have 1 to {_MOST_TENSORS} tensors")
    try:
        entries = _entries.decode(json.dumps(header))  # strict about 1, 1.0 and true
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        _refuse(f"its header is not one of named float32 tensors: {error}")
    found, reached = {}, 0
    for name in sorted(entries):
        entry = entries[name]
        size = 4 * math.prod(entry.shape)
        if entry.data_offsets != (reached, reached + size) or begin + reached + size > len(data):
            _refuse(f"tensor {name[:200]!r} does not lie where its name and shape put it")
        flat = np.frombuffer(data, dtype="<f4", count=size // 4, offset=begin + reached)
        found[name] = flat.reshape(entry.shape)
        reached += size
    if begin + reached != len(data):
        _refuse("its tensors do not fill the file")
    return found, metadata
