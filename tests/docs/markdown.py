"""Reading the documentation as a test needs it: fenced blocks with directives, commands, headings, links.

A directive is an HTML comment, which readers do not see:

    <!-- test: setup NAME -->   once on a page: run its console and bash blocks, in order, in one folder,
                                which is empty but for what the named set-up puts there
    <!-- test: file NAME -->    before a block: write it to NAME at this point
    <!-- test: python -->       before a python block: run it at this point
    <!-- test: fails CODE -->   before a console or bash block: its only command must end with this exit code
    <!-- test: skip -->         before a block: do not run it (its commands are still checked against --help)

Where several organisations type, a page has no set-up, and a block is run at each of those it names; the text is
that of the first, with the names exchanged for the others (`test_three_organisations.py`):

    <!-- test: as A likewise B C -->            to its end
    <!-- test: background A likewise B C -->    beside what follows
    <!-- test: until A likewise B C -->         again and again until it succeeds
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*([\w+-]*)")
_DIRECTIVE = re.compile(r"^\s*<!--\s*test:\s*(\w+)\s*(.*?)\s*-->\s*$")
_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
_OPERATORS = frozenset("();<>|&")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of its fence, and the directive before it."""

    language: str
    text: str
    line: int
    directive: str = ""
    argument: str = ""


@dataclass(frozen=True)
class Page:
    """A page of the documentation, by its path in the repository."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def setup(self) -> str | None:
        """The name of the page's set-up, "" for an empty folder, None for a page that is not run."""
        said = [found for line in self.prose() if (found := _DIRECTIVE.match(line)) and found[1] == "setup"]
        return said[0][2] if said else None

    def blocks(self) -> list[Block]:
        return list(_blocks(self.text.splitlines()))

    def prose(self) -> list[str]:
        """Lines outside fenced blocks; inside, empty ones."""
        lines = self.text.splitlines()
        for block in self.blocks():
            length = block.text.count("\n") + 2
            lines[block.line - 1 : block.line - 1 + length] = [""] * length
        return lines

    def headings(self) -> list[tuple[int, str]]:
        return [(len(found[1]), found[2]) for line in self.prose() if (found := _HEADING.match(line))]

    def anchors(self) -> set[str]:
        return {_slug(title) for _, title in self.headings()}

    def links(self) -> list[str]:
        return [found[1] or found[2] for line in self.prose() for found in _LINK.finditer(line)]

    def commands(self) -> list[tuple[int, list[str]]]:
        """Every `cloister ...` in console and bash blocks: line, and words after `cloister`."""
        return [
            (block.line, words)
            for block in self.blocks()
            if block.language in ("console", "bash", "sh", "shell")
            for words in _cloister_calls(shell_text(block))
        ]


def pages() -> list[Page]:
    """Every page: those at the root, and all under docs/."""
    found = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(path) for path in found]


def _blocks(lines: list[str]) -> Iterator[Block]:
    number, directive = 0, ("", "")
    while number < len(lines):
        line = lines[number]
        fence, said = _FENCE.match(line), _DIRECTIVE.match(line)
        if fence:
            end = number + 1
            while end < len(lines) and lines[end].strip() != fence[2]:
                end += 1
            body = [inner.removeprefix(fence[1]) for inner in lines[number + 1 : end]]
            yield Block(fence[3], "".join(f"{inner}\n" for inner in body), number + 1, *directive)
            number, directive = end, ("", "")
        elif said:
            directive = (said[1], said[2])
        elif line.strip():
            directive = ("", "")
        number += 1


def shell_text(block: Block) -> str:
    """Return what a shell is given: of a console block the lines after `$ ` and their continuations."""
    return "".join(f"{line}\n" for line in _split(block)[0]) if block.language == "console" else block.text


def shown_output(block: Block) -> list[str]:
    """Return the lines that a console block shows as output; `...` in them stands for anything."""
    shown = _split(block)[1] if block.language == "console" and block.directive != "skip" else []
    return [line for line in shown if line.strip()]


def _split(block: Block) -> tuple[list[str], list[str]]:
    """Return the lines that are typed, and those that are output."""
    typed: list[str] = []
    shown: list[str] = []
    going_on = False
    for line in block.text.splitlines():
        if line.startswith("$ ") or going_on:
            typed.append(line.removeprefix("> ") if going_on else line.removeprefix("$ "))
            going_on = line.rstrip().endswith("\\")
        else:
            shown.append(line)
    return typed, shown


def _cloister_calls(script: str) -> Iterator[list[str]]:
    for line in script.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # the inside of a here-document with a lonely quote
            continue
        for token in [*tokens, ";"]:
            if not token or set(token) <= _OPERATORS:
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words and words[0] == "cloister":
                    yield words[1:]
                words = []
            else:
                words.append(token)


def _slug(title: str) -> str:
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", title).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
