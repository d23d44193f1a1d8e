"""The study key: what checkpoints are encrypted under.

The first member of the roster draws it, seals it to every member (and to the hub where the plan lets the hub
see the model), and signs the whole, so the hub that relays it can neither read nor replace it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

import msgspec

from cloister.crypto import (
    Identity,
    PublicIdentity,
    canonical_bytes,
    hpke_open,
    hpke_seal,
    keyring,
    open_envelope,
    sign_envelope,
)
from cloister.errors import IntegrityError, ProtocolError
from cloister.types import RandomBytes

__all__ = ["deal_study_key", "open_study_key", "read_study_keys"]

_TYPE = "application/vnd.cloister.study-keys+json"
_INFO = b"cloister/study-key/v1"


class _SealedKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plan: str
    epoch: int
    keys: dict[str, str]


def _bound(plan_digest: bytes, epoch: int, reader: str) -> bytes:
    return canonical_bytes({"plan": plan_digest.hex(), "epoch": epoch, "reader": reader})


def deal_study_key(
    identity: Identity,
    plan_digest: bytes,
    epoch: int,
    readers: Sequence[PublicIdentity],
    *,
    insecure_test_random: RandomBytes | None = None,
) -> tuple[bytes, bytes]:
    """Draw a study key and seal it to every reader.

    Returns:
        The 32-byte key, and the signed envelope that carries it to `readers`.
    """
    key = (insecure_test_random or os.urandom)(32)
    sealed = {
        reader.name: base64.b64encode(
            hpke_seal(
                reader.sealing_key, key, info=_INFO, associated_data=_bound(plan_digest, epoch, reader.name)
            )
        ).decode()
        for reader in readers
    }
    payload = canonical_bytes(_SealedKeys(plan_digest.hex(), epoch, sealed))
    return key, sign_envelope(_TYPE, payload, [identity])


def read_study_keys(
    envelope: bytes, dealer: PublicIdentity, plan_digest: bytes, epoch: int, *, readers: Sequence[str]
) -> dict[str, bytes]:
    """Return the sealed keys by reader, as far as somebody can check them who opens none.

    Raises:
        ProtocolError: the envelope is not the dealer's, is for another study or epoch, or leaves out a
            reader.
    """
    try:
        keys = msgspec.json.decode(open_envelope(envelope, _TYPE, keyring([dealer])), type=_SealedKeys)
        sealed = {reader: base64.b64decode(key, validate=True) for reader, key in keys.keys.items()}
    except (IntegrityError, msgspec.DecodeError, ValueError) as error:
        raise ProtocolError("dealt a study key that does not open", peer=dealer.name) from error
    if (keys.plan, keys.epoch) != (plan_digest.hex(), epoch) or not set(readers) <= set(sealed):
        raise ProtocolError("dealt a study key for another study or reader", peer=dealer.name)
    return sealed


def open_study_key(
    envelope: bytes, dealer: PublicIdentity, identity: Identity, plan_digest: bytes, epoch: int
) -> bytes:
    """Return the study key addressed to `identity`.

    Raises:
        ProtocolError: the envelope is not the dealer's, is for another study or epoch, or does not name this
            reader.
    """
    sealed = read_study_keys(envelope, dealer, plan_digest, epoch, readers=[identity.name])
    try:
        key = hpke_open(
            identity.sealing,
            sealed[identity.name],
            info=_INFO,
            associated_data=_bound(plan_digest, epoch, identity.name),
        )
    except IntegrityError as error:
        raise ProtocolError("dealt a study key that does not open", peer=dealer.name) from error
    if len(key) != 32:
        raise ProtocolError("dealt a study key of a wrong length", peer=dealer.name)
    return key
