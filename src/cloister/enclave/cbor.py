"""The part of CBOR (RFC 8949) that signed documents are made of, read strictly and written in one way.

Read are integers, byte and text strings, arrays, maps with text or integer keys, a tag at the very front,
null, false and true. Each must be in its shortest form (section 4.2.1), without a key twice, without bytes
after it, and of definite length but where the caller allows otherwise. Everything else is an InputError:
floats, and the tags that make a general decoder build dates or regular expressions of what strangers send.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Final

from cloister.errors import InputError

__all__ = ["Value", "decode", "encode"]

Value = int | bytes | str | bool | None | list["Value"] | dict[int | str, "Value"]

_DEPTH: Final = 8
_OPEN: Final = -1
_BREAK: Final = 0xFF
_SIMPLE: Final[dict[int, bool | None]] = {20: False, 21: True, 22: None}
_WIDTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}
_LEAST: Final = {1: 24, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}


def decode(data: bytes, what: str, *, tag: int | None = None, streamed: bool = False) -> Value:
    """Return the one value in bytes.

    Args:
        data: all of it.
        what: its name, for errors.
        tag: a tag that may stand before it, and is dropped.
        streamed: whether arrays and maps may have indefinite lengths (section 3.2.2); strings never may.

    Raises:
        InputError: it is cut short, goes on, or is not of the strict form.
    """
    reader = _Reader(data, what, streamed)
    if tag is not None and data[:1] and data[0] >> 5 == 6 and reader.head() != (6, tag):
        raise reader.error("has another tag")
    value = reader.value(0)
    if reader.at != len(data):
        raise reader.error("goes on after its end")
    return value


def encode(value: Value) -> bytes:
    """Return a value as the bytes that `decode` reads; keys of maps stay in their order."""
    match value:
        case None | bool():
            return bytes([0xE0 | {False: 20, True: 21, None: 22}[value]])
        case int() if -(1 << 64) <= value < 1 << 64:
            return _head(0, value) if value >= 0 else _head(1, -1 - value)
        case bytes():
            return _head(2, len(value)) + value
        case str():
            return _head(3, len(value.encode())) + value.encode()
        case list():
            return _head(4, len(value)) + b"".join(map(encode, value))
        case dict():
            return _head(5, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())
    raise InputError("a number is too large for CBOR")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    code, width = next((c, w) for c, w in _WIDTHS.items() if argument < 1 << 8 * w)
    return bytes([major << 5 | code]) + argument.to_bytes(width, "big")


class _Reader:
    def __init__(self, data: bytes, what: str, streamed: bool) -> None:
        self._data = data
        self._what = what
        self._streamed = streamed
        self.at = 0

    def error(self, why: str) -> InputError:
        return InputError(f"{self._what} {why}, near offset {self.at}", fix="Ask for it again")

    def take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        if len(taken) != size:
            raise self.error("is cut short")
        self.at += size
        return taken

    def head(self) -> tuple[int, int]:
        """Return a major type and its argument, `_OPEN` for an indefinite length."""
        first = self.take(1)[0]
        major, code = first >> 5, first & 31
        if code < 24:
            return major, code
        if code == 31 and self._streamed and major in (4, 5):
            return major, _OPEN
        if code not in _WIDTHS or major == 7:
            raise self.error("has an indefinite length, a float or an unknown value")
        width = _WIDTHS[code]
        argument = int.from_bytes(self.take(width), "big")
        if argument < _LEAST[width]:
            raise self.error("is not in its shortest form")
        return major, argument

    def value(self, depth: int) -> Value:
        if depth > _DEPTH:
            raise self.error("is nested too deeply")
        major, argument = self.head()
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self.take(argument)
            case 3:
                return self._text(self.take(argument))
            case 4:
                return [self.value(depth + 1) for _ in self._each(argument)]
            case 5:
                return self._map(argument, depth + 1)
            case 7 if argument in _SIMPLE:
                return _SIMPLE[argument]
        raise self.error("has a tag or an unknown value")

    def _each(self, size: int) -> Iterator[None]:
        """Yield once for every item that is to be read."""
        if size > len(self._data):
            raise self.error("is cut short")
        if size != _OPEN:
            yield from repeat(None, size)
            return
        while self._data[self.at : self.at + 1] != bytes([_BREAK]):
            yield
        self.at += 1

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error("has text that is not UTF-8") from None

    def _map(self, size: int, depth: int) -> dict[int | str, Value]:
        found: dict[int | str, Value] = {}
        for _ in self._each(size):
            key = self.value(depth)
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise self.error("has a key that is neither number nor text")
            if key in found:
                raise self.error("has a key twice")
            found[key] = self.value(depth)
        return found
