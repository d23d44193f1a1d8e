"""Frames: encrypted records of one direction of one exchange, in order, with an end that cannot be forged.

    frame = u32: bit 31 final, bits 0 to 30 length of what follows | AES-256-GCM ciphertext | 16-byte tag

Invariants:
- frame i has nonce i, and in its associated data the direction, i and whether it is final: frames that are
  dropped, repeated, moved, altered, of the other direction or of another exchange do not open;
- a direction ends with its final frame and not without: `finish` refuses what was cut, also between frames;
- a length that cannot be is refused before anything is kept for it: at most one frame waits in memory;
- plaintext leaves `FrameOpener` only once its tag was checked; after an error it opens nothing more.

The key of a direction is for one sealer alone. Sizes and times of frames are not hidden here: see `padding`.
"""

from __future__ import annotations

from typing import Final

from cloister.crypto import TAG_BYTES, Buffer, HoldsSecret
from cloister.crypto.aead import Numbered
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange.padding import MAX_BLOCK

__all__ = ["ANSWER", "REQUEST", "FrameOpener", "FrameSealer"]

REQUEST: Final = b"q"
"""The direction from client to server."""
ANSWER: Final = b"a"
"""The direction from server to client."""
_LABEL: Final = b"cloister/exchange/v1/frame"
_FINAL: Final = 1 << 31
_PREFIX: Final = 4
_LARGEST: Final = MAX_BLOCK + TAG_BYTES


class FrameSealer(HoldsSecret):
    """Makes the frames of one direction.

    Args:
        key: 32 bytes, for this sealer alone.
        direction: `REQUEST` or `ANSWER`.
    """

    __slots__ = ("_cipher", "_closed", "_label", "_number")

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._cipher = Numbered(key)
        self._label = _LABEL + direction
        self._number = 0
        self._closed = False

    def seal(self, plaintext: Buffer, final: bool = False) -> bytes:
        """Return the next frame, 20 bytes longer than `plaintext`.

        Args:
            plaintext: at most 65,536 bytes.
            final: whether nothing follows.

        Raises:
            InputError: it is too long, or the final frame was made.
        """
        length = len(plaintext)
        if self._closed:
            raise InputError("a frame after the final one", fix="Begin another exchange")
        if length > MAX_BLOCK:
            raise InputError(f"a frame has more than {MAX_BLOCK} bytes", fix="Cut it into blocks")
        number, self._number = self._number, self._number + 1  # taken first: a nonce is never used twice
        self._closed = final
        associated = self._label + (number << 8 | final).to_bytes(9, "big")
        prefix = (final * _FINAL | (length + TAG_BYTES)).to_bytes(_PREFIX, "big")
        return prefix + self._cipher.seal(number, plaintext, associated)


class FrameOpener(HoldsSecret):
    """Opens the frames of one direction, as their bytes come.

    Args:
        key: 32 bytes, as the sealer's.
        direction: as the sealer's.

    Attributes:
        ended: whether the final frame was opened: only then is what came complete.
    """

    __slots__ = ("_broken", "_cipher", "_held", "_label", "_needed", "_number", "ended")

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._cipher = Numbered(key)
        self._label = _LABEL + direction
        self._number = 0
        self._held = bytearray()
        self._needed = _PREFIX
        self._broken = False
        self.ended = False

    def feed(self, data: Buffer) -> list[bytes]:
        """Return the plaintexts that `data` completes, in order.

        Args:
            data: the next bytes of the stream, cut anywhere.

        Raises:
            IntegrityError: altered, out of order, of another stream, a length that cannot be, or bytes after
                the final frame. None of this call's plaintexts is returned then, and no later call opens any.
        """
        if self._broken:
            raise _no_frame()
        held = self._held
        if held:
            held += data
            if len(held) < self._needed:
                return []
            data = bytes(held)
            held.clear()
        try:
            plaintexts, rest = self._open(memoryview(data))
        except IntegrityError:
            self._broken = True
            raise
        held += rest
        return plaintexts

    def _open(self, view: memoryview) -> tuple[list[bytes], memoryview]:
        """Return the plaintexts of whole frames at the start of `view`, and what follows them."""
        plaintexts: list[bytes] = []
        at, end = 0, len(view)
        while True:
            if self.ended and at < end:
                raise _no_frame()
            if end - at < _PREFIX:
                self._needed = _PREFIX
                return plaintexts, view[at:]
            word = int.from_bytes(view[at : at + _PREFIX], "big")
            length, final = word & ~_FINAL, word >> 31
            if not TAG_BYTES <= length <= _LARGEST:
                raise _no_frame()
            stop = at + _PREFIX + length
            if stop > end:
                self._needed = _PREFIX + length
                return plaintexts, view[at:]
            associated = self._label + (self._number << 8 | final).to_bytes(9, "big")
            plaintexts.append(self._cipher.open(self._number, view[at + _PREFIX : stop], associated))
            self._number += 1
            self.ended = bool(final)
            at = stop

    def finish(self) -> None:
        """Raise IntegrityError where the stream is over and its final frame has not come, or none opened."""
        if self._broken or not self.ended:
            raise IntegrityError("a stream was cut before its end", fix="Do not use what came; ask again")


def _no_frame() -> IntegrityError:
    return IntegrityError(
        "bytes that are not the next frame of this stream", fix="Do not use what came; ask again"
    )
