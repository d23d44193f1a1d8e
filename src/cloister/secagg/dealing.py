"""The secret half of an epoch's set-up: what a site draws, what it gives away in shares, what it is given.

Invariants:

- the key under which shares are received is drawn for the epoch, is never shared, and is erased as soon as
  the bundle is open; the ciphertexts that travelled are then useless to whoever stored them;
- each ordered pair of sites has its own AES-256-GCM key, and plan | roster | epoch | sender | receiver are
  authenticated with every parcel, so a parcel that is swapped, reflected or taken from another epoch does
  not open;
- what a site holds for an attempt sits in one `AttemptSecrets` and is wiped as one. Buffers are
  overwritten; copies that the interpreter or a library made are beyond reach.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from cloister.crypto import (
    SECRET_ACCESS,
    AgreementKey,
    HoldsSecret,
    Identity,
    SecretAccess,
    decrypt,
    encrypt,
    sha256,
    split,
)
from cloister.crypto.shamir import SHARE_BYTES
from cloister.errors import IntegrityError, ProtocolError
from cloister.secagg import derivation
from cloister.secagg.context import EpochContext
from cloister.secagg.derivation import DIGEST_BYTES
from cloister.secagg.messages import Announcement, Bundle, Deal, DealHeader, decode, encode, sign
from cloister.secagg.setup import ANNOUNCE, DEAL, Announcements, Setup, holder_digests, set_up
from cloister.types import RandomBytes

__all__ = ["AttemptSecrets", "EpochSecrets", "OwnDeal"]

_PAIR_BYTES = 2 * SHARE_BYTES  # one dealer's shares for one attempt: of the secret key, then of the seed
_SECRET_BYTES = 32


class AttemptSecrets(HoldsSecret):
    """What a site holds for one attempt: its own key and seed, and its share of everybody's."""

    __slots__ = ("_held", "_key", "_seed")

    def __init__(self, key: AgreementKey | None, seed: bytes) -> None:
        self._key = key
        self._seed = bytearray(seed)
        self._held = bytearray()

    @classmethod
    def from_bytes(cls, data: bytes) -> AttemptSecrets:
        """Return what `to_bytes` gave; wiped, where that was empty."""
        if not data:
            return cls(None, b"")
        attempt = cls(AgreementKey.from_bytes(data[:_SECRET_BYTES]), data[_SECRET_BYTES : 2 * _SECRET_BYTES])
        attempt.hold(bytearray(data[2 * _SECRET_BYTES :]))
        return attempt

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return everything in one piece, empty once wiped; needs `SECRET_ACCESS`."""
        if self._key is None:
            return b""
        return b"".join((self._key.to_bytes(token), self._seed, self._held))

    @property
    def key(self) -> AgreementKey:
        """The attempt's secret key. Raises ProtocolError once wiped."""
        if self._key is None:
            raise ProtocolError("the secrets of this attempt are erased", fix="Go on with a later attempt")
        return self._key

    @property
    def seed(self) -> bytes:
        """The attempt's self-mask seed. Raises ProtocolError once wiped."""
        return bytes(self._seed) if self.key else b""

    def hold(self, shares: bytearray) -> None:
        """Keep the shares of all dealers: n times (share of the key, share of the seed)."""
        self._held = shares

    def shares(self, survivors: frozenset[int], members: int) -> bytes:
        """Return one share a member: of a survivor's seed, of any other's secret key; never both."""
        pieces = []
        for member in range(members):
            start = member * _PAIR_BYTES + (SHARE_BYTES if member in survivors else 0)
            pieces.append(bytes(self._held[start : start + SHARE_BYTES]))
        return b"".join(pieces)

    def wipe(self) -> None:
        """Forget everything."""
        self._key = None
        self._seed[:] = bytes(len(self._seed))
        self._held[:] = bytes(len(self._held))


