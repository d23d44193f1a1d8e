"""Receipts, kept: a file of JSON lines that says, signed by the worker, what was answered with which model.

Each key set stands in the file once, with the evidence that vouched for it, before the first receipt under
it; so somebody else can check the file, later and offline (`checkreceipts`).

Neither question nor answer is in the file: a receipt has salted digests of both, and the salts stand beside
it, so that who has kept the texts can show what they were. Who has this file and a guess at a text can try
the guess: the file is its owner's alone (mode 0600).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cloister.crypto import sha256
from cloister.enclave.evidence import MAX_EVIDENCE
from cloister.errors import InputError, StorageError
from cloister.inference.client.verify import Verified
from cloister.inference.exchange.messages import Ending

__all__ = ["KeysLine", "ReceiptLine", "ReceiptStore", "decoded", "read_lines", "reason_of"]

_MAX_LINE: Final = 3 * MAX_EVIDENCE


class KeysLine(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/receipts/v1/keys", tag_field="type"
):
    """A key set, its evidence, and when and for which nonce it was verified."""

    keys: Annotated[bytes, Meta(max_length=1 << 16)]
    evidence: Annotated[bytes, Meta(max_length=2 * MAX_EVIDENCE)]
    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]
    at: Annotated[datetime, Meta(tz=True)]
    policy: Annotated[str, Meta(max_length=64)]


class ReceiptLine(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag="cloister/receipts/v1/receipt",
    tag_field="type",
):
    """One answer's receipt, and the salts of its digests."""

    keys: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    receipt: Annotated[bytes, Meta(max_length=1 << 16)]
    request_salt: Annotated[bytes, Meta(min_length=32, max_length=32)]
    answer_salt: Annotated[bytes, Meta(min_length=32, max_length=32)]


_decoder: Final = msgspec.json.Decoder(KeysLine | ReceiptLine)
_KEYS_BEGIN: Final = b'{"type":"cloister/receipts/v1/keys"'


class ReceiptStore:
    """A file that receipts are added to. Several threads and processes may add to one.

    Args:
        path: the file; made, with its folder, where missing.

    Attributes:
        path: the file.
        added: how many receipts this object has added.

    Raises:
        InputError: there is something else in the file.
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.added = 0
        self._lock = threading.Lock()
        self._known: set[str] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _storage(path, error) from error
        try:
            self._read_known()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, verified: Verified, envelope: bytes, ending: Ending) -> None:
        """Keep a receipt that has been checked.

        Args:
            verified: the service it is from.
            envelope: the signed receipt.
            ending: what the answer ended with.

        Raises:
            StorageError: it cannot be written.
        """
        name = verified.keys.digest.hex()
        line = (
            msgspec.json.encode(ReceiptLine(name, envelope, ending.request_salt, ending.answer_salt)) + b"\n"
        )
        with self._lock:
            if name not in self._known:
                found = verified.published
                said = KeysLine(
                    found.keys, found.evidence, verified.nonce, verified.at, verified.policy_digest
                )
                line = msgspec.json.encode(said) + b"\n" + line
            self._append(line)
            self._known.add(name)
            self.added += 1

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _read_known(self) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            os.lseek(self._file, 0, os.SEEK_SET)
            whole = True
            for number, line in read_lines(file.fileno(), self.path):
                if number == 1 or line.startswith(_KEYS_BEGIN):
                    found = decoded(line)
                    if number == 1 and found is None:
                        raise InputError(
                            "this is no file of receipts", where=str(self.path), fix="Choose another one"
                        )
                    if isinstance(found, KeysLine):
                        self._known.add(sha256(found.keys).hex())
                whole = line.endswith(b"\n")
        if not whole:  # somebody was stopped while writing: what follows begins a line of its own
            self._append(b"\n")

    def _append(self, data: bytes) -> None:
        if self._file < 0:
            raise StorageError("the receipt cannot be kept: its file was closed", where=str(self.path))
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                whole = os.fstat(self._file).st_size
                try:
                    left = memoryview(data)
                    while left:
                        left = left[os.write(self._file, left) :]
                except BaseException:  # a full disk: half a line would spoil the next one too
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._file, whole)
                    raise
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise _storage(self.path, error) from error


def read_lines(descriptor: int, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield a file's lines with their number, from 1. Raises InputError for one that is too long."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) >= _MAX_LINE:
                raise InputError("a line is too long", where=f"{path}, line {number}", fix="Restore the file")
            yield number, line


def decoded(line: bytes) -> KeysLine | ReceiptLine | None:
    """Return what a line says; None where it is neither of the two."""
    try:
        found: KeysLine | ReceiptLine = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found


def reason_of(error: OSError) -> str:
    """Return why the system refused, in words."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _storage(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the receipt cannot be kept: {reason_of(error)}",
        where=str(path),
        fix="Free space, or choose another file",
    )
