"""Entries of a key broker's log as lines for people."""

from __future__ import annotations

from cloister.enclave.broker.entries import (
    Allowed,
    Anchored,
    Entry,
    Interrupted,
    KekGone,
    KekMade,
    Refusal,
    ReleaseMade,
    Revoked,
)
from cloister.text import printable

__all__ = ["in_words"]


def in_words(entry: Entry) -> str:
    """Return one entry as a line."""
    text = f"{entry.at:%Y-%m-%d %H:%M:%S}  {_what(entry)}"
    return printable(text, "?")  # reasons may quote what a stranger sent


def _what(entry: Entry) -> str:
    match entry:
        case KekMade():
            return f"made      {entry.kek_id}"
        case KekGone():
            return f"destroyed {entry.kek_id}"
        case Allowed():
            wanted = entry.permission.wanted
            return (
                f"granted   {wanted.kek_id} for {wanted.purpose!r}, {entry.permission.uses} uses "
                f"until {entry.permission.expires:%Y-%m-%d} ({entry.permission.id})"
            )
        case Revoked():
            return f"revoked   {entry.permission}"
        case ReleaseMade():
            grant, found = entry.grant, entry.appraised
            keys = f"{entry.count} {'key' if entry.count == 1 else 'keys'}"
            return (
                f"released  {keys} of {grant.wanted.kek_id} for {grant.wanted.purpose!r}, "
                f"use {grant.use} of {grant.uses}, to worker {grant.worker[:16]} "
                f"({found.kind}, {found.protection})"
            )
        case Refusal():
            whom = f" to worker {entry.worker[:16]}" if entry.worker else ""
            what = f" {entry.wanted.kek_id}" if entry.wanted else f" {entry.what}"
            shown = f" ({entry.appraised.kind}, {entry.appraised.protection})" if entry.appraised else ""
            return f"REFUSED  {what}{whom}{shown}: {'; '.join(entry.reasons)}"
        case Anchored():
            return "anchored  in a TPM's counter"
        case Interrupted():
            return f"INTERRUPTED change {entry.sequence}: it counts, and its entry is missing"
