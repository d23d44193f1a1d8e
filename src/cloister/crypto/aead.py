"""AES-256-GCM (NIST SP 800-38D). Associated data is mandatory: it says what the bytes are for.

Three ways in, never mixed under one key:

- `encrypt` and `decrypt`: independent messages, a random nonce in front. At most 2**32 messages a key.
  `encrypt_parts` and `decrypt_parts` make and open the same bytes of what is too large to hold twice.
- `Sealer` and `Opener`: an ordered stream under a key made for it alone. The nonce is the message's number
  and does not travel, so a message that is dropped, repeated, moved or altered does not open. The end of the
  stream is not marked; whoever needs that says "final" in the associated data.
- `Numbered`: numbered messages under a key made for them alone, in any order, and the same message again when
  it was lost on the way.

None hides the length. GCM does not commit to its key; where several keys might be tried, commit to the key
beside it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.crypto._base import Buffer, HoldsSecret, check_length
from cloister.errors import InputError, IntegrityError

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "TAG_BYTES",
    "Numbered",
    "Opener",
    "Sealer",
    "decrypt",
    "decrypt_parts",
    "encrypt",
    "encrypt_parts",
]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_MAX_MESSAGE: Final = 2**31 - 1 - TAG_BYTES  # what the library takes in one call
_MAX_MESSAGES: Final = 2**32
_PART: Final = 1 << 20


def _cipher(key: bytes, associated_data: bytes) -> AESGCM:
    check_length(key, KEY_BYTES, "an AES-256 key")
    _check_associated_data(associated_data)
    return AESGCM(key)


def _check_associated_data(associated_data: bytes) -> None:
    if not associated_data:
        raise InputError("associated data is empty", fix="Name what is encrypted and for whom")


def _as_bytes(data: Buffer) -> memoryview:
    """Return a view that counts bytes; that of an array of numbers counts numbers."""
    return memoryview(data).cast("B")


def _altered() -> IntegrityError:
    return IntegrityError(
        "encrypted bytes do not open: they were altered, or key or context is another one",
        fix="Get them again from their source",
    )


def encrypt(key: bytes, plaintext: Buffer, associated_data: bytes) -> bytes:
    """Return nonce | ciphertext | tag, 28 bytes longer than `plaintext`.

    Args:
        key: 32 bytes.
        plaintext: at most 2**31 - 17 bytes; longer things go through `sealedfile`.
        associated_data: at least one byte; authenticated, not stored.

    Raises:
        InputError: wrong key length, empty associated data, too long.
    """
    cipher = _cipher(key, associated_data)
    data = _as_bytes(plaintext)
    if len(data) > _MAX_MESSAGE:
        raise InputError(f"a message is longer than {_MAX_MESSAGE} bytes", fix="Seal it as a file")
    nonce = os.urandom(NONCE_BYTES)
    return b"".join((nonce, cipher.encrypt(nonce, data, associated_data)))


def decrypt(key: bytes, sealed: Buffer, associated_data: bytes) -> bytes:
    """Return the plaintext of what `encrypt` made under the same key and associated data.

    Raises:
        InputError: wrong key length or empty associated data.
        IntegrityError: anything else is not as it was.
    """
    cipher = _cipher(key, associated_data)
    view = _as_bytes(sealed)
    if not NONCE_BYTES + TAG_BYTES <= len(view) <= NONCE_BYTES + _MAX_MESSAGE + TAG_BYTES:
        raise _altered()
    try:
        return cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], associated_data)
    except InvalidTag:
        raise _altered() from None


def encrypt_parts(key: bytes, parts: Iterable[Buffer], associated_data: bytes) -> Iterator[bytes]:
    """Yield what `encrypt` returns for the parts one after another, in pieces; of up to 2**36 - 32 bytes.

    Raises:
        InputError: wrong key length or empty associated data.
    """
    check_length(key, KEY_BYTES, "an AES-256 key")
    _check_associated_data(associated_data)
    nonce = os.urandom(NONCE_BYTES)
    stream = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    stream.authenticate_additional_data(associated_data)
    yield nonce
    for part in parts:
        yield stream.update(_as_bytes(part))
    stream.finalize()
    yield stream.tag


def decrypt_parts(key: bytes, sealed: BinaryIO, associated_data: bytes, out: memoryview) -> None:
    """Write to `out` the plaintext of what `encrypt` made, read from a file that stands at its beginning.
    Where it does not open, or has another length, `out` is zeros.

    Raises:
        InputError: wrong key length or empty associated data.
        IntegrityError: anything else is not as it was.
    """
    check_length(key, KEY_BYTES, "an AES-256 key")
    _check_associated_data(associated_data)
    try:
        nonce = sealed.read(NONCE_BYTES)
        if len(nonce) != NONCE_BYTES:
            raise _altered()
        stream = Cipher(algorithms.AES(key), modes.GCM(nonce)).decryptor()
        stream.authenticate_additional_data(associated_data)
        done = 0
        while done < len(out):
            part = sealed.read(min(_PART, len(out) - done))
            if not part:
                raise _altered()
            plain = stream.update(part)
            out[done : done + len(plain)] = plain
            done += len(plain)
        stream.finalize_with_tag(sealed.read(TAG_BYTES + 1))
    except (InvalidTag, ValueError, IntegrityError):
        out[:] = bytes(len(out))
        raise _altered() from None


class _Stream(HoldsSecret):
    """A key and a reused buffer; for one thread."""

    __slots__ = ("_buffer", "_capacity", "_cipher", "_view")

    def __init__(self, key: bytes, capacity: int) -> None:
        check_length(key, KEY_BYTES, "an AES-256 key")
        if not 0 < capacity <= _MAX_MESSAGE:
            raise InputError(
                f"capacity must be between 1 and {_MAX_MESSAGE} bytes", fix="Choose another capacity"
            )
        self._cipher = AESGCM(key)
        self._capacity = capacity
        self._buffer = bytearray(capacity + TAG_BYTES)
        self._view = memoryview(self._buffer)

    def _check(self, associated_data: bytes, length: int) -> None:
        _check_associated_data(associated_data)
        if length > self._capacity:
            raise InputError(f"a message exceeds the stream's {self._capacity} bytes", fix="Split it")

    @staticmethod
    def _nonce(number: int) -> bytes:
        if number >= _MAX_MESSAGES:
            raise InputError(
                "the stream's key is used up after 2**32 messages", fix="Start a stream under a new key"
            )
        return number.to_bytes(NONCE_BYTES, "big")


class Sealer(_Stream):
    """Encrypts an ordered stream of messages under a key that nothing else uses.

    Args:
        key: 32 fresh bytes; a second Sealer under the same key repeats nonces and breaks both.
        capacity: the longest plaintext, in bytes.
    """

    __slots__ = ("_numbers",)

    def __init__(self, key: bytes, capacity: int) -> None:
        super().__init__(key, capacity)
        self._numbers = itertools.count()  # taken before encrypting, in one step: a nonce is never used twice

    def seal(self, plaintext: Buffer, associated_data: bytes) -> memoryview:
        """Return ciphertext | tag, 16 bytes longer, in a buffer that the next call overwrites.

        Raises:
            InputError: longer than the capacity, empty associated data, or 2**32 messages are through.
        """
        data = _as_bytes(plaintext)
        self._check(associated_data, len(data))
        nonce = self._nonce(next(self._numbers))
        out = self._view[: len(data) + TAG_BYTES]
        self._cipher.encrypt_into(nonce, data, associated_data, out)
        return out.toreadonly()


class Opener(_Stream):
    """Opens what a `Sealer` under the same key made, in order; a message that fails does not count."""

    __slots__ = ("_number",)

    def __init__(self, key: bytes, capacity: int) -> None:
        super().__init__(key, capacity)
        self._number = 0

    def open(self, sealed: Buffer, associated_data: bytes) -> memoryview:
        """Return the plaintext in a buffer that the next call overwrites.

        Raises:
            InputError: longer than the capacity, empty associated data, or 2**32 messages are through.
            IntegrityError: altered, out of order, or under other associated data.
        """
        data = _as_bytes(sealed)
        if len(data) < TAG_BYTES:
            raise _altered()
        self._check(associated_data, len(data) - TAG_BYTES)
        nonce = self._nonce(self._number)
        out = self._view[: len(data) - TAG_BYTES]
        try:
            self._cipher.decrypt_into(nonce, data, associated_data, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise _altered() from None
        self._number += 1
        return out.toreadonly()


class Numbered(HoldsSecret):
    """Seals and opens messages by their number, which is the nonce, under a key for one direction only.

    A number may be sealed again only with the same plaintext and the same associated data, which gives the
    same bytes. Two plaintexts under one number would show their difference, and two of anything would give
    away the key that authenticates: this object keeps no record, so whoever calls it must compare what a
    repetition gives with a digest of what the first one gave, before a byte of it leaves.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        check_length(key, KEY_BYTES, "an AES-256 key")
        self._cipher = AESGCM(key)

    def seal(self, number: int, plaintext: Buffer, associated_data: bytes) -> bytes:
        """Return ciphertext | tag, 16 bytes longer than `plaintext`.

        Raises:
            InputError: the number is 2**32 or more, the associated data empty, or the plaintext too long.
        """
        _check_associated_data(associated_data)
        data = _as_bytes(plaintext)
        if len(data) > _MAX_MESSAGE:
            raise InputError(f"a message is longer than {_MAX_MESSAGE} bytes", fix="Split it")
        return self._cipher.encrypt(_Stream._nonce(number), data, associated_data)

    def open(self, number: int, sealed: Buffer, associated_data: bytes) -> bytes:
        """Return the plaintext of message `number`.

        Raises:
            InputError: the number is 2**32 or more, or the associated data empty.
            IntegrityError: altered, of another number, or under other associated data.
        """
        _check_associated_data(associated_data)
        try:
            return self._cipher.decrypt(_Stream._nonce(number), _as_bytes(sealed), associated_data)
        except InvalidTag:
            raise _altered() from None

    def open_into(self, number: int, sealed: Buffer, associated_data: bytes, out: memoryview) -> None:
        """Write the plaintext of message `number` to `out`, which has exactly its length. Where it does not
        open, `out` is zeros.

        Raises:
            InputError: the number is 2**32 or more, the associated data empty, or `out` of another length.
            IntegrityError: altered, of another number, or under other associated data.
        """
        _check_associated_data(associated_data)
        data = _as_bytes(sealed)
        check_length(data, len(out) + TAG_BYTES, "a sealed message for this buffer")
        try:
            self._cipher.decrypt_into(_Stream._nonce(number), data, associated_data, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise _altered() from None