class OwnDeal(HoldsSecret):
    """What a site keeps of its own deal: its own parcel, the signed header, the message to send again."""

    __slots__ = ("header", "message", "parcel")

    def __init__(self, message: bytes, header: bytes, parcel: bytearray) -> None:
        self.message = message
        self.header = header
        self.parcel = parcel


class EpochSecrets(HoldsSecret):
    """Everything secret that one site has in an epoch.

    Args:
        context: the epoch.
        me: the site's index in the roster; the first member draws K_e under hub_view none.
        random: source of all keys and seeds.
    """

    __slots__ = ("_context", "_me", "_share_key", "attempts", "epoch_key")

    def __init__(self, context: EpochContext, me: int, random: RandomBytes = os.urandom) -> None:
        self._context = context
        self._me = me
        self._share_key: AgreementKey | None = AgreementKey.generate(random)
        self.attempts = [
            AttemptSecrets(AgreementKey.generate(random), random(_SECRET_BYTES))
            for _ in range(context.attempts)
        ]
        draws = context.hub_view == "none" and me == 0
        self.epoch_key: bytes = random(_SECRET_BYTES) if draws else b""

    @classmethod
    def restore(
        cls, context: EpochContext, me: int, attempts: Sequence[bytes], epoch_key: bytes
    ) -> EpochSecrets:
        """Return what a finished set-up left, from each attempt's bytes; empty ones stay wiped.

        Raises:
            IntegrityError: one is not as long as it must be.
        """
        due = 2 * _SECRET_BYTES + _PAIR_BYTES * len(context.roster)
        if any(len(data) not in (0, due) for data in attempts):
            raise IntegrityError("what was kept of an epoch is not whole", fix="Wait for the next epoch")
        secrets = cls.__new__(cls)
        secrets._context, secrets._me, secrets._share_key = context, me, None
        secrets.attempts = [AttemptSecrets.from_bytes(data) for data in attempts]
        secrets.epoch_key = epoch_key
        return secrets

    def announce(self, identity: Identity) -> bytes:
        """Return set-up message 1, signed."""
        digest = self._context.digest
        commitments = (
            derivation.seed_commitment(digest, self._me, number, attempt.seed)
            for number, attempt in enumerate(self.attempts)
        )
        body = Announcement(
            context=digest,
            sender=identity.name,
            share_key=self._sharing().public,
            attempt_keys=b"".join(attempt.key.public for attempt in self.attempts),
            seed_commitments=b"".join(commitments),
            epoch_key_commitment=derivation.epoch_key_commitment(digest, self.epoch_key)
            if self.epoch_key
            else b"",
        )
        return sign(identity, ANNOUNCE, encode(body))

    def deal(self, announced: Announcements, identity: Identity, random: RandomBytes = os.urandom) -> OwnDeal:
        """Split every secret key and seed among all n holders, itself included, and seal what is theirs."""
        n, t = len(self._context.roster), self._context.params.threshold
        parcels = [bytearray() for _ in range(n)]
        for attempt in self.attempts:
            for secret in (attempt.key.to_bytes(SECRET_ACCESS), attempt.seed):
                for parcel, share in zip(parcels, split(secret, t, n, random), strict=True):
                    parcel += share
        hashes = b"".join(
            self._share_hashes(self._me, holder, parcel) for holder, parcel in enumerate(parcels)
        )
        sealed = []
        for holder, parcel in enumerate(parcels):
            if holder == self._me:
                sealed.append(b"")
                continue
            key, associated_data = self._envelope(announced, self._me, holder)
            sealed.append(encrypt(key, parcel + self.epoch_key, associated_data))
        digests = holder_digests(hashes, n)
        header = sign(
            identity, DEAL, encode(DealHeader(self._context.digest, identity.name, announced.digest, digests))
        )
        return OwnDeal(encode(Deal(header, sealed, hashes)), header, parcels[self._me])

    def open_bundle(self, announced: Announcements, own: OwnDeal, data: bytes) -> Setup:
        """Open and check all that was dealt to this site, and put it where it belongs.

        1. Every header is signed and in order; this site's own is the one it signed.
        2. Every parcel opens under the key of its pair and direction.
        3. Its share hashes have the digest that its dealer signed.
        4. The epoch key fits the first member's commitment.
        5. The key for receiving shares is erased.

        Raises:
            ProtocolError: naming the dealer whose part is wrong.
        """
        bundle = decode(data, Bundle, self._context, None)
        setup = set_up(announced, bundle.headers)  # 1
        if bundle.headers[self._me] != own.header:
            raise ProtocolError("the bundle holds another deal in this site's name", fix="Begin a new epoch")
        if len(bundle.sealed) != len(self._context.roster) or bundle.sealed[self._me]:
            raise ProtocolError("the bundle has the wrong number of parcels", fix="Begin a new epoch")
        parcels = [
            own.parcel if dealer == self._me else self._open_parcel(setup, dealer, sealed)
            for dealer, sealed in enumerate(bundle.sealed)
        ]
        for number, attempt in enumerate(self.attempts):
            attempt.hold(
                bytearray().join(p[number * _PAIR_BYTES : (number + 1) * _PAIR_BYTES] for p in parcels)
            )
        self._share_key = None  # 5
        return setup

    def wipe(self) -> None:
        """Forget everything."""
        for attempt in self.attempts:
            attempt.wipe()
        self._share_key = None
        self.epoch_key = b""

    def _sharing(self) -> AgreementKey:
        if self._share_key is None:
            raise ProtocolError("the set-up of this epoch is over", fix="Begin a new epoch")
        return self._share_key

    def _share_hashes(self, dealer: int, holder: int, parcel: bytes | bytearray) -> bytes:
        context = self._context.digest
        hashes = []
        for position in range(2 * self._context.attempts):
            share = bytes(parcel[position * SHARE_BYTES : (position + 1) * SHARE_BYTES])
            hashes.append(derivation.share_hash(context, dealer, holder, position, share))
        return b"".join(hashes)

    def _envelope(self, announced: Announcements, sender: int, receiver: int) -> tuple[bytes, bytes]:
        """Return key and associated data for what goes from one site to another; this site is one of them."""
        context = self._context
        peer = receiver if sender == self._me else sender
        shared = self._sharing().exchange(announced.bodies[peer].share_key)
        key = derivation.sharing_key(shared, context.digest, sender, receiver)
        return key, derivation.associated_data(
            context.plan_digest, context.roster.digest, context.epoch, sender, receiver
        )

    def _open_parcel(self, setup: Setup, dealer: int, sealed: bytes) -> bytes:
        context = self._context
        name = context.roster.names[dealer]
        key, associated_data = self._envelope(setup.announced, dealer, self._me)
        try:
            plain = decrypt(key, sealed, associated_data)  # 2
        except IntegrityError:
            raise ProtocolError(
                "the shares of this dealer do not open", peer=name, fix="Begin a new epoch"
            ) from None
        size = _PAIR_BYTES * context.attempts
        parcel, epoch_key = plain[:size], plain[size:]
        brings_key = context.hub_view == "none" and dealer == 0
        if len(parcel) != size or len(epoch_key) != (_SECRET_BYTES if brings_key else 0):
            raise ProtocolError("a parcel of shares has the wrong length", peer=name)
        digest = setup.headers[dealer].holder_digests[DIGEST_BYTES * self._me : DIGEST_BYTES * (self._me + 1)]
        if sha256(self._share_hashes(dealer, self._me, parcel)) != digest:  # 3
            raise ProtocolError(
                "the shares are not those whose hash was signed",
                peer=name,
                fix="Begin a new epoch without this site",
            )
        if brings_key:
            commitment = setup.announced.bodies[0].epoch_key_commitment
            if derivation.epoch_key_commitment(context.digest, epoch_key) != commitment:  # 4
                raise ProtocolError(
                    "the epoch key does not fit its commitment",
                    peer=name,
                    fix="Begin a new epoch without this site",
                )
            self.epoch_key = epoch_key
        return parcel
