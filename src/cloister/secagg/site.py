"""One site's side of the secure sum: set-up, upload, unmask. A pure machine; its caller carries the bytes.

    site = SecureSumSite(context, identity)
    announcement = site.announce()              # to the hub
    deal = site.deal(all_announcements)         # to the hub
    site.finish_setup(bundle)                   # from the hub
    message = site.upload(0, vector, model)     # to the hub
    reply = site.answer(request)                # once for a full list, twice where somebody dropped out

Invariants, each against a hub that lies:

1. Set-up is all or nothing: whatever is wrong in it ends the epoch at this site and erases its secrets.
2. Attempts only move forward. Entering one erases the secrets of all before it; nothing about them is
   answered any more.
3. A vector leaves at most once an attempt. Asked again with the same input the site returns the same bytes;
   with another input it refuses, since two vectors under one mask give their difference away.
4. One choice an attempt: the first survivor list the site accepts is recorded before anything is signed or
   answered, and no other is supported afterwards. Since 2t > n + c, no two lists can both gather t choices.
5. A list is accepted only if it has at least m members of the roster, in order and without repetition, and
   holds this site only if this site has uploaded. A site that accepted a list without itself uploads no
   more in that attempt.
6. Shares leave for the full list at once, since nobody is dropped by it; for any other list only after t
   members signed it under this set-up and attempt, so that shares given for several short lists cannot be put
   together to a sum over fewer than m sites.
7. For one member never both kinds of share leave: the seed's for survivors, the secret key's for the others.

Every check comes before any change of state. A refusal is a ProtocolError and changes nothing, save for a
set-up message that is wrong (1).

What the machine does not do: it writes nothing down. Whoever does keeps `snapshot`, and of each attempt that
it was entered, the upload and the choice, each before a byte that follows from it leaves; `restore` then
gives the site back as it was. A site that lost any of that must not rebuild it: it waits for the next epoch,
under a new number. That a site joins one roster an epoch, and trusts the identities on it, is seen to by
whoever makes the context.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import SECRET_ACCESS, HoldsSecret, Identity, apply_masks, sha256
from cloister.errors import InputError, ProtocolError
from cloister.secagg import derivation
from cloister.secagg.context import EpochContext
from cloister.secagg.dealing import EpochSecrets, OwnDeal
from cloister.secagg.encoding import RingVector, ring_dtype
from cloister.secagg.masking import upload_keys, view_keys
from cloister.secagg.messages import Endorsement, Request, Shares, Upload, decode, encode, verify
from cloister.secagg.restore import SiteSnapshot, check_position, restored_secrets, restored_setup
from cloister.secagg.setup import Announcements, Setup, read_announcements
from cloister.types import RandomBytes

__all__ = ["MAX_PARAMETERS", "SecureSumSite"]

MAX_PARAMETERS = 2**29
"""Elements of one vector; a message of them stays within 2 GiB."""


class SecureSumSite(HoldsSecret):
    """A site in one epoch.

    Args:
        context: the epoch; its roster holds `identity`.
        identity: signs what the hub relays.
        insecure_test_random: replaces the operating system's randomness; for tests alone.

    Raises:
        InputError: the identity is not on the roster.
    """

    _secrets: EpochSecrets | None

    def __init__(
        self, context: EpochContext, identity: Identity, *, insecure_test_random: RandomBytes | None = None
    ) -> None:
        self._clear(context, identity, insecure_test_random or os.urandom)
        self._secrets = EpochSecrets(context, self._me, self._random)

    def _clear(self, context: EpochContext, identity: Identity, random: RandomBytes) -> None:
        if identity.public not in context.roster.members:
            raise InputError(
                "this identity is not on the roster", where=identity.name, fix="Check plan and roster"
            )
        self._context = context
        self._identity = identity
        self._random = random
        self._me = context.roster.index(identity.name)
        self._secrets = None
        self._announcement: bytes | None = None
        self._announced: Announcements | None = None
        self._deal: OwnDeal | None = None
        self._setup: Setup | None = None
        self._attempt = -1
        self._uploaded: bytes | None = None
        self._choice: tuple[int, ...] | None = None

    # --- set-up -----------------------------------------------------------------------------------

    def announce(self) -> bytes:
        """Return set-up message 1; the same bytes whenever asked."""
        if self._announcement is None:
            self._announcement = self._held().announce(self._identity)
        return self._announcement

    def deal(self, announcements: Sequence[bytes]) -> bytes:
        """Return set-up message 2; the same bytes if asked again with the same announcements.

        Args:
            announcements: those of all n members, in roster order, this site's own among them.

        Raises:
            ProtocolError: naming whose announcement is wrong. The epoch is over for this site.
        """
        secrets, own = self._held(), self.announce()
        if self._setup is not None:
            raise ProtocolError("the set-up of this epoch is complete", fix="Nothing was dealt")
        with self._all_or_nothing():
            announced = read_announcements(self._context, announcements)
            if announcements[self._me] != own:
                raise ProtocolError(
                    "the hub relayed another announcement in this site's name", fix="Begin a new epoch"
                )
            if self._announced is not None and self._announced.digest != announced.digest:
                raise ProtocolError("the hub relayed two sets of announcements", fix="Begin a new epoch")
            if self._deal is None:
                self._deal = secrets.deal(announced, self._identity, self._random)
                self._announced = announced
        return self._deal.message

    def finish_setup(self, bundle: bytes) -> None:
        """Take what the other sites dealt; afterwards the epoch's attempts can be used.

        Raises:
            ProtocolError: naming the dealer whose part is wrong. The epoch is over for this site.
        """
        secrets = self._held()
        if self._announced is None or self._deal is None or self._setup is not None:
            raise ProtocolError("a bundle of shares came out of turn", fix="Follow the order of the set-up")
        with self._all_or_nothing():
            self._setup = secrets.open_bundle(self._announced, self._deal, bundle)
        self._deal = None

    @property
    def setup_digest(self) -> bytes:
        """32 bytes, equal at all sites that were shown the same set-up."""
        return self._ready().digest

    def end(self) -> None:
        """Erase everything secret: the epoch is over for this site. May be called at any time, and again."""
        if self._secrets is not None:
            self._secrets.wipe()
        self._secrets = self._deal = self._setup = self._uploaded = None

    # --- after a restart --------------------------------------------------------------------------

    def snapshot(self) -> SiteSnapshot:
        """Return what `restore` needs of the epoch, secrets included: how it is kept is said there."""
        setup, secrets = self._ready(), self._held()
        return SiteSnapshot(
            announcements=list(setup.announced.signed),
            headers=list(setup.signed_headers),
            epoch_key=secrets.epoch_key,
            attempts=[attempt.to_bytes(SECRET_ACCESS) for attempt in secrets.attempts],
        )

    @classmethod
    def restore(
        cls,
        context: EpochContext,
        identity: Identity,
        snapshot: SiteSnapshot,
        attempt: int,
        uploaded: bytes | None,
        choice: Sequence[int] | None,
    ) -> SecureSumSite:
        """Return the site as it was.

        Args:
            context: the epoch.
            identity: the site's.
            snapshot: made after the set-up; what it says of attempts before `attempt` is not taken up.
            attempt: the last one entered, -1 before the first.
            uploaded: what was uploaded in it.
            choice: the list supported in it, as `choice` gave it.

        Raises:
            InputError: the identity is not on the roster.
            IntegrityError: what was kept is not whole, or belongs elsewhere.
        """
        site = cls.__new__(cls)
        site._clear(context, identity, os.urandom)
        setup = restored_setup(context, snapshot)
        chosen = None if choice is None else tuple(choice)
        check_position(setup, site._me, attempt, uploaded, chosen)
        site._secrets = restored_secrets(setup, site._me, snapshot, attempt)
        site._announced, site._setup = setup.announced, setup
        site._announcement = setup.announced.signed[site._me]
        site._attempt, site._uploaded, site._choice = attempt, uploaded, chosen
        return site

    @property
    def attempt(self) -> int:
        """The attempt it is in, -1 before the first."""
        return self._attempt

    @property
    def choice(self) -> tuple[int, ...] | None:
        """Roster indices of the list it supports in this attempt, None before it supports one."""
        return self._choice

    @property
    def uploaded(self) -> bytes | None:
        """The message it uploaded in this attempt, to be sent again where it was lost; None before."""
        return self._uploaded

    # --- upload -----------------------------------------------------------------------------------

    def upload(
        self,
        attempt: int,
        vector: RingVector,
        model: NDArray[np.floating[Any]] | bytes,
        *,
        spend: bool = False,
    ) -> bytes:
        """Mask a vector.

        Args:
            attempt: its number; not below the last one seen.
            vector: uint[d] of the ring's width, as `Encoding.encode` makes it; not modified but with `spend`.
            model: the global model it was trained from, which enters every mask.
            spend: whether `vector` may be masked where it lies: models are large.

        Returns:
            The message for the hub; the same bytes if asked again with the same input.

        Raises:
            InputError: the vector is not of the ring.
            ProtocolError: the attempt is over or unknown, the site is counted as dropped in it, or another
                vector was uploaded in it before.
        """
        setup, secrets = self._ready(), self._held()
        self._check_vector(vector)
        self._check_attempt(attempt)
        if attempt == self._attempt and self._choice is not None and self._me not in self._choice:
            raise ProtocolError(
                "this site counts as dropped in this attempt", fix="Upload in the next attempt"
            )
        tag = self.model_tag(attempt, model)
        own = secrets.attempts[attempt]
        keys = upload_keys(setup, attempt, tag, self._me, own.key, own.seed)
        if secrets.epoch_key:
            keys += view_keys(setup, attempt, tag, secrets.epoch_key, [self._me], 1)
        masked = vector.astype(ring_dtype(self._context.bits), order="C", copy=not spend)
        apply_masks(masked, keys)
        message = encode(Upload(setup.digest, attempt, self._identity.name, tag, masked.data))
        if attempt == self._attempt and self._uploaded is not None:
            if message != self._uploaded:
                raise ProtocolError(
                    "another vector was uploaded in this attempt", fix="Upload it in the next attempt"
                )
            return self._uploaded
        self._enter(attempt)
        self._uploaded = message
        return message

    def model_tag(self, attempt: int, model: NDArray[np.floating[Any]] | bytes) -> bytes:
        """Return the 32 bytes by which the hub sees that sites trained from one model.

        The model's digest, or under hub_view none an HMAC of it that says nothing to those without K_e.
        """
        self._ready()
        self._context.check_attempt(attempt)
        digest = derivation.model_digest(model)
        if self._context.hub_view == "sum":
            return digest
        return derivation.hidden_model_tag(self._held().epoch_key, attempt, digest)

    # --- unmask -----------------------------------------------------------------------------------

    def answer(self, request: bytes) -> bytes:
        """Answer the hub's request about survivors.

        1. It is for this set-up and an attempt that is not over.
        2. The list is long enough, of members, in order.
        3. It holds this site only if this site uploaded.
        4. It is the list chosen before, if any was.
        5. Signatures, where there are any, are valid, of t different members.
        6. The choice is recorded.
        7. Shares leave for the full list or a certified one, a signature for a proposal.

        Returns:
            Shares or an endorsement; the same bytes for the same request.

        Raises:
            ProtocolError: refused; nothing has changed.
        """
        setup, secrets = self._ready(), self._held()
        asked = decode(request, Request, self._context, None)
        if asked.setup != setup.digest:  # 1
            raise ProtocolError("the request belongs to another set-up", fix="Refused; begin a new epoch")
        self._check_attempt(asked.attempt)
        choice = self._context.check_survivors(asked.survivors)  # 2
        known = asked.attempt == self._attempt
        if self._me in choice and not (known and self._uploaded is not None):  # 3
            raise ProtocolError(
                "the list counts this site among the survivors of an attempt it did not upload in"
            )
        if known and self._choice is not None and self._choice != choice:  # 4
            raise ProtocolError(
                "another survivor list was chosen in this attempt", fix="The hub equivocates; refused"
            )
        statement = derivation.choice_statement(setup.digest, asked.attempt, choice)
        full = len(choice) == len(self._context.roster)
        certified = bool(asked.signatures)
        if certified:  # 5
            self._check_signatures(asked, statement)
        self._enter(asked.attempt)
        self._choice = choice  # 6
        name = self._identity.name
        if not (full or certified):  # 7
            return encode(Endorsement(setup.digest, asked.attempt, name, self._identity.sign(statement)))
        shares = secrets.attempts[asked.attempt].shares(frozenset(choice), len(self._context.roster))
        return encode(Shares(setup.digest, asked.attempt, name, sha256(statement), shares))

    def open_sum(
        self,
        attempt: int,
        survivors: Sequence[str],
        total: RingVector,
        model: NDArray[np.floating[Any]] | bytes,
    ) -> RingVector:
        """Return the ring sum of the survivors' vectors.

        Args:
            attempt: its number.
            survivors: whose vectors are in it, in roster order.
            total: uint[d], what the hub computed; not modified.
            model: the model of that attempt.

        Returns:
            `total` under hub_view sum; under none the same without the |S| streams that hid it from the hub.

        Raises:
            ProtocolError: the list is too short or not the one this site supported.
        """
        setup = self._ready()
        self._context.check_attempt(attempt)
        self._check_vector(total)
        choice = self._context.check_survivors(survivors)
        if attempt == self._attempt and self._choice not in (None, choice):
            raise ProtocolError("the sum is over other survivors than this site supported")
        if self._context.hub_view == "sum":
            return total
        opened = total.astype(ring_dtype(self._context.bits), order="C", copy=True)
        tag = self.model_tag(attempt, model)
        apply_masks(opened, view_keys(setup, attempt, tag, self._held().epoch_key, choice, -1))
        return opened

    # --- inside -----------------------------------------------------------------------------------

    def _held(self) -> EpochSecrets:
        if self._secrets is None:
            raise ProtocolError("this epoch is over and its secrets are erased", fix="Begin a new epoch")
        return self._secrets

    def _ready(self) -> Setup:
        self._held()
        if self._setup is None:
            raise ProtocolError("the set-up of this epoch is not complete", fix="Finish it first")
        return self._setup

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise

    def _check_attempt(self, attempt: int) -> None:
        self._context.check_attempt(attempt)
        if attempt < self._attempt:
            raise ProtocolError(f"attempt {attempt} is over, this site is at {self._attempt}", fix="Refused")

    def _check_vector(self, vector: RingVector) -> None:
        if vector.ndim != 1 or vector.dtype != ring_dtype(self._context.bits):
            raise InputError(f"not a vector of {self._context.bits}-bit ring elements", fix="Encode it first")
        if not 1 <= vector.size <= MAX_PARAMETERS:
            raise InputError(
                f"a vector of {vector.size} elements", fix=f"Send 1 to {MAX_PARAMETERS} at a time"
            )

    def _check_signatures(self, asked: Request, statement: bytes) -> None:
        signers = [entry.signer for entry in asked.signatures]
        if len(set(signers)) != len(signers) or len(signers) < self._context.params.threshold:
            raise ProtocolError(
                f"a list with {len(set(signers))} signatures is not certified",
                fix=f"Refused; {self._context.params.threshold} different members must sign it",
            )
        for entry in asked.signatures:
            member = self._context.roster.members[self._context.roster.index(entry.signer)]
            verify(member, entry.signature, statement, "a survivor list")

    def _enter(self, attempt: int) -> None:
        """Move on to `attempt`; the secrets of every attempt before it are erased."""
        if attempt == self._attempt:
            return
        for over in self._held().attempts[max(self._attempt, 0) : attempt]:
            over.wipe()
        self._attempt = attempt
        self._uploaded = None
        self._choice = None
