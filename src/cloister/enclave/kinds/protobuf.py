"""A strict reader of protocol buffers: one value, one sequence of bytes.

Source: protobuf.dev, "Encoding". Of what the format allows this reader takes what serialisers write: variable
integers in their shortest form, fields in ascending order, nothing but integers (wire type 0) and bytes (2).
Unknown and repeated fields are for the caller to refuse, which names the fields it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloister.errors import InputError

__all__ = ["fields", "one_bytes", "one_int"]

Field = int | bytes


def fields(data: bytes, known: Mapping[int, type]) -> dict[int, list[Field]]:
    """Return the values of every field of a message, in order.

    Args:
        data: the message.
        known: `int` or `bytes` by the number of each field that is accepted.

    Raises:
        InputError: malformed, or a field that is not known or of another type.
    """
    found: dict[int, list[Field]] = {}
    at = last = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number < last or known.get(number) is not {0: int, 2: bytes}.get(wire, object):
            raise InputError("a message has a field that is not expected", where=f"field {number}")
        value: Field
        value, at = _varint(data, at)
        if wire == 2:
            start, at = at, at + value
            if at > len(data):
                raise InputError("a message is cut short", where=f"field {number}")
            value = data[start:at]
        found.setdefault(number, []).append(value)
        last = number
    return found


def one_int(values: Sequence[Field] | None, name: str) -> int:
    """Return the one integer among a field's values. Raises InputError: none, or several."""
    if values is None or len(values) != 1 or not isinstance(values[0], int):
        raise InputError("a message must have a field once", where=name)
    return values[0]


def one_bytes(values: Sequence[Field] | None, name: str) -> bytes:
    """Return the one byte string among a field's values. Raises InputError: none, or several."""
    if values is None or len(values) != 1 or not isinstance(values[0], bytes):
        raise InputError("a message must have a field once", where=name)
    return values[0]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at == len(data) or shift > 63:
            raise InputError("a message is cut short, or a number in it is too long", where=f"byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
        shift += 7
    if (shift and not byte) or value >= 1 << 64:
        raise InputError("a number in a message is not in its shortest form", where=f"byte {at}")
    return value, at
