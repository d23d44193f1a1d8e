"""TPM 2.0 structures of a quote, parsed strictly: TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC.

Source: TCG TPM 2.0 Library, part 2 (structures; sections in the docstrings below); big-endian. Nothing may be
left over. Of the algorithms only those are read that a quote may be trusted with: RSA of 2048 bits or more
and the NIST curves P-256 and P-384; SHA-256, SHA-384 and SHA-512. An attestation key must be a restricted
signing key that never left its TPM: any other would sign a quote that somebody made up.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.enclave.kinds.binding import Cursor
from cloister.errors import InputError

__all__ = [
    "HIERARCHIES",
    "Attest",
    "PublicArea",
    "Signature",
    "load_spki",
    "parse_attest",
    "parse_public",
    "parse_signature",
    "qualified_name",
    "rsa_key",
    "rsassa",
]

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
BANKS: Final = {0x0004: "sha1", **HASHES}
SIZES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
_CURVES: Final[dict[int, ec.EllipticCurve]] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
_SIGNERS: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_RSASSA, _RSAPSS, _ECDSA, _NULL = 0x0014, 0x0016, 0x0018, 0x0010
_RSA, _ECC = 0x0001, 0x0023
_MAGIC: Final = b"\xff\x54\x43\x47"
_QUOTE: Final = 0x8018
HIERARCHIES: Final = {"endorsement": 0x4000000B, "owner": 0x40000001, "platform": 0x4000000C}
"""Handles of the hierarchies a primary key may be under (part 2, 7.4); keys of the null one do not last."""
# TPMA_OBJECT (part 2, 8.3): fixedTPM, fixedParent, sensitiveDataOrigin, restricted, sign; and not decrypt
_RESTRICTED: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18
_DECRYPT: Final = 1 << 17
_MAX_RSA: Final = 512


class Attest(NamedTuple):
    """A TPMS_ATTEST of a quote (part 2, 10.12.8).

    Attributes:
        raw: the signed bytes.
        signer: qualified name of the key.
        extra: qualifyingData, what the verifier asked for.
        resets: how often the TPM was started anew, and then resumed.
        safe: whether its clock may be believed.
        firmware: version of the TPM's firmware.
        selection: banks in order, with the registers of each.
        digest: of the registers, by the signature's hash.
    """

    raw: bytes
    signer: bytes
    extra: bytes
    resets: tuple[int, int]
    safe: bool
    firmware: int
    selection: tuple[tuple[str, tuple[int, ...]], ...]
    digest: bytes


class Signature(NamedTuple):
    """A TPMT_SIGNATURE (part 2, 11.3.4): scheme, hash, and the value as `cryptography` takes it."""

    scheme: int
    hash: str
    value: bytes

    def verifies(self, key: PublicKey, message: bytes) -> bool:
        """Tell whether this is a signature over `message` under `key`."""
        algorithm = _SIGNERS[self.hash]
        try:
            if isinstance(key, rsa.RSAPublicKey) and self.scheme == _RSASSA:
                key.verify(self.value, message, padding.PKCS1v15(), algorithm)
            elif isinstance(key, rsa.RSAPublicKey) and self.scheme == _RSAPSS:
                pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
                key.verify(self.value, message, pss, algorithm)
            elif isinstance(key, ec.EllipticCurvePublicKey) and self.scheme == _ECDSA:
                key.verify(self.value, message, ec.ECDSA(algorithm))
            else:
                return False
        except InvalidSignature:
            return False
        return True


class PublicArea(NamedTuple):
    """A TPMT_PUBLIC (part 2, 12.2.4).

    Attributes:
        key: the public key.
        attributes: TPMA_OBJECT.
        name: nameAlg and digest of the whole structure (part 1, 16).
    """

    key: PublicKey
    attributes: int
    name: bytes

    @property
    def restricted(self) -> bool:
        """Whether it only signs what its own TPM made, and cannot leave it."""
        return self.attributes & _RESTRICTED == _RESTRICTED and not self.attributes & _DECRYPT


def qualified_name(parent: bytes, name: bytes) -> bytes:
    """Return a key's qualified name: nameAlg and digest of its parent's qualified name and its own name.

    Args:
        parent: the qualified name above it; for a primary key its hierarchy's handle, 4 bytes.
        name: the key's own, as `PublicArea.name`.
    """
    bank = HASHES[int.from_bytes(name[:2])]
    return name[:2] + hashlib.new(bank, parent + name).digest()


def parse_attest(data: bytes) -> Attest:
    """Return the quote in a TPMS_ATTEST. Raises InputError: malformed, or no quote."""
    cursor = Cursor(data, "a TPM quote")
    if cursor.take(4) != _MAGIC or _int(cursor, 2) != _QUOTE:
        raise InputError("this is not a quote of a TPM")
    signer = _sized(cursor, 68)
    extra = _sized(cursor, 64)
    cursor.take(8)  # clock: it runs on, and says nothing here
    resets = _int(cursor, 4), _int(cursor, 4)
    safe = _int(cursor, 1)
    firmware = _int(cursor, 8)
    count = _int(cursor, 4)
    if safe > 1 or not 1 <= count <= len(BANKS):
        raise InputError("a TPM quote has a field out of range")
    selection = tuple(_selection(cursor) for _ in range(count))
    digest = _sized(cursor, 64)
    cursor.end()
    if len({bank for bank, _ in selection}) != count:
        raise InputError("a TPM quote selects a bank twice")
    return Attest(data, signer, extra, resets, bool(safe), firmware, selection, digest)


def _selection(cursor: Cursor) -> tuple[str, tuple[int, ...]]:
    """Read a TPMS_PCR_SELECTION (part 2, 10.6.2) of 24 registers."""
    bank = BANKS.get(_int(cursor, 2))
    if bank is None or _int(cursor, 1) != 3:
        raise InputError("a TPM quote selects a bank that is not known")
    bits = cursor.little(3)
    return bank, tuple(index for index in range(24) if bits >> index & 1)


def parse_signature(data: bytes) -> Signature:
    """Return the signature in a TPMT_SIGNATURE. Raises InputError: malformed, or its algorithm is refused."""
    cursor = Cursor(data, "a TPM signature")
    scheme, number = _int(cursor, 2), _int(cursor, 2)
    if number not in HASHES or scheme not in (_RSASSA, _RSAPSS, _ECDSA):
        raise InputError("a TPM signature has an algorithm that is not accepted")
    if scheme == _ECDSA:
        r, s = _sized(cursor, 48), _sized(cursor, 48)
        value = encode_dss_signature(int.from_bytes(r), int.from_bytes(s))
    else:
        value = _sized(cursor, _MAX_RSA)
    cursor.end()
    return Signature(scheme, HASHES[number], value)


def rsassa(value: bytes) -> Signature:
    """Return a bare RSASSA-PKCS1-v1_5 signature with SHA-256, as Azure's agents hand it on."""
    return Signature(_RSASSA, "sha256", value)


