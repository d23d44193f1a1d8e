"""Every hash and derived key of the secure sum, in one place, each under its own label.

`bind` writes label and parts with their lengths before hashing, so that no two different lists of parts
give the same bytes and no value made for one purpose can serve another. Keys come from HKDF-SHA-256 with
the same kind of string as info.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import framed, hkdf, hmac_sha256, sha256
from cloister.errors import InputError

__all__ = [
    "DIGEST_BYTES",
    "associated_data",
    "bind",
    "choice_statement",
    "epoch_key_commitment",
    "hidden_model_tag",
    "model_digest",
    "pair_key",
    "seed_commitment",
    "self_key",
    "share_hash",
    "sharing_key",
    "statement",
    "view_key",
]

DIGEST_BYTES = 32
Part = bytes | str | int


def statement(label: str, *parts: Part) -> bytes:
    """Return label and parts as unambiguous bytes: what is hashed, signed, or used as info."""
    return framed(f"cloister secure sum v1 {label}".encode(), *(_bytes(part) for part in parts))


def _bytes(part: Part) -> bytes:
    if isinstance(part, int):
        return part.to_bytes(8, "big")
    return part.encode() if isinstance(part, str) else part


def bind(label: str, *parts: Part) -> bytes:
    """Return the SHA-256 of `statement`."""
    return sha256(statement(label, *parts))


def model_digest(model: NDArray[np.floating[Any]] | bytes) -> bytes:
    """Return 32 bytes for a global model: float64[d] or float32[d], or the bytes of any other form of it."""
    if isinstance(model, bytes):
        return sha256(b"cloister secure sum v1 model\0", model)
    if model.dtype not in (np.float64, np.float32) or model.ndim != 1:
        raise InputError("a model is one vector of float64 or float32, or bytes")
    whole = np.ascontiguousarray(model, dtype=model.dtype.newbyteorder("<"))
    return sha256(b"cloister secure sum v1 model\0", whole.view(np.uint8).data)


def hidden_model_tag(epoch_key: bytes, attempt: int, digest: bytes) -> bytes:
    """Return the model digest as the hub sees it under hub_view none: an HMAC under the epoch key."""
    return hmac_sha256(
        hkdf(epoch_key, info=statement("model tag key")), statement("model tag", attempt, digest)
    )


def seed_commitment(context: bytes, owner: int, attempt: int, seed: bytes) -> bytes:
    """Return the commitment to an attempt's self-mask seed; the seed is 32 random bytes, so it hides."""
    return bind("seed commitment", context, owner, attempt, seed)


def epoch_key_commitment(context: bytes, epoch_key: bytes) -> bytes:
    """Return the hash by which the first member commits to K_e."""
    return bind("epoch key commitment", context, epoch_key)


def share_hash(context: bytes, dealer: int, holder: int, position: int, share: bytes) -> bytes:
    """Return the hash of one dealt share; a share alone is a uniform field element, so the hash hides it.

    Args:
        context: digest of the epoch's context.
        dealer: whose secret it is a share of.
        holder: who holds it.
        position: 2 * attempt for the attempt's secret key, 2 * attempt + 1 for its seed.
        share: 33 bytes.
    """
    return bind("share", context, dealer, holder, position, share)


def choice_statement(setup: bytes, attempt: int, survivors: tuple[int, ...]) -> bytes:
    """Return what a site signs when it supports a survivor list in an attempt."""
    return statement("choice", setup, attempt, b"".join(index.to_bytes(2, "big") for index in survivors))


def sharing_key(shared: bytes, context: bytes, sender: int, receiver: int) -> bytes:
    """Return the AES key for what `sender` deals to `receiver`; each direction has its own."""
    return hkdf(shared, info=statement("sharing key", context, sender, receiver))


def associated_data(plan: bytes, roster: bytes, epoch: int, sender: int, receiver: int) -> bytes:
    """Return plan | roster | epoch | sender | receiver."""
    return statement("shares", plan, roster, epoch, sender, receiver)


def self_key(seed: bytes, setup: bytes, owner: int, attempt: int) -> bytes:
    """Return the PRG key of a site's self mask."""
    return hkdf(seed, info=statement("self mask", setup, owner, attempt))


def pair_key(
    shared: bytes, plan: bytes, roster: bytes, setup: bytes, attempt: int, tag: bytes, a: int, b: int
) -> bytes:
    """Return the PRG key of the mask between sites a and b, for the model that `tag` stands for.

    The pair is named, so that a site that repeats another's public key as its own gets unrelated masks.
    """
    return hkdf(shared, info=statement("pair mask", plan, roster, setup, attempt, tag, min(a, b), max(a, b)))


def view_key(
    epoch_key: bytes, plan: bytes, roster: bytes, epoch: int, attempt: int, site: int, tag: bytes
) -> bytes:
    """Return the PRG key of the stream that hides a vector from the hub even in the sum (hub_view none)."""
    return hkdf(epoch_key, info=statement("view mask", plan, roster, epoch, attempt, site, tag))
