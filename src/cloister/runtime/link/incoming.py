"""The receiving half of a session: what has arrived, in which order it is delivered, and what may come.

A frame is taken once, when its signature has been verified, and decrypted at once: a small payload to bytes
of its own, a fragment of a large payload straight to its place in the one buffer that holds that payload.
Small payloads that overtook others wait for their turn, bounded in number and in bytes; fragments never wait,
since nothing but the payload that was granted has any. That buffer is in memory, or, where a folder is given,
in a file that is mapped there, if the folder has room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloister.crypto.aead import Numbered
from cloister.errors import ProtocolError, StorageError
from cloister.mapped import forget, mapped
from cloister.runtime.link.wire import (
    ANNOUNCE,
    FRAGMENT,
    HELD_BITS,
    MAX_SMALL,
    WHOLE,
    WINDOW_BYTES,
    WINDOW_FRAMES,
    Frame,
    fragment_bytes,
)

__all__ = ["Incoming", "Payload"]

Payload = bytes | bytearray | memoryview
_TAG: Final = 16
_ASIDE_BYTES: Final = 4 << 20
"""What is smaller stays in memory."""


class _Large:
    """A large payload: announced by frame `sequence`, its fragments are the frames after that one."""

    __slots__ = ("_aside", "_buffer", "_step", "missing", "sequence", "size")

    def __init__(self, sequence: int, size: int, aside: Path | None = None) -> None:
        self.sequence = sequence
        self.size = size
        self._aside = aside if size >= _ASIDE_BYTES else None
        self._step = fragment_bytes(size)
        self.missing = -(-size // self._step)
        self._buffer: bytearray | memoryview | None = None

    @property
    def granted(self) -> bool:
        return self._buffer is not None

    @property
    def last(self) -> int:
        return self.sequence + -(-self.size // self._step)

    def grant(self) -> None:
        if self._buffer is None:
            self._buffer = self._room()

    def _room(self) -> bytearray | memoryview:
        if self._aside is not None:
            try:
                return mapped(self._aside, self.size)
            except StorageError:
                pass  # there is memory yet
        return bytearray(self.size)

    def length(self, sequence: int) -> int:
        return min(self._step, self.size - (sequence - self.sequence - 1) * self._step)

    def place(self, sequence: int) -> memoryview:
        start = (sequence - self.sequence - 1) * self._step
        return memoryview(self.take())[start : start + self.length(sequence)]

    def take(self) -> bytearray | memoryview:
        if self._buffer is None:
            raise ProtocolError("sent a large payload that was not granted")
        return self._buffer


class Incoming:
    """Order, buffers and grants of one direction."""

    def __init__(self, *, auto_grant: bool, aside: Path | None = None) -> None:
        self.next = 0  # the first sequence that has not arrived
        self.grants = 0
        self.waiting = 0  # bytes of small payloads that overtook others
        self._auto_grant, self._aside = auto_grant, aside
        self._held: dict[int, tuple[int, int, bytes]] = {}  # kind, size, plaintext
        self._large: _Large | None = None

    @property
    def announced(self) -> int:
        """Bytes of the large payload that waits or is in transfer; 0 if none."""
        return self._large.size if self._large else 0

    @property
    def granted(self) -> bool:
        """Whether that payload may come."""
        return self._large is not None and self._large.granted

    @property
    def lacking(self) -> int:
        """How many pieces of it have not come."""
        return self._large.missing if self._large else 0

    @property
    def starved(self) -> bool:
        """Whether a payload was granted and nothing of it has come: the grant may be lost."""
        large = self._large
        return large is not None and large.granted and large.missing == large.last - large.sequence

    @property
    def held(self) -> int:
        """The bits that say which frames after the next have arrived."""
        if not self._held:
            return 0
        first = self.next + 1
        return sum(1 << seq - first for seq in self._held if seq - first < HELD_BITS)

    def grant(self) -> bool:
        """Make room for the payload that was announced. Returns False if none waits for that."""
        if self._large is None or self._large.granted:
            return False
        self._large.grant()
        self.grants += 1
        return True

    def lacks(self, frame: Frame) -> bool:
        """Return whether `frame` is not a duplicate.

        Raises:
            ProtocolError: it is out of bounds, or not what its kind must be.
        """
        sequence, length = frame.sequence, len(frame.ciphertext) - _TAG
        if sequence < self.next or sequence in self._held:
            return False
        if sequence >= self.next + WINDOW_FRAMES:
            raise ProtocolError("is too far ahead of what has arrived")
        if frame.kind == FRAGMENT:
            fits = self._expects(sequence) and length == self._expected_length(sequence)
        else:
            most = MAX_SMALL if frame.kind == WHOLE else 0
            fits = 0 <= length <= most and not self._reserved(sequence)
            if frame.kind == ANNOUNCE:
                fits &= frame.size > MAX_SMALL and not self._overlaps(sequence, frame.size)
        if not fits or (frame.size and frame.kind != ANNOUNCE):
            raise ProtocolError("sent a frame that does not fit what it announced")
        if sequence > self.next and self.waiting + max(length, 0) > WINDOW_BYTES + MAX_SMALL:
            raise ProtocolError("sent too much that cannot be delivered yet")
        return True

    def take(self, frame: Frame, cipher: Numbered, associated: bytes) -> list[Payload]:
        """Decrypt a frame that `lacks` approved; return the payloads that are now complete and in order.

        Raises:
            IntegrityError: the ciphertext does not open.
        """
        large = self._large
        if frame.kind == FRAGMENT and large is not None:
            place = large.place(frame.sequence)
            cipher.open_into(frame.sequence, frame.ciphertext, associated, place)
            forget(place)
            large.missing -= 1
            plaintext = b""
        else:
            plaintext = cipher.open(frame.sequence, frame.ciphertext, associated)
        if frame.sequence == self.next and not self._held:  # the common case
            return self._deliver(frame.kind, frame.size, plaintext)
        self._held[frame.sequence] = (frame.kind, frame.size, plaintext)
        self.waiting += len(plaintext)
        return self._in_order()

    def _in_order(self) -> list[Payload]:
        payloads: list[Payload] = []
        while (held := self._held.pop(self.next, None)) is not None:
            self.waiting -= len(held[2])
            payloads += self._deliver(*held)
        return payloads

    def _deliver(self, kind: int, size: int, plaintext: bytes) -> list[Payload]:
        sequence, self.next = self.next, self.next + 1
        if kind == WHOLE:
            return [plaintext]
        if kind == ANNOUNCE:
            self._large = _Large(sequence, size, self._aside)
            if self._auto_grant:
                self.grant()
        if kind == FRAGMENT and self._large is not None and sequence == self._large.last:
            large, self._large = self._large, None
            return [large.take()]
        return []

    def _expects(self, sequence: int) -> bool:
        return self._large is not None and self._large.granted and sequence <= self._large.last

    def _reserved(self, sequence: int) -> bool:
        """Whether only a fragment can have this number."""
        if self._large is not None and sequence <= self._large.last:
            return True
        announced = ((first, held[1]) for first, held in self._held.items() if held[0] == ANNOUNCE)
        return any(first < sequence <= _Large(first, size).last for first, size in announced)

    def _overlaps(self, sequence: int, size: int) -> bool:
        """Whether something else arrived under the numbers of this payload's fragments."""
        return any(sequence < held <= _Large(sequence, size).last for held in self._held)

    def _expected_length(self, sequence: int) -> int:
        return self._large.length(sequence) if self._large is not None else -1
