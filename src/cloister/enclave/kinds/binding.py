"""What several kinds share: fields that carry what was asked for, raw signatures, strict reading."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.enclave.x509 import load_certificates
from cloister.errors import InputError

__all__ = ["Cursor", "carries", "commits_to", "ecdsa", "load_canonical"]

_CURVES: Final[dict[int, tuple[ec.EllipticCurve, hashes.HashAlgorithm]]] = {
    32: (ec.SECP256R1(), hashes.SHA256()),
    48: (ec.SECP384R1(), hashes.SHA384()),
}
"""By the bytes of a coordinate: the curve, and the hash that signatures over it use."""


def carries(field: bytes, expected: bytes | None) -> bool | None:
    """Tell whether a report's field is what the verifier asked for, in constant time; None if nobody asked.

    Args:
        field: the bytes that the report signs.
        expected: the 64 bytes of `report_data`, or the raw nonce that another tool put into the field.

    A field shorter than `expected` must be its beginning and have at least 32 bytes; a field shorter than
    that counts only where `expected` is exactly that field.
    """
    if expected is None:
        return None
    if not field or not expected:
        return False
    wanted = expected[: len(field)] if len(field) >= 32 else expected
    return hmac.compare_digest(field, wanted)


def commits_to(field: bytes, runtime_data: bytes) -> bool:
    """Tell whether 64 bytes of report data are the digest of runtime data: SHA-512, or SHA-256 and zeros."""
    short = hashlib.sha256(runtime_data).digest() + bytes(32)
    return hmac.compare_digest(field, hashlib.sha512(runtime_data).digest()) or hmac.compare_digest(
        field, short
    )


def ecdsa(key: PublicKeyTypes | bytes, signature: bytes, data: bytes, *, size: int) -> bool:
    """Tell whether a raw ECDSA signature holds: P-256 with SHA-256, or P-384 with SHA-384.

    Args:
        key: a public key, or the coordinates x and y of one, big-endian.
        signature: r and s, big-endian, `size` bytes each.
        data: what is signed.
        size: bytes of a coordinate: 32 or 48. A key of another curve verifies nothing.
    """
    curve, algorithm = _CURVES[size]
    try:
        if isinstance(key, bytes):
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\x04" + key)
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve.name:
            return False
        numbers = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
        key.verify(encode_dss_signature(*numbers), data, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError):
        return False
    return len(signature) == 2 * size


def load_canonical(data: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """Return certificates from PEM text in the one form that encoders write.

    Lines of 64 characters, nothing between the certificates; newlines and zeros may follow the last. So no
    byte of the text can change without changing a certificate.

    Raises:
        InputError: it cannot be read, or is in another form.
    """
    text = data.rstrip(b"\n\0")
    found = load_certificates(text, name)
    if b"".join(each.public_bytes(Encoding.PEM) for each in found).rstrip(b"\n") != text:
        raise InputError("certificates are not in canonical PEM", where=name, fix="Get the evidence again")
    return found


class Cursor:
    """Reads a binary format from its start; what is not there is an InputError, never a short read.

    Args:
        data: all of it.
        what: its name, for messages.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self.at + size
        if end > len(self._data):
            raise InputError(f"{self._what} is cut short: {size} bytes are due at offset {self.at}")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def little(self, size: int) -> int:
        """Return an unsigned integer, least significant byte first."""
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data) - self.at)

    def end(self) -> None:
        """Raise InputError where something is left."""
        if self.at != len(self._data):
            raise InputError(f"{self._what} has {len(self._data) - self.at} bytes too many")
