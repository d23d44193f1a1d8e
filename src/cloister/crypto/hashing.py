"""Hashes, HMAC, comparison in constant time, and the list of what is refused.

`sha256(a, b)` hashes the bytes a | b one after the other: where parts vary in length, hash `framed(a, b)`,
which no other parts give.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import constant_time, hashes, hmac

from cloister.crypto._base import Buffer
from cloister.errors import InputError

__all__ = [
    "constant_time_equal",
    "digest_file",
    "framed",
    "hash_named",
    "hmac_sha256",
    "refuse_weak",
    "sha256",
    "sha512",
]

_ALGORITHMS: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
    "sha3-256": hashes.SHA3_256,
    "sha3-512": hashes.SHA3_512,
}

_WEAK: Final[tuple[tuple[str, str, str], ...]] = (
    # pattern over the name in lower case without punctuation; how it is called; why it is refused
    (r".*ecb.*", "ECB", "it shows which blocks are equal; use AES-256-GCM"),
    (
        r"(3des|des3|tripledes|tdes|tdea|desede3?|desede3).*",
        "3DES",
        "its 64-bit blocks collide after 32 GiB; use AES-256-GCM",
    ),
    (r"des(cbc|cfb|ofb|ctr)?", "DES", "its 56-bit key is found in hours; use AES-256-GCM"),
    (r"(a|arc)?(rc4|four)(40|128)?|arc4", "RC4", "its keystream is biased; use AES-256-GCM"),
    (r"a?rc2.*", "RC2", "its blocks and effective keys are too short; use AES-256-GCM"),
    (r"blowfish.*|bf(cbc|cfb|ofb)?", "Blowfish", "its 64-bit blocks collide after 32 GiB; use AES-256-GCM"),
    (r"(hmac)?md2", "MD2", "collisions are known; use SHA-256"),
    (r"(hmac)?md4", "MD4", "collisions are made by hand; use SHA-256"),
    (r"(hmac)?md5", "MD5", "collisions are made in seconds; use SHA-256"),
    (r"(hmac)?sha[01]?", "SHA-1", "chosen-prefix collisions are practical; use SHA-256"),
    (
        r"rsa(es)?\d*(encryption)?pkcs1?(v15)?(encryption)?",
        "RSA PKCS#1 v1.5 encryption",
        "its padding is an oracle (Bleichenbacher); use RSA-OAEP with SHA-256 or HPKE",
    ),
)
_RSA_BITS: Final = re.compile(r"rsa(?:oaep|pss|es|ssa)*(\d{3,5})", re.ASCII)
_MIN_RSA_BITS: Final = 3072


def _digest(algorithm: hashes.HashAlgorithm, parts: tuple[Buffer, ...]) -> bytes:
    state = hashes.Hash(algorithm)
    for part in parts:
        state.update(part)
    return state.finalize()


def sha256(*parts: Buffer) -> bytes:
    """Return the 32-byte SHA-256 of the parts, one after the other without framing."""
    return _digest(hashes.SHA256(), parts)


def sha512(*parts: Buffer) -> bytes:
    """Return the 64-byte SHA-512 of the parts, one after the other without framing."""
    return _digest(hashes.SHA512(), parts)


def hmac_sha256(key: bytes, *parts: Buffer) -> bytes:
    """Return the 32-byte HMAC-SHA-256 (RFC 2104) of the parts, one after the other without framing.

    Raises:
        InputError: the key is empty.
    """
    if not key:
        raise InputError("an HMAC key is empty", fix="Give at least 16 random bytes")
    state = hmac.HMAC(key, hashes.SHA256())
    for part in parts:
        state.update(part)
    return state.finalize()


def framed(*parts: Buffer) -> bytes:
    """Return the parts, each behind its length in 8 bytes, so that other parts give other bytes."""
    return b"".join(piece for part in map(bytes, parts) for piece in (len(part).to_bytes(8, "big"), part))


def constant_time_equal(left: bytes, right: bytes) -> bool:
    """Compare without telling, by time, where the first difference is; lengths are not hidden."""
    return constant_time.bytes_eq(left, right)


def refuse_weak(name: str) -> None:
    """Raise InputError, with the reason, where `name` is an algorithm known to be broken.

    Names are read loosely: "SHA-1", "sha1", "aes-ecb", "rsa-2048". A name that passes is not therefore good:
    callers choose from a list of their own.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for pattern, title, reason in _WEAK:
        if re.fullmatch(pattern, plain, re.ASCII):
            raise InputError(f"{title} is refused: {reason}")
    bits = _RSA_BITS.match(plain)
    if bits and int(bits[1]) < _MIN_RSA_BITS:
        raise InputError(
            f"RSA below {_MIN_RSA_BITS} bits is refused: it is factored too cheaply; use RSA-3072 or more"
        )


def _algorithm(name: str) -> hashes.HashAlgorithm:
    refuse_weak(name)
    found = _ALGORITHMS.get(name.lower())
    if found is None:
        raise InputError("this hash algorithm is not known", fix=f"Use one of {', '.join(_ALGORITHMS)}")
    return found()


def hash_named(name: str, data: Buffer) -> bytes:
    """Return the digest of `data` under sha256, sha384, sha512, sha3-256 or sha3-512.

    Raises:
        InputError: the name is unknown or weak; the message says why.
    """
    return _digest(_algorithm(name), (data,))


def digest_file(path: Path, algorithm: str = "sha256") -> bytes:
    """Return the digest of a file, read in pieces of 1 MiB.

    Raises:
        InputError: the algorithm is unknown or weak, or the file cannot be read.
    """
    state = hashes.Hash(_algorithm(algorithm))
    buffer = memoryview(bytearray(1 << 20))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])
    except OSError as error:
        raise InputError(
            f"cannot read the file: {error.strerror}", where=str(path), fix="Check the path"
        ) from error
    return state.finalize()
