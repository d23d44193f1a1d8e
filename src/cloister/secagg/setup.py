"""The public half of an epoch's set-up: what hub and sites check alike, and the digest of it all.

Two messages a site, all or nothing:

1. every site announces, signed, one X25519 public key and one commitment to a self-mask seed for each of R
   attempts, and one more public key for receiving shares (`read_announcement`);
2. every site deals: it seals to each other site Shamir shares of all its attempts' secrets and signs a
   header with a digest of each holder's share hashes (`read_header`; what is sealed is `dealing.py`).

The set-up digest covers all signed announcements and headers in roster order. It enters every mask key and
every signature, so sites that were shown different set-ups produce masks that do not cancel and signatures
that do not count.

What no holder can see is whether a dealer's shares lie on one polynomial. What is rebuilt from them is
therefore checked against the announced key or commitment, and a mismatch names the dealer (`round.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cloister.crypto import AgreementKey, sha256
from cloister.errors import ProtocolError
from cloister.secagg import derivation
from cloister.secagg.context import EpochContext
from cloister.secagg.derivation import DIGEST_BYTES
from cloister.secagg.messages import Announcement, DealHeader, open_signed

__all__ = [
    "ANNOUNCE",
    "DEAL",
    "Announcements",
    "Setup",
    "holder_digests",
    "read_announcement",
    "read_announcements",
    "read_header",
    "set_up",
]

ANNOUNCE = "announcement"
DEAL = "deal header"


def read_announcement(
    context: EpochContext, sender: str, data: bytes, *, seen_before: bool = False
) -> Announcement:
    """Check one signed announcement.

    1. The signature of the roster's identity.
    2. This context and sender.
    3. As many keys and commitments as attempts, and a commitment to K_e exactly where one is due.
    4. No key twice.
    5. No key of small order; not looked for again in what was read before.

    Raises:
        ProtocolError: naming the sender.
    """
    body = open_signed(data, Announcement, ANNOUNCE, context, sender)  # 1
    if body.context != context.digest or body.sender != sender:  # 2
        raise ProtocolError(
            "an announcement belongs to another plan, roster or epoch",
            peer=sender,
            fix="Compare plan and roster hashes",
        )
    due = DIGEST_BYTES if context.hub_view == "none" and context.roster.index(sender) == 0 else 0
    lengths = (len(body.attempt_keys), len(body.seed_commitments), len(body.epoch_key_commitment))
    if lengths != (32 * context.attempts, DIGEST_BYTES * context.attempts, due):  # 3
        raise ProtocolError("an announcement has the wrong number of keys or commitments", peer=sender)
    keys = _keys(body)
    if len(set(keys)) != len(keys):  # 4
        raise ProtocolError("an announcement repeats a key", peer=sender)
    if seen_before:
        return body
    probe = AgreementKey.generate()
    for key in keys:  # 5
        try:
            probe.exchange(key)
        except ProtocolError:
            raise ProtocolError("an announced key has small order", peer=sender) from None
    return body


def _keys(body: Announcement) -> list[bytes]:
    return [body.share_key, *(body.attempt_keys[i : i + 32] for i in range(0, len(body.attempt_keys), 32))]


@dataclass(frozen=True)
class Announcements:
    """All checked announcements of an epoch in roster order, their digest, and as they were signed."""

    context: EpochContext
    bodies: tuple[Announcement, ...]
    digest: bytes
    signed: tuple[bytes, ...]

    def attempt_key(self, member: int, attempt: int) -> bytes:
        """Return a member's public key of an attempt."""
        return self.bodies[member].attempt_keys[32 * attempt : 32 * attempt + 32]

    def seed_commitment(self, member: int, attempt: int) -> bytes:
        """Return a member's commitment to its seed of an attempt."""
        return self.bodies[member].seed_commitments[32 * attempt : 32 * attempt + 32]


def read_announcements(
    context: EpochContext, messages: Sequence[bytes], *, seen_before: bool = False
) -> Announcements:
    """Check all announcements, given in roster order.

    Args:
        context: the epoch.
        messages: one of each member.
        seen_before: whether this party has checked them already, in a process that died.

    Raises:
        ProtocolError: naming whose is wrong.
    """
    if len(messages) != len(context.roster):
        raise ProtocolError(f"{len(messages)} announcements came for a roster of {len(context.roster)}")
    bodies = []
    seen: set[bytes] = set()
    for name, message in zip(context.roster.names, messages, strict=True):
        body = read_announcement(context, name, message, seen_before=seen_before)
        keys = _keys(body)
        if not seen.isdisjoint(keys):
            raise ProtocolError("an announcement repeats another member's key", peer=name)
        seen.update(keys)
        bodies.append(body)
    digest = derivation.bind("announcements", context.digest, *messages)
    return Announcements(context, tuple(bodies), digest, tuple(messages))


def holder_digests(share_hashes: bytes, holders: int) -> bytes:
    """Return the digest of each holder's share hashes, one after the other."""
    size = len(share_hashes) // holders
    return b"".join(sha256(share_hashes[i * size : (i + 1) * size]) for i in range(holders))


def read_header(announced: Announcements, sender: str, data: bytes) -> DealHeader:
    """Check a dealer's signed header: signature, context, sender, the same announcements, n digests.

    Raises:
        ProtocolError: naming the dealer.
    """
    context = announced.context
    header = open_signed(data, DealHeader, DEAL, context, sender)
    if header.context != context.digest or header.sender != sender:
        raise ProtocolError("a deal belongs to another plan, roster or epoch", peer=sender)
    if header.announcements != announced.digest:
        raise ProtocolError(
            "a dealer was shown other announcements",
            peer=sender,
            fix="The hub or a site equivocates; begin a new epoch",
        )
    if len(header.holder_digests) != DIGEST_BYTES * len(context.roster):
        raise ProtocolError("a deal has the wrong number of digests", peer=sender)
    return header


@dataclass(frozen=True)
class Setup:
    """The public outcome of a set-up, equal at all who were shown the same messages."""

    announced: Announcements
    headers: tuple[DealHeader, ...]
    digest: bytes
    signed_headers: tuple[bytes, ...]

    @property
    def context(self) -> EpochContext:
        """The epoch's context."""
        return self.announced.context


def set_up(announced: Announcements, signed_headers: Sequence[bytes]) -> Setup:
    """Check all headers, in roster order, and form the set-up digest.

    Raises:
        ProtocolError: naming whose header is wrong.
    """
    names = announced.context.roster.names
    if len(signed_headers) != len(names):
        raise ProtocolError(f"{len(signed_headers)} deals came for a roster of {len(names)}")
    headers = tuple(
        read_header(announced, name, data) for name, data in zip(names, signed_headers, strict=True)
    )
    digest = derivation.bind("set-up", announced.digest, *signed_headers)
    return Setup(announced, headers, digest, tuple(signed_headers))
