"""The one file format models come in: safetensors with exactly one flat float64 vector. Nothing is ever
unpickled.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length N | N bytes JSON
| data. The header names `parameters` (F64, [d], the whole data section) and one metadata entry,
`cloister`, a JSON text. Reading checks, in this order, before anything is built from the bytes:

1. size and header length, within limits;
2. the header is JSON without duplicate keys, with those two entries and no other;
3. dtype, shape and offsets account for every byte of the file;
4. every parameter is finite.

What is not exactly that is refused, also where another safetensors reader would accept it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from cloister.errors import IntegrityError

__all__ = ["MODEL_LIMIT", "read_vector", "write_vector"]

MODEL_LIMIT = 256 << 20
_HEADER_LIMIT = 4 << 20
_TENSOR = "parameters"
_ENTRY = "cloister"


def _refuse(what: str) -> NoReturn:
    raise IntegrityError(
        f"not a model file of Cloister: {what}", fix="Only safetensors files made by a release are read"
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse("a key stands in the header twice")
    return result


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
    # 1. size and header length
    if not 8 < len(data) <= MODEL_LIMIT:
        _refuse(f"its size is not within 9 and {MODEL_LIMIT} bytes")
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_HEADER_LIMIT, len(data) - 8):
        _refuse("its first 8 bytes are not the length of a safetensors header")
    # 2. the header's entries
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        _refuse("its header is not JSON")
    if not isinstance(header, dict) or header.keys() != {"__metadata__", _TENSOR}:
        _refuse(f"its header must name '{_TENSOR}' and '__metadata__', and nothing else")
    metadata, tensor = header["__metadata__"], header[_TENSOR]
    if not isinstance(metadata, dict) or metadata.keys() != {_ENTRY} or not isinstance(metadata[_ENTRY], str):
        _refuse(f"its metadata must have the one entry '{_ENTRY}'")
    # 3. dtype, shape, offsets
    size = len(data) - 8 - length
    expected = {"dtype": "F64", "shape": [size // 8], "data_offsets": [0, size]}
    # compared as text too: to Python 1, 1.0 and true are equal
    same = tensor == expected and json.dumps(tensor, sort_keys=True) == json.dumps(expected, sort_keys=True)
    if not same or size % 8 or not size:
        _refuse(f"'{_TENSOR}' must be one F64 vector that fills the file")
    parameters = np.frombuffer(data, dtype="<f8", offset=8 + length).astype(np.float64)
    # 4. finite
    if not np.isfinite(parameters).all():
        _refuse("a parameter is not a finite number")
    return parameters, metadata[_ENTRY]