def parse_public(data: bytes) -> PublicArea:
    """Return the key in a TPMT_PUBLIC. Raises InputError: malformed, or a kind of key that is refused."""
    cursor = Cursor(data, "a TPM public area")
    kind, number = _int(cursor, 2), _int(cursor, 2)
    if kind not in (_RSA, _ECC) or number not in HASHES:
        raise InputError("a TPM key has a kind that is not accepted")
    attributes = _int(cursor, 4)
    _sized(cursor, 64)  # authPolicy
    if _int(cursor, 2) != _NULL:  # symmetric: only keys that store others have one
        cursor.take(4)
    if _int(cursor, 2) != _NULL:  # scheme
        cursor.take(2)
    key = _rsa(cursor) if kind == _RSA else _ecc(cursor)
    cursor.end()
    return PublicArea(key, attributes, data[2:4] + hashlib.new(HASHES[number], data).digest())


def _rsa(cursor: Cursor) -> PublicKey:
    bits, exponent = _int(cursor, 2), _int(cursor, 4)
    modulus = _sized(cursor, _MAX_RSA)
    if exponent not in (0, 65537) or bits < 2048 or int.from_bytes(modulus).bit_length() != bits:
        raise InputError("a TPM key has a size or exponent that is not accepted")
    return rsa_key(modulus)


def rsa_key(modulus: bytes) -> rsa.RSAPublicKey:
    """Return the RSA key with exponent 65,537. Raises InputError: shorter than 2048 bits, or no modulus."""
    number = int.from_bytes(modulus)
    if not 2048 <= number.bit_length() <= 8 * _MAX_RSA:
        raise InputError("an RSA key has a size that is not accepted")
    try:
        return rsa.RSAPublicNumbers(65537, number).public_key()
    except ValueError:
        raise InputError("an RSA key is not one") from None


def _ecc(cursor: Cursor) -> PublicKey:
    curve = _CURVES.get(_int(cursor, 2))
    if _int(cursor, 2) != _NULL:  # kdf
        cursor.take(2)
    x, y = _sized(cursor, 48), _sized(cursor, 48)
    if curve is None:
        raise InputError("a TPM key has a curve that is not accepted")
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()
    except ValueError:
        raise InputError("a TPM key is not on its curve") from None


def load_spki(data: bytes) -> PublicKey:
    """Return the key in a SubjectPublicKeyInfo, DER. Raises InputError: unreadable or its kind is refused."""
    try:
        key = load_der_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError("this is not a public key in DER, or of no known kind") from None
    return accepted(key)


def accepted(key: object) -> PublicKey:
    """Return a key that may sign quotes or endorse such a key. Raises InputError: another kind or size."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    raise InputError("a public key has a kind or size that is not accepted")


def _int(cursor: Cursor, size: int) -> int:
    return int.from_bytes(cursor.take(size))


def _sized(cursor: Cursor, most: int) -> bytes:
    """Read a TPM2B: two bytes of length and that many more."""
    size = _int(cursor, 2)
    if size > most:
        raise InputError("a TPM structure has a field that is too long")
    return cursor.take(size)
