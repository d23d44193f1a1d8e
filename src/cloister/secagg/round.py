"""The hub's side of one attempt: collect, close, certify, unmask.

Order and invariants:

1. Collecting: each accepted upload is added into one accumulator and forgotten; memory does not grow with
   the number of sites. The first upload of a site counts, and once it is added the site is a survivor
   whatever happens to it.
2. Closing fixes the survivors. Later uploads are ignored: their sender counts as dropped. Fewer than m burn
   the attempt.
3. All n uploaded: every site is asked for shares at once. Else all n are asked to sign the list, and on t
   signatures all are asked for shares.
4. Every share is compared with the hash its dealer signed, so a wrong one names its sender, who is not
   counted further.
5. With t answers the seeds of survivors and the keys of the dropped are rebuilt and checked against
   commitments and public keys, so a dealer whose shares do not fit is named; the attempt is burnt, since
   its vectors cannot be unmasked.
6. After a restart the same attempt is collected anew. Where its survivors were fixed before, their vectors
   alone are taken, and nothing but all of them is closed over: whoever chose supports no other list.
7. Whenever fewer than t sites can still answer, the attempt is burnt. A site that signed and died cannot be
   replaced by another list, for those who signed support no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from cloister.crypto import AgreementKey, Buffer, apply_masks, combine, sha256
from cloister.crypto.shamir import SHARE_BYTES
from cloister.errors import IntegrityError, ProtocolError, RoundBurnt
from cloister.mapped import forget
from cloister.secagg import derivation
from cloister.secagg.derivation import DIGEST_BYTES
from cloister.secagg.encoding import RingVector, ring_dtype
from cloister.secagg.masking import unmasking_keys
from cloister.secagg.messages import Endorsement, Request, Shares, Signature, Upload, decode, encode, verify
from cloister.secagg.setup import Setup

__all__ = ["Round", "RoundSum"]

_BLOCK = 1 << 20
"""Bytes that are added at once."""


@dataclass(frozen=True)
class RoundSum:
    """What an attempt yields.

    Args:
        attempt: its number.
        survivors: whose vectors are in the sum, in roster order.
        total: uint[d], the ring sum of their vectors; under hub_view none still hidden from the hub.
    """

    attempt: int
    survivors: tuple[str, ...]
    total: RingVector


class _Phase(Enum):
    COLLECTING = "collecting uploads"
    CERTIFYING = "waiting for signatures"
    UNMASKING = "waiting for shares"
    DONE = "done"
    BURNT = "burnt"


class Round:
    """One attempt at the hub.

    Args:
        setup: the epoch's set-up.
        share_hashes: for each dealer, the hashes of all its shares by holder, attempt and kind.
        attempt: its number.
        model_tag: what every upload must carry, or None to take the first one's.
        size: elements of every vector, or None to take the first one's.
        chosen: roster indices of the survivors, where they were fixed before a restart.
    """

    def __init__(
        self,
        setup: Setup,
        share_hashes: list[bytes],
        attempt: int,
        *,
        model_tag: bytes | None,
        size: int | None,
        chosen: tuple[int, ...] | None = None,
    ) -> None:
        self._setup = setup
        self._context = setup.context
        self._share_hashes = share_hashes
        self.attempt = attempt
        self._tag = model_tag
        self._size = size
        self._chosen = chosen
        self._phase = _Phase.COLLECTING
        self._able = set(range(len(self._context.roster)))
        self._wrong: set[int] = set()
        self._uploaded: set[int] = set()
        self._total: RingVector | None = None
        self._survivors: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._request: bytes | None = None
        self.result: RoundSum | None = None

    @property
    def uploaded(self) -> frozenset[str]:
        """Names of the sites whose vectors are in the accumulator."""
        return frozenset(self._context.roster.names[site] for site in self._uploaded)

    def on_upload(self, sender: str, message: Buffer) -> None:
        """Add a site's vector, read where it lies. A repeated one, and one after closing, is ignored.

        Raises:
            ProtocolError: it does not belong here, or its model or size is another.
        """
        site = self._context.roster.index(sender)
        if self._phase is not _Phase.COLLECTING or site in self._uploaded:
            return
        if self._chosen is not None and site not in self._chosen:
            return
        upload = decode(message, Upload, self._context, sender)
        if (upload.setup, upload.attempt, upload.sender) != (self._setup.digest, self.attempt, sender):
            raise ProtocolError("an upload belongs to another set-up, attempt or site", peer=sender)
        if self._tag is not None and upload.model != self._tag:
            raise ProtocolError(
                "a site trained from another model", peer=sender, fix="Its masks would not cancel; left out"
            )
        dtype = ring_dtype(self._context.bits)
        elements, rest = divmod(upload.vector.nbytes, dtype.itemsize)
        if rest or elements == 0 or self._size not in (None, elements):
            raise ProtocolError(
                f"an upload has a vector of {upload.vector.nbytes} bytes", peer=sender, fix="Left out"
            )
        if self._total is None:
            self._total = np.zeros(elements, dtype)
        self._add(self._total, upload.vector)
        self._tag, self._size = upload.model, elements
        self._uploaded.add(site)

    def close(self) -> dict[str, bytes]:
        """Fix the survivors and return a request for every site.

        Raises:
            RoundBurnt: fewer than m uploaded, or not all that were fixed before; or fewer than t can answer.
            ProtocolError: closed before.
        """
        self._expect(_Phase.COLLECTING)
        survivors = tuple(sorted(self._uploaded))
        if self._chosen not in (None, survivors):
            self.burn()
            raise RoundBurnt(
                "a site whose vector was counted before the restart did not send it again",
                fix="Begin the next attempt",
            )
        if len(survivors) < self._context.params.minimum:
            self.burn()
            raise RoundBurnt(
                f"{len(survivors)} sites uploaded, the minimum is {self._context.params.minimum}",
                fix="Begin the next attempt",
            )
        self._survivors = survivors
        full = len(self._survivors) == len(self._context.roster)
        self._phase = _Phase.UNMASKING if full else _Phase.CERTIFYING
        self._check_feasible(None)
        return self._requests([])

    def lost(self, member: str) -> None:
        """Note that a site is gone for this attempt. Should it answer all the same, that is taken.

        Raises:
            RoundBurnt: fewer than t can still answer.
        """
        self._able.discard(self._context.roster.index(member))
        if self._phase in (_Phase.CERTIFYING, _Phase.UNMASKING):
            self._check_feasible(member)

    def returned(self, member: str) -> None:
        """Count on a site again that was lost; not on one that answered wrongly."""
        self._able |= {self._context.roster.index(member)} - self._wrong

    def request_for(self, member: str) -> bytes | None:
        """Return the request that a site has not answered yet, or None."""
        site = self._context.roster.index(member)
        answered = self._signatures if self._phase is _Phase.CERTIFYING else self._answers
        return None if site in answered else self._request

    def on_answer(self, sender: str, message: bytes) -> dict[str, bytes] | None:
        """Take a signature or shares.

        Returns:
            Requests with the certified list, on the t-th signature; else None.

        Raises:
            ProtocolError: the answer is wrong; its sender is named and no longer counted on.
            RoundBurnt: the attempt cannot finish any more.
        """
        site = self._context.roster.index(sender)
        if self._phase in (_Phase.DONE, _Phase.BURNT):
            return None
        if self._phase is _Phase.COLLECTING:
            raise ProtocolError("an answer came before any request", peer=sender)
        try:
            if self._phase is _Phase.CERTIFYING:
                return self._on_endorsement(site, message)
            self._on_shares(site, message)
        except RoundBurnt:
            raise
        except ProtocolError:
            self._able.discard(site)
            self._wrong.add(site)
            self._check_feasible(sender)
            raise
        return None

    def burn(self) -> None:
        """Give the attempt up; what was collected is dropped."""
        self._phase = _Phase.BURNT
        self._request = None
        self._total = None
        self._answers.clear()

    # --- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _add(total: RingVector, vector: memoryview) -> None:
        """Add, a block at a time: a large upload may lie in a file, and is read once."""
        for start in range(0, vector.nbytes, _BLOCK):
            block = vector[start : start + _BLOCK]
            into = total[start // total.itemsize :][: block.nbytes // total.itemsize]
            np.add(into, np.frombuffer(block, dtype=total.dtype), out=into)
            forget(block)

    def _expect(self, phase: _Phase) -> None:
        if self._phase is not phase:
            raise ProtocolError(
                f"attempt {self.attempt} is {self._phase.value}", fix="Follow the order of the protocol"
            )

    def _check_feasible(self, member: str | None) -> None:
        if len(self._able | set(self._answers)) < self._context.params.threshold:
            self.burn()
            raise RoundBurnt(
                "fewer sites can still answer than the threshold needs",
                peer=member,
                fix="Begin the next attempt",
            )

    def _requests(self, signatures: list[Signature]) -> dict[str, bytes]:
        names = self._context.roster.names
        request = Request(
            self._setup.digest, self.attempt, [names[site] for site in self._survivors], signatures
        )
        self._request = encode(request)
        return dict.fromkeys(names, self._request)

    def _statement(self) -> bytes:
        return derivation.choice_statement(self._setup.digest, self.attempt, self._survivors)

    def _on_endorsement(self, site: int, message: bytes) -> dict[str, bytes] | None:
        member = self._context.roster.members[site]
        endorsed = decode(message, Endorsement, self._context, member.name)
        if (endorsed.setup, endorsed.attempt, endorsed.sender) != (
            self._setup.digest,
            self.attempt,
            member.name,
        ):
            raise ProtocolError("a signature belongs to another set-up, attempt or site", peer=member.name)
        verify(member, endorsed.signature, self._statement(), "a survivor list")
        self._signatures[site] = endorsed.signature
        if len(self._signatures) < self._context.params.threshold:
            return None
        self._phase = _Phase.UNMASKING
        names = self._context.roster.names
        return self._requests(
            [Signature(names[i], signature) for i, signature in sorted(self._signatures.items())]
        )

    def _on_shares(self, site: int, message: bytes) -> None:
        name = self._context.roster.names[site]
        if site in self._answers or self._is_late_endorsement(site, message):
            return
        answer = decode(message, Shares, self._context, name)
        if (answer.setup, answer.attempt, answer.sender) != (self._setup.digest, self.attempt, name):
            raise ProtocolError("shares belong to another set-up, attempt or site", peer=name)
        if answer.choice != sha256(self._statement()):
            raise ProtocolError("shares are for another survivor list", peer=name)
        if len(answer.shares) != SHARE_BYTES * len(self._context.roster):
            raise ProtocolError("an answer has the wrong number of shares", peer=name)
        for dealer in range(len(self._context.roster)):
            position = 2 * self.attempt + (dealer in self._survivors)
            share = answer.shares[SHARE_BYTES * dealer : SHARE_BYTES * (dealer + 1)]
            if derivation.share_hash(self._context.digest, dealer, site, position, share) != self._hash(
                dealer, site, position
            ):
                raise ProtocolError("a share is not the one that was dealt", peer=name, fix="It is left out")
        self._answers[site] = answer.shares
        if len(self._answers) == self._context.params.threshold:
            self._finish()

    def _is_late_endorsement(self, site: int, message: bytes) -> bool:
        """Tell whether a site signed the list after t others had: nothing is wrong with that."""
        if not self._signatures:
            return False
        try:
            decode(message, Endorsement, self._context, None)
        except ProtocolError:
            return False
        return True

    def _hash(self, dealer: int, holder: int, position: int) -> bytes:
        start = DIGEST_BYTES * (holder * 2 * self._context.attempts + position)
        return self._share_hashes[dealer][start : start + DIGEST_BYTES]

    def _finish(self) -> None:
        """Rebuild, check, subtract."""
        seeds, dropped = {}, {}
        for site in range(len(self._context.roster)):
            secret = self._rebuild(site)
            if site in self._survivors:
                commitment = derivation.seed_commitment(self._context.digest, site, self.attempt, secret)
                fits = commitment == self._setup.announced.seed_commitment(site, self.attempt)
                seeds[site] = secret
            else:
                dropped[site] = AgreementKey.from_bytes(secret)
                fits = dropped[site].public == self._setup.announced.attempt_key(site, self.attempt)
            if not fits:
                raise self._blame(site)
        if self._total is None or self._tag is None:
            raise ProtocolError("an attempt without uploads cannot be unmasked")
        apply_masks(self._total, unmasking_keys(self._setup, self.attempt, self._tag, seeds, dropped))
        names = tuple(self._context.roster.names[site] for site in self._survivors)
        self.result = RoundSum(self.attempt, names, self._total)
        self._phase = _Phase.DONE
        self._request = None
        self._total = None
        self._answers.clear()

    def _rebuild(self, dealer: int) -> bytes:
        start = SHARE_BYTES * dealer
        shares = {holder: answer[start : start + SHARE_BYTES] for holder, answer in self._answers.items()}
        try:
            return combine(shares, self._context.params.threshold)
        except IntegrityError:
            raise self._blame(dealer) from None

    def _blame(self, dealer: int) -> RoundBurnt:
        self.burn()
        return RoundBurnt(
            "what a site dealt in shares is not what it announced",
            peer=self._context.roster.names[dealer],
            fix="Begin a new epoch without it",
        )
