"""Identifiers, and the Protocols through which rooms of one layer meet.

Nothing here does anything: a room implements a Protocol, a higher layer wires it to the room that needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from cloister.errors import InputError

__all__ = ["Counter", "KeyService", "RandomBytes", "Transport", "check_name"]

RandomBytes = Callable[[int], bytes]
"""A source of n random bytes; `os.urandom` everywhere but in tests."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z", re.ASCII)


def check_name(name: str, what: str = "name") -> str:
    """Return `name` if it is safe as an identifier and as a file name.

    Args:
        name: 1 to 63 of a-z, 0-9, '-' and '_', starting and ending with a letter or digit.
        what: what is being named, for the message.

    Raises:
        InputError: it is not.
    """
    if not _NAME.match(name):
        raise InputError(
            f"{what} {name[:70]!r} is not allowed",
            fix="Use 1 to 63 of a-z, 0-9, '-' and '_', starting and ending with a letter or a digit",
        )
    return name


class Counter(Protocol):
    """Counts up and never down, also where everything on this machine's disks is put back from an older copy.

    Implemented by a TPM's NV counter. Whoever anchors something to one gives it to nothing else.
    """

    def read(self) -> int:
        """Return its value; 0 where it was never incremented. Raises InputError where it cannot be had."""

    def increment(self) -> int:
        """Add at least one, durably, and return the new value; the first may be any number above 0."""


class KeyService(Protocol):
    """Keeps key-encryption keys (KEKs) and wraps data keys under them; a KEK never leaves it.

    Implemented by the local keystore; an HSM and an attested broker follow the same contract.
    """

    def create(self, kek_id: str) -> None:
        """Make a fresh KEK. Raises InputError where the id is taken."""

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        """Return `data_key` (16 to 64 bytes) encrypted under the KEK. Raises InputError for an unknown id."""

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return the data key. Raises IntegrityError where `wrapped` was not made under this KEK and id."""

    def destroy(self, kek_id: str) -> str:
        """Destroy the KEK; return one honest sentence on what may survive."""


class Transport(Protocol):
    """Carries opaque, already signed and encrypted datagrams between named parties, as well as it can: it may
    lose, repeat, reorder and alter them. Nothing in it is trusted.
    """

    async def send(self, receiver: str, message: bytes) -> None:
        """Send a datagram of at most 8 MiB. Returning says nothing about its arrival.

        Raises:
            InputError: it is larger, or `receiver` is no name.
            StorageError: the transport knows that this receiver cannot be reached by it at all.
        """

    async def receive(self, timeout: float) -> bytes | None:
        """Return the next datagram addressed to this party, or None after `timeout` seconds."""
