"""A report on disk: check, make the words, write report.json, then report.html; and read report.json back."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from cloister.errors import InputError
from cloister.files import read_bytes, write_atomic
from cloister.report.html import report_html
from cloister.report.model import Report
from cloister.report.words import with_words

__all__ = ["load_report", "report_json", "write_report"]

_LIMIT: Final = 16 * 1024 * 1024


def write_report(folder: Path, report: Report) -> Report:
    """Write report.json and a self-contained report.html, in the report's language.

    Args:
        folder: where; made if missing. Each file is replaced as one step.
        report: the facts; its sentences are made anew.

    Returns:
        The report with its sentences, as written.

    Raises:
        InputError: a field does not fit; nothing is written.
        StorageError: the file system refused.
    """
    _check(report)
    told = with_words(report)
    page = report_html(told).encode()
    write_atomic(folder / "report.json", report_json(told))
    write_atomic(folder / "report.html", page)
    return told


def report_json(report: Report) -> bytes:
    """Return report.json: UTF-8, indented, keys in the order of the fields."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def load_report(path: Path) -> Report:
    """Read a report.json strictly.

    Raises:
        InputError: it is missing, larger than 16 MiB, or breaks the format; the message names the field.
    """
    data = read_bytes(path, limit=_LIMIT, what="report")
    try:
        return msgspec.json.decode(data, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            f"this is not a report: {error}", where=str(path), fix="Give the report.json that cloister wrote"
        ) from error


def _check(report: Report) -> None:
    """Hold every field to its type and range, as reading the report back would."""
    fix = "Check the study that produced it"
    try:
        again = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    except msgspec.MsgspecError as error:
        raise InputError(f"the report does not hold together: {error}", fix=fix) from error
    if again != report:
        raise InputError("the report holds a figure that is not a number", fix=fix)
