"""Bring the pages at the root of the repository into the site, write out every command, and mend links.

README, SECURITY, CHANGELOG and CONTRIBUTING exist once. Links are written as they are right in the
repository; in the site, links to pages become links to where the pages are, and links to source and test
files become plain text, since the site does not hold them. The page on the command line gets the help of
every command at its marker.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["PAGES", "every_command", "for_site", "on_files", "on_page_markdown"]

PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "index.zh.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
_MARKER = "<!-- every command -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_IMAGE = re.compile(r'(<img [^>]*src=")([^"]+)(")')


def _site_path(path: str) -> str | None:
    """Return where the site has a file of the repository, or None where it has it not."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") and posixpath.splitext(path)[1] else None


def for_site(text: str, page: str) -> str:
    """Return a page's text with its links as they are in the site.

    Args:
        text: Markdown.
        page: the page's path in the repository.
    """
    here = posixpath.dirname(_site_path(page) or "")

    def moved(target: str) -> str | None:
        found = _site_path(posixpath.normpath(posixpath.join(posixpath.dirname(page), target)))
        return None if found is None else posixpath.relpath(found, here or ".")

    def link(match: re.Match[str]) -> str:
        image, label, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        place = moved(target)
        return label if place is None else f"{image}[{label}]({place}{anchor})"

    def picture(match: re.Match[str]) -> str:
        return f"{match[1]}{moved(match[2]) or match[2]}{match[3]}"

    return _IMAGE.sub(picture, _LINK.sub(link, text))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages to the site's files."""
    root = Path(config.config_file_path).parent
    for source, target in PAGES.items():
        text = for_site((root / source).read_text(encoding="utf-8"), source)
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Make the links of a page under docs/ right."""
    if page.file.src_uri in PAGES.values():
        return markdown
    if _MARKER in markdown:
        markdown = markdown.replace(_MARKER, every_command())
    return for_site(markdown, f"docs/{page.file.src_uri}")


def every_command() -> str:
    """Return the help of each command, and of each command of a group, as Markdown."""
    from cloister.cli.main import COMMANDS

    paths = [path for name in COMMANDS for path in _with_children((name,))]
    return "\n\n".join(f"### `cloister {' '.join(path)}`\n\n```text\n{_help(*path)}\n```" for path in paths)


def _with_children(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    _, found, listed = _help(*path).partition("Commands")
    if found:
        for name in re.findall(r"^[│|] (\w[\w-]*) ", listed, re.MULTILINE):
            yield from _with_children((*path, name))


def _help(*path: str) -> str:
    from cloister.cli.main import run

    output = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH", "NO_COLOR")}
    os.environ.update({"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"})
    try:
        with contextlib.redirect_stdout(output):
            code = run([*path, "--help"])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if code:
        raise RuntimeError(f"`cloister {' '.join(path)} --help` ends with {code}")
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).splitlines()]
    return "\n".join(lines).strip("\n")
