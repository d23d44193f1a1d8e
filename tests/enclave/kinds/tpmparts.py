"""A TPM's structures written by hand, with keys of the test's own: a second derivation of what is parsed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ATTRIBUTES = 0x00050072
BANKS = {"sha1": 4, "sha256": 11, "sha384": 12, "sha512": 13}


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def public_area(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, attributes: int = ATTRIBUTES) -> bytes:
    """TPMT_PUBLIC, SHA-256 names, no policy."""
    if isinstance(key, rsa.RSAPrivateKey):
        modulus = key.public_key().public_numbers().n.to_bytes(256)
        return struct.pack(">HHIHHHHHI", 1, 11, attributes, 0, 0x10, 0x14, 11, 2048, 0) + sized(modulus)
    point = key.public_key().public_numbers()
    head = struct.pack(">HHIHHHHHH", 0x23, 11, attributes, 0, 0x10, 0x18, 11, 3, 0x10)
    return head + sized(point.x.to_bytes(32)) + sized(point.y.to_bytes(32))


def name(area: bytes) -> bytes:
    return b"\0\x0b" + hashlib.sha256(area).digest()


def attest(
    area: bytes,
    pcrs: Mapping[str, Mapping[int, bytes]],
    extra: bytes,
    *,
    resets: int = 7,
    hierarchy: int = 0x4000000B,
    parent: bytes = b"",
    kind: int = 0x8018,
) -> bytes:
    """TPMS_ATTEST of a primary key, or of one below the primary key whose TPMT_PUBLIC is `parent`."""
    above = struct.pack(">I", hierarchy)
    for each in (parent, area) if parent else (area,):
        above = b"\0\x0b" + hashlib.sha256(above + name(each)).digest()
    signer = above
    selection, values = b"", b""
    for bank, registers in pcrs.items():
        bits = sum(1 << index for index in registers)
        selection += struct.pack(">HB", BANKS[bank], 3) + bits.to_bytes(3, "little")
        values += b"".join(registers[index] for index in sorted(registers))
    return (
        b"\xffTCG"
        + struct.pack(">H", kind)
        + sized(signer)
        + sized(extra)
        + struct.pack(">QIIBQ", 12345, resets, 0, 1, 0x0102030405060708)
        + struct.pack(">I", len(pcrs))
        + selection
        + sized(hashlib.sha256(values).digest())
    )


def sign(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, message: bytes, *, pss: bool = False) -> bytes:
    """TPMT_SIGNATURE with SHA-256."""
    if isinstance(key, rsa.RSAPrivateKey):
        how = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else padding.PKCS1v15()
        value = key.sign(message, how, hashes.SHA256())
        return struct.pack(">HH", 0x16 if pss else 0x14, 11) + sized(value)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", 0x18, 11) + sized(r.to_bytes(32)) + sized(s.to_bytes(32))
