"""X25519 key agreement (RFC 7748).

What `exchange` returns is not a key yet: it goes through `kdf.hkdf`, whose info names both sides and the use.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cloister.crypto._base import HoldsSecret, SecretAccess, check_length, require_secret_access
from cloister.errors import ProtocolError
from cloister.types import RandomBytes

__all__ = ["AGREEMENT_BYTES", "AgreementKey"]

AGREEMENT_BYTES: Final = 32


class AgreementKey(HoldsSecret):
    """An X25519 private key; `public` is its 32-byte public key."""

    __slots__ = ("_key", "public")

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public: Final[bytes] = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random: RandomBytes = os.urandom) -> AgreementKey:
        """Return a new key from 32 bytes of `random`."""
        return cls.from_bytes(random(AGREEMENT_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes) -> AgreementKey:
        """Return the key stored as 32 secret bytes. Raises InputError for any other length."""
        check_length(data, AGREEMENT_BYTES, "an X25519 private key")
        return cls(X25519PrivateKey.from_private_bytes(data))

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return the 32 secret bytes; needs `SECRET_ACCESS`."""
        require_secret_access(token)
        return self._key.private_bytes_raw()

    def exchange(self, peer_public: bytes) -> bytes:
        """Return the 32-byte shared secret with the owner of `peer_public`.

        Raises:
            InputError: `peer_public` is not 32 bytes.
            ProtocolError: it is a point of small order, whose result everybody could compute.
        """
        check_length(peer_public, AGREEMENT_BYTES, "an X25519 public key")
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            raise ProtocolError(
                "a peer's X25519 public key has small order", fix="Reject this peer"
            ) from None
