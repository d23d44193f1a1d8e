"""The one tree of errors.

    CloisterError
    ├── InputError            exit 2   what was given does not fit
    │   ├── SchemaError                a row breaks its schema: line, column
    │   ├── PlanError                  a study plan that cannot be run as written
    │   └── PassphraseError            wrong or missing passphrase
    ├── StorageError          exit 2   the disk is full, a folder cannot be written
    ├── IntegrityError        exit 1   bytes are not what was signed or sealed
    ├── VerificationError     exit 1   a check was made and its verdict is no
    ├── ProtocolError         exit 1   a peer broke the protocol: peer
    │   └── RoundBurnt                 this round cannot finish; a fresh attempt may
    └── PolicyRefused         exit 3   a policy or a budget says no

Every error says what was wrong, where, and what to do about it. Messages name fields, files, lines and peers;
they never hold a value read from a row, a key, or a passphrase.
"""

from __future__ import annotations

__all__ = [
    "CloisterError",
    "InputError",
    "IntegrityError",
    "PassphraseError",
    "PlanError",
    "PolicyRefused",
    "ProtocolError",
    "RoundBurnt",
    "SchemaError",
    "StorageError",
    "VerificationError",
]


class CloisterError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        what: what is wrong, in plain words, without a full stop.
        where: the file, field, line or peer it concerns.
        fix: what the reader can do next, as a sentence without a full stop.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        end = "" if self.fix.endswith("?") else "."
        advice = f" {self.fix}{end}" if self.fix else ""
        return f"{self.what}{place}.{advice}"


class InputError(CloisterError):
    """What the user gave does not fit."""


class SchemaError(InputError):
    """A row or a column breaks its schema.

    Args:
        what: what is wrong; never the value itself.
        line: 1-based line of the source file, the header counted, where one is known.
        column: the column's name, where one is known.
        fix: what to do next.
    """

    def __init__(
        self, what: str, *, line: int | None = None, column: str | None = None, fix: str = ""
    ) -> None:
        parts = [f"line {line}" if line is not None else "", f"column {column}" if column is not None else ""]
        super().__init__(what, where=", ".join(p for p in parts if p), fix=fix)
        self.line = line
        self.column = column


class PlanError(InputError):
    """A study plan cannot be run as it is written."""


class PassphraseError(InputError):
    """The passphrase is wrong, or none could be had."""


class StorageError(CloisterError):
    """The file system refused: no space, no permission, no such folder."""


class IntegrityError(CloisterError):
    """Bytes are not what was signed or sealed."""

    exit_code = 1


class VerificationError(CloisterError):
    """A check was made and its verdict is no."""

    exit_code = 1


class ProtocolError(CloisterError):
    """A peer sent what the protocol does not allow.

    Args:
        what: what it did.
        peer: its name, where one is known.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, peer: str | None = None, fix: str = "") -> None:
        super().__init__(what, where=f"from {peer}" if peer else "", fix=fix)
        self.peer = peer


class RoundBurnt(ProtocolError):
    """This attempt of a round cannot finish; its secrets are gone and a fresh attempt may follow."""


class PolicyRefused(CloisterError):
    """A policy or a budget says no."""

    exit_code = 3
