"""One value, one sequence of bytes: JSON canonicalisation (RFC 8785), for what is hashed or signed.

Keys are sorted by UTF-16 code units, numbers are written as ECMAScript writes them, nothing is optional.
Integers beyond +-2**53, NaN, infinities, lone surrogates and keys that are not strings are refused: JSON has
no agreed form for them.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import msgspec

from cloister.errors import InputError

__all__ = ["canonical_bytes"]

_MAX_INTEGER: Final = 2**53
_MAX_DEPTH: Final = 64


def canonical_bytes(value: Any) -> bytes:
    """Return the canonical UTF-8 JSON of `value`.

    Args:
        value: None, bool, int, float, str, list, tuple, dict with str keys, or a `msgspec.Struct` (bytes
            fields become base64), nested at most 64 deep.

    Raises:
        InputError: something in it has no canonical form.
    """
    try:
        return _write(value, 0).encode()
    except UnicodeEncodeError:
        raise InputError(
            "a text holds half a surrogate pair, which has no canonical form", fix="Correct the text"
        ) from None


def _write(value: Any, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise InputError(f"a value is nested more than {_MAX_DEPTH} deep", fix="Flatten it")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise InputError("an integer exceeds 2**53 and has no canonical form", fix="Write it as text")
        return str(int(value))
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_write(item, depth + 1) for item in value)}]"
    if isinstance(value, dict):
        return _object(value, depth)
    if isinstance(value, msgspec.Struct):
        return _write(msgspec.to_builtins(value), depth)
    raise InputError(
        f"a {type(value).__name__} has no canonical form", fix="Use JSON types or a msgspec.Struct"
    )


def _object(value: dict[Any, Any], depth: int) -> str:
    if not all(isinstance(key, str) for key in value):
        raise InputError("a key is not a text and has no canonical form", fix="Use text keys")
    # big-endian UTF-16 sorts as its code units do (section 3.2.3); half a surrogate is refused at the end
    keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(f"{_write(key, depth + 1)}:{_write(value[key], depth + 1)}" for key in keys) + "}"


def _number(value: float) -> str:
    """Write a float as ECMAScript does: the shortest digits, which Python's repr finds too, laid out anew."""
    if not math.isfinite(value):
        raise InputError("NaN and infinity have no canonical form", fix="Leave the field out or use null")
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    written = (whole + fraction).lstrip("0")
    point = len(written) - len(fraction) + int(exponent or 0)  # value = 0.digits * 10**point
    digits = written.rstrip("0")
    sign = "-" if value < 0 else ""
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        return sign + padded[:point] + ("." + padded[point:] if len(padded) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = "." + digits[1:] if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"
