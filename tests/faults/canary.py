"""Planted values that must not leave a party, and the search for them in bytes, streams, files and processes.

A canary is known by its forms: all the ways in which the value would look if somebody wrote it down. Text is
sought in UTF-8 and UTF-16, in hexadecimal and in base64 at each of its three alignments. Numbers are sought as
float32 and float64 in both byte orders, and as decimals. Numbers that lie next to each other, as a row or a
column does, make a canary of their own; a single float32 has only 32 bits, so that in gigabytes it is found by
chance: seek runs of them.

What this does not see: values that were compressed, scaled, masked or encrypted. A search that finds nothing
therefore says something only where a positive control finds the same canary in the same kind of source.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

__all__ = ["Canary", "Hit", "Search", "search_bytes", "search_command_line", "search_files"]

_CHUNK = 4 << 20
_SHORTEST = 6  # bytes; a shorter form would be found by chance


@dataclass(frozen=True)
class Canary:
    """A value to look for.

    Attributes:
        name: what it is, for the report.
        forms: how it may look, by the name of the form.
    """

    name: str
    forms: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not self.forms:
            raise ValueError(f"{self.name}: no form is long enough to be told from chance")

    @classmethod
    def text(cls, name: str, value: str) -> Self:
        """A word: a passphrase, a path, an identifier of a row."""
        utf8 = value.encode("utf-8")
        wide = {"utf-16-le": value.encode("utf-16-le"), "utf-16-be": value.encode("utf-16-be")}
        return cls(name, _long_enough({**_written(utf8), **wide}))

    @classmethod
    def secret(cls, name: str, value: bytes) -> Self:
        """Bytes: a key, a seed."""
        return cls(name, _long_enough(_written(value)))

    @classmethod
    def numbers(cls, name: str, values: Sequence[float] | np.ndarray) -> Self:
        """Numbers that lie side by side: a piece of a column, of a row, of an update."""
        array = np.asarray(values, dtype=np.float64).ravel()
        forms = {code: array.astype(code).tobytes() for code in ("<f8", ">f8", "<f4", ">f4")}
        for comma in (",", ", "):
            forms[f"decimals {comma!r}"] = comma.join(repr(float(value)) for value in array).encode()
        return cls(name, _long_enough(forms))


def _written(value: bytes) -> dict[str, bytes]:
    forms = {"plain": value, "hex": value.hex().encode(), "HEX": value.hex().upper().encode()}
    for shift in range(3):
        # of the characters that also hold bits of the neighbours, none is kept
        first = base64.b64encode(bytes(shift) + value)[-(-shift * 8 // 6) :]
        inner = first.rstrip(b"=")[: len(value) * 8 // 6 - 1]
        forms[f"base64+{shift}"] = inner
        forms[f"base64url+{shift}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def _long_enough(forms: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: form for name, form in forms.items() if len(form) >= _SHORTEST}


@dataclass(frozen=True)
class Hit:
    """A canary that was found. It does not hold the value.

    Attributes:
        canary: its name.
        form: how it was written.
        source: the file or stream.
        offset: bytes from the source's beginning.
    """

    canary: str
    form: str
    source: str
    offset: int


class Search:
    """Looks through a stream that comes in pieces; a canary on the border of two pieces is found.

    Attributes:
        hits: what was found so far; of each form its first occurrence.
        seen: bytes that were looked through so far.
    """

    def __init__(self, canaries: Iterable[Canary], source: str = "") -> None:
        self._sought = {
            (canary.name, form): value for canary in canaries for form, value in canary.forms.items()
        }
        self._source = source
        self._keep = max((len(value) for value in self._sought.values()), default=1) - 1
        self._rest = b""
        self.hits: list[Hit] = []
        self.seen = 0

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """Look through the next piece."""
        joined = self._rest + bytes(piece)
        start = self.seen - len(self._rest)
        self.seen += len(piece)
        for (name, form), value in tuple(self._sought.items()):
            if (place := joined.find(value)) >= 0:
                self.hits.append(Hit(name, form, self._source, start + place))
                del self._sought[name, form]
        self._rest = joined[-self._keep :] if self._keep else b""


def search_bytes(canaries: Iterable[Canary], content: bytes, source: str = "") -> list[Hit]:
    """Return which canaries are in `content`."""
    search = Search(canaries, source)
    search.feed(content)
    return search.hits


def search_files(canaries: Iterable[Canary], *roots: Path) -> list[Hit]:
    """Return which canaries are in the contents or in the names of all files under `roots`.

    Links are not followed; a root that does not exist is an error, lest a search of nothing find nothing.
    """
    canaries = tuple(canaries)
    hits: list[Hit] = []
    for path in _files(roots):
        hits += search_bytes(canaries, os.fsencode(path), f"name of {path}")
        search = Search(canaries, str(path))
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                search.feed(piece)
        hits += search.hits
    return hits


def search_command_line(canaries: Iterable[Canary], pid: int) -> list[Hit]:
    """Return which canaries every user of the machine can read in the arguments of process `pid`."""
    return search_bytes(canaries, Path(f"/proc/{pid}/cmdline").read_bytes(), f"arguments of {pid}")


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(root)
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path
