"""What site and hub need to go on after their process died, and the checks before it is used.

A site's snapshot holds secrets: the epoch key, and for each attempt its secret key, its seed and the shares
it holds. Whoever keeps it must see to it that the part of an attempt can no longer be read once a later
attempt is entered; without that, keeping it takes back what erasing it gave. A hub's snapshot holds no
secret.

Nothing is taken on trust: signatures are checked again and keys are compared with what was announced. Keys of
small order are not looked for a second time.
"""

from __future__ import annotations

import msgspec

from cloister.crypto import Buffer, HoldsSecret
from cloister.errors import IntegrityError, ProtocolError
from cloister.secagg import derivation
from cloister.secagg.context import EpochContext
from cloister.secagg.dealing import EpochSecrets
from cloister.secagg.derivation import DIGEST_BYTES
from cloister.secagg.messages import Upload, decode
from cloister.secagg.setup import Setup, read_announcements, set_up

__all__ = [
    "HubSnapshot",
    "SiteSnapshot",
    "check_position",
    "decode_hub_snapshot",
    "encode_hub_snapshot",
    "restored_secrets",
    "restored_setup",
]


class SiteSnapshot(HoldsSecret, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's epoch after its set-up.

    Attributes:
        announcements: signed, of all members, in roster order.
        headers: signed, of all deals, likewise.
        epoch_key: K_e under hub_view none, else empty.
        attempts: for each attempt, what is secret of it in one piece; empty once it is erased.
    """

    announcements: list[bytes]
    headers: list[bytes]
    epoch_key: bytes
    attempts: list[bytes]


class HubSnapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hub's epoch after its set-up: signed announcements and headers, and each dealer's share hashes."""

    announcements: list[bytes]
    headers: list[bytes]
    share_hashes: list[bytes]


def encode_hub_snapshot(snapshot: HubSnapshot) -> bytes:
    """Return the bytes that `decode_hub_snapshot` reads."""
    return msgspec.msgpack.encode(snapshot)


def decode_hub_snapshot(data: Buffer, context: EpochContext) -> HubSnapshot:
    """Parse what a hub kept. Raises IntegrityError where it is not a snapshot of this epoch."""
    try:
        snapshot = msgspec.msgpack.decode(data, type=HubSnapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _misfit("is not a snapshot") from None
    n, size = len(context.roster), len(context.roster) * 2 * context.attempts * DIGEST_BYTES
    if [len(hashes) for hashes in snapshot.share_hashes] != [size] * n:
        raise _misfit("has the wrong number of share hashes")
    return snapshot


def restored_setup(context: EpochContext, snapshot: SiteSnapshot | HubSnapshot) -> Setup:
    """Return the set-up of a snapshot. Raises IntegrityError where it is not one of this epoch."""
    try:
        announced = read_announcements(context, snapshot.announcements, seen_before=True)
        return set_up(announced, snapshot.headers)
    except ProtocolError as error:
        raise _misfit(error.what) from None


def restored_secrets(setup: Setup, me: int, snapshot: SiteSnapshot, attempt: int) -> EpochSecrets:
    """Return a site's secrets of `attempt` and those after it; what is before it stays erased.

    1. There is a part for every attempt, and it is whole.
    2. Each key and seed is the one this site announced.
    3. The epoch key is the one the first member committed to.

    Raises:
        IntegrityError: it is not so.
    """
    context, announced = setup.context, setup.announced
    if len(snapshot.attempts) != context.attempts or not all(snapshot.attempts[max(attempt, 0) :]):
        raise _misfit("lacks an attempt")
    due = [b"" if number < attempt else part for number, part in enumerate(snapshot.attempts)]
    secrets = EpochSecrets.restore(context, me, due, snapshot.epoch_key)  # 1
    for number in range(max(attempt, 0), context.attempts):
        own = secrets.attempts[number]
        commitment = derivation.seed_commitment(context.digest, me, number, own.seed)
        if (own.key.public, commitment) != (
            announced.attempt_key(me, number),
            announced.seed_commitment(me, number),
        ):
            raise _misfit("has other keys than this site announced")  # 2
    key = snapshot.epoch_key
    held = derivation.epoch_key_commitment(context.digest, key) if key else b""
    if held != announced.bodies[0].epoch_key_commitment:
        raise _misfit("has another epoch key")  # 3
    return secrets


def check_position(
    setup: Setup, me: int, attempt: int, uploaded: bytes | None, choice: tuple[int, ...] | None
) -> None:
    """Check what a site did in the attempt it was in.

    1. The attempt is one of the epoch's; before the first nothing was done.
    2. The upload is this site's, of this set-up and attempt.
    3. The choice is a list this site may have supported, and holds it only if it has uploaded.

    Raises:
        IntegrityError: it is not so.
    """
    context = setup.context
    if not -1 <= attempt < context.attempts or (attempt < 0 and (uploaded, choice) != (None, None)):  # 1
        raise _misfit("names an attempt that there is not")
    if uploaded is not None:  # 2
        try:
            sent = decode(uploaded, Upload, context, None)
        except ProtocolError as error:
            raise _misfit(error.what) from None
        if (sent.setup, sent.attempt, sent.sender) != (setup.digest, attempt, context.roster.names[me]):
            raise _misfit("has an upload of another set-up, attempt or site")
    if choice is not None:  # 3
        try:
            checked = context.check_survivors([context.roster.names[index] for index in choice])
        except (ProtocolError, IndexError):
            raise _misfit("has a choice that cannot have been made") from None
        if checked != choice or (me in choice and uploaded is None):
            raise _misfit("has a choice that cannot have been made")


def _misfit(what: str) -> IntegrityError:
    return IntegrityError(f"what was kept of an epoch {what}", fix="Wait for the next epoch")
