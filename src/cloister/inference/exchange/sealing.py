"""How an exchange begins: the secret that a request seals, and the keys of both directions.

    request = version | key-set digest 32 | sealed secret 1,168 | frames
    answer  = version | server nonce 32 | frames

    sealed secret = HPKE(encryption key, 32 fresh bytes, info = label | key-set digest, AAD = "request")
    request key   = HKDF(secret, salt = enc, info = label | "/request")
    answer key    = HKDF(secret, salt = enc | server nonce, info = label | "/response")

`enc`, the first 1,120 bytes of the sealed secret, is the encapsulated key. HPKE's info holds nothing private.
The server's nonce lets no answer key depend on the client's randomness alone.
"""

from __future__ import annotations

from typing import Final

from cloister.crypto import hkdf
from cloister.inference.exchange.frames import ANSWER, REQUEST, FrameOpener, FrameSealer

__all__ = [
    "AAD",
    "ANSWER_PREFIX",
    "NONCE_BYTES",
    "REQUEST_PREFIX",
    "VERSION",
    "answer_opener",
    "answer_sealer",
    "info",
    "request_opener",
    "request_sealer",
]

VERSION: Final = b"\x01"
"""The first byte of either direction."""
AAD: Final = b"request"
"""The associated data of the sealed secret."""
NONCE_BYTES: Final = 32
"""Bytes of the server's nonce."""
DIGEST_BYTES: Final = 32
SEALED_BYTES: Final = 1_168
REQUEST_PREFIX: Final = 1 + DIGEST_BYTES + SEALED_BYTES
"""Bytes of a request before its first frame: 1,201."""
ANSWER_PREFIX: Final = 1 + NONCE_BYTES
"""Bytes of an answer before its first frame: 33."""
_LABEL: Final = b"cloister/exchange/v1"
_ENC_BYTES: Final = 1_120


def info(keys_digest: bytes) -> bytes:
    """Return HPKE's info for a key set."""
    return _LABEL + keys_digest


def _request_key(secret: bytes, sealed: bytes) -> bytes:
    return hkdf(secret, salt=sealed[:_ENC_BYTES], info=_LABEL + b"/request")


def _answer_key(secret: bytes, sealed: bytes, nonce: bytes) -> bytes:
    return hkdf(secret, salt=sealed[:_ENC_BYTES] + nonce, info=_LABEL + b"/response")


def request_sealer(secret: bytes, sealed: bytes) -> FrameSealer:
    """Return what makes a request's frames, at the client."""
    return FrameSealer(_request_key(secret, sealed), REQUEST)


def request_opener(secret: bytes, sealed: bytes) -> FrameOpener:
    """Return what opens a request's frames, at the server."""
    return FrameOpener(_request_key(secret, sealed), REQUEST)


def answer_sealer(secret: bytes, sealed: bytes, nonce: bytes) -> FrameSealer:
    """Return what makes an answer's frames, at the server."""
    return FrameSealer(_answer_key(secret, sealed, nonce), ANSWER)


def answer_opener(secret: bytes, sealed: bytes, nonce: bytes) -> FrameOpener:
    """Return what opens an answer's frames, at the client."""
    return FrameOpener(_answer_key(secret, sealed, nonce), ANSWER)
