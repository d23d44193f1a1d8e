"""Tool calls out of a model's text, as the text comes.

Two ways of writing a call are known, and which one a model was taught is seen from its chat template:

    hermes    <tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>      (Qwen, Hermes)
    mistral   [TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}}]               (also name{...})

Invariants: nothing is lost: what does not turn out to be a call is given as text, in order, markers included;
text that might begin a marker waits until it is clear; what waits is bounded. White space around calls is
dropped. Nothing is executed, and no schema is enforced: a client checks the arguments it is given.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["ToolCall", "ToolFormat", "ToolParser", "tool_format"]

ToolFormat = Literal["hermes", "mistral"]

_OPEN: Final[dict[ToolFormat, str]] = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]"}
_CLOSE: Final = "</tool_call>"
_ARGUMENTS: Final = "[ARGS]"
_LONGEST: Final = 1 << 18
"""Characters of calls that are waited for; what is longer is text."""

_BEGINNING: Final = re.compile(r"\s*(?:\[(?!ARGS)|[\w.-]{0,64}(?:\[A?R?G?S?\]?)?\s*(?:\{|\Z))", re.ASCII)
"""How calls of Mistral begin, or may yet: an array, or a name and an object."""

_NAME: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call.

    Attributes:
        name: of the function.
        arguments: a JSON object, as text.
    """

    name: str = field(repr=False)
    arguments: str = field(repr=False)


def tool_format(chat_template: str) -> ToolFormat | None:
    """Return how a model with this chat template writes calls; None where it is taught none of these."""
    if "tools" not in chat_template:
        return None
    return next((name for name, marker in _OPEN.items() if marker in chat_template), None)


class ToolParser:
    """Reads one answer.

    Args:
        format: how calls are written; None knows each way by its marker.
    """

    def __init__(self, format: ToolFormat | None = None) -> None:
        self._formats: tuple[ToolFormat, ...] = (format,) if format else tuple(_OPEN)
        self._inside: ToolFormat | None = None
        self._text = ""  # not yet given: outside, what may begin a marker; inside, what follows the marker
        self._searched = 0  # characters of `_text` in which no call ends
        self._called = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return the text and the calls that have become clear with these characters, in order."""
        self._text += text
        found: list[str | ToolCall] = []
        while self._outside(found) if self._inside is None else self._call(found):
            pass
        return found

    def finish(self) -> list[str | ToolCall]:
        """Return the rest, at the answer's end. A last call whose closing mark is missing counts."""
        found: list[str | ToolCall] = []
        while self._inside is not None:
            calls = _written(self._inside, self._text)
            if calls:
                self._take(calls, "", found)
            else:
                self._ill_formed(0, found)
                found += self.feed("")
        if self._text and not (self._called and self._text.isspace()):
            found.append(self._text)
        self._text = ""
        return found

    def _outside(self, found: list[str | ToolCall]) -> bool:
        """Give text up to the next marker; return whether there may be more to do."""
        places = [(at, name) for name in self._formats if (at := self._text.find(_OPEN[name])) >= 0]
        if places:
            at, self._inside = min(places)
            before, self._text = self._text[:at], self._text[at + len(_OPEN[self._inside]) :]
            if before.strip():
                found.append(before.rstrip())
            return True
        clear = min(_certain(self._text, _OPEN[name]) for name in self._formats)
        clear = len(self._text[:clear].rstrip())  # white space waits, too
        if clear:
            found.append(self._text[:clear])
            self._text = self._text[clear:]
        return False

    def _call(self, found: list[str | ToolCall]) -> bool:
        """Give the calls after a marker, if they have come; return whether there may be more to do."""
        while self._inside == "hermes" and (end := self._text.find(_CLOSE, self._searched)) >= 0:
            calls = _written("hermes", self._text[:end])
            if calls:
                self._take(calls, self._text[end + len(_CLOSE) :], found)
                return True
            if not _open_string(self._text[:end]):
                self._ill_formed(end + len(_CLOSE), found)
                return True
            self._searched = end + 1  # it stands within an argument
        if self._inside == "mistral":
            if not _BEGINNING.match(self._text):
                self._ill_formed(0, found)
                return True
            if not {"]", "}"}.isdisjoint(self._text[self._searched :]):
                self._searched = len(self._text)
                calls, rest = _mistral(self._text)
                if calls:
                    self._take(calls, rest, found)
                    return True
        if len(self._text) > _LONGEST:
            self._ill_formed(0, found)
            return True
        return False

    def _take(self, calls: list[ToolCall], rest: str, found: list[str | ToolCall]) -> None:
        found += calls
        self._called, self._inside = True, None
        self._text, self._searched = rest, 0

    def _ill_formed(self, length: int, found: list[str | ToolCall]) -> None:
        """Give a marker and what follows it as text."""
        if self._inside is not None:
            found.append(_OPEN[self._inside] + self._text[:length])
        self._inside, self._text, self._searched = None, self._text[length:], 0


def _certain(text: str, marker: str) -> int:
    """Return how many characters of the text cannot begin the marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length
    return len(text)


def _written(format: ToolFormat, text: str) -> list[ToolCall]:
    """Return the calls that this text is, all of it; none where it is something else."""
    if format == "mistral":
        calls, rest = _mistral(text)
        return [] if rest.strip() else calls
    try:
        call = _as_call(json.loads(text))
    except (ValueError, RecursionError):
        return []
    return [call] if call else []


def _mistral(text: str) -> tuple[list[ToolCall], str]:
    """Return the calls at the beginning of the text and what follows them; no calls where there are none."""
    start = len(text) - len(text.lstrip())
    name, array = "", text[start : start + 1] == "["
    if not array:
        brace = text.find("{", start)
        if brace < 0:
            return [], text
        name, start = text[start:brace].strip().removesuffix(_ARGUMENTS).strip(), brace
        if not _NAME.fullmatch(name):
            return [], text
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return [], text
    raw = value if array else [{"name": name, "arguments": value}]
    calls = [call for item in raw if (call := _as_call(item))]
    return (calls, text[end:]) if calls and len(calls) == len(raw) else ([], text)


def _as_call(value: object) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
        return None
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):  # the text of an object instead of an object
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _open_string(text: str) -> bool:
    """Tell whether JSON text ends within a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside
