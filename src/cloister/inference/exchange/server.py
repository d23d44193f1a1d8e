"""The keys of a service, in the one process that may have them: bytes and time in; no sockets, no clocks.

    ring = KeyRing(model, digest, lifetime=24 * 3600, overlap=3600)
    ring.current(now).to_bytes()                what evidence vouches for
    answering = ring.open(prefix, now)          the first 1,201 bytes of a request

`open`, in this order: 1 version and length; 2 the key set is the current one or a retired one that is still
taken; 3 this sealed secret was not opened before; 4 it opens; 5 it is recorded; only then a frame is opened.

Invariants:
- keys are made here, kept in this object's memory alone, and new at every start;
- a key set is offered for `lifetime` seconds, or until it opened `MAX_REQUESTS`; then another one is, and the
  retired one is taken for `overlap` seconds more; then its decryption key is dropped, and what was recorded
  of a request under it opens nowhere any more;
- one sealed secret is one request for the life of its key; a SHA-256 of each is remembered, and memory for
  these is bounded: a key opens at most twice `MAX_REQUESTS`, and at most two retired ones are kept.

What it does not do. Python cannot overwrite what it drops: a destroyed key may stay in freed memory until
that is used again. The time is the host's word: one that stops the clock keeps a key in use until
`MAX_REQUESTS`. One that could put this process's memory back to an earlier state would undo both what was
recorded and what was drawn; that is for the hardware to prevent. Rate limits are for whoever calls: the key
is public. For one thread.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.crypto import Buffer, HoldsSecret, HpkePrivateKey, KemSuite, SigningKey, hpke_open, sha256
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange import sealing
from cloister.inference.exchange.answering import Answering, Epoch
from cloister.inference.exchange.keyset import KeySet
from cloister.inference.exchange.refusals import Refused, StaleKey, TooLarge
from cloister.types import RandomBytes

__all__ = ["MAX_BODY", "MAX_REQUESTS", "Answering", "KeyRing", "Refused", "StaleKey", "TooLarge"]

MAX_REQUESTS: Final = 2**20
"""Requests that a key set opens before another one is offered."""
MAX_BODY: Final = 32 << 20
"""Bytes of a request's body, unless the service says otherwise."""
_MAX_RETIRED: Final = 2
_LONGEST: Final = 366 * 86_400


class _Keys(Epoch):
    """A key set with its private keys, and what it opened."""

    __slots__ = ("private", "seen", "until")

    def __init__(self, keys: KeySet, private: HpkePrivateKey, signing: SigningKey) -> None:
        super().__init__(keys, signing)
        self.private: HpkePrivateKey | None = private
        self.seen: set[bytes] = set()
        self.until = keys.not_after

    def drop(self) -> None:
        """Forget what opens requests; answers that have begun may still be signed."""
        self.private = None
        self.seen.clear()


class KeyRing(HoldsSecret):
    """Makes key sets, rotates them, and opens what is sealed to them.

    Args:
        model: the name of what answers.
        model_digest: SHA-256 of it, hex.
        accelerators: how many GPUs it computes on.
        lifetime: seconds for which a key set is offered.
        overlap: seconds for which it is taken after that.
        max_body: bytes of a request's body.
        insecure_test_random: source of keys, nonces and salts in tests.

    Raises:
        InputError: one of them is out of range.
    """

    __slots__ = (
        "_about",
        "_closed",
        "_current",
        "_lifetime",
        "_max_body",
        "_overlap",
        "_random",
        "_retired",
    )

    def __init__(
        self,
        model: str,
        model_digest: str,
        accelerators: int = 0,
        *,
        lifetime: float,
        overlap: float,
        max_body: int = MAX_BODY,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        if not (1 <= lifetime <= _LONGEST and 0 <= overlap <= _LONGEST and max_body >= 0):
            raise InputError(
                "a key set's lifetime is not between a second and a year", fix="Rotate daily, for one"
            )
        self._about = model, model_digest, accelerators
        self._lifetime, self._overlap = timedelta(seconds=int(lifetime)), timedelta(seconds=int(overlap))
        self._max_body = max_body
        self._random = insecure_test_random or os.urandom
        self._current: _Keys | None = None
        self._retired: list[_Keys] = []
        self._closed = False

    def current(self, now: datetime) -> KeySet:
        """Return the key set that is offered at `now`, another one where the last is used up.

        Raises:
            InputError: `now` has no time zone, the ring was closed, or the model's name or digest is none.
        """
        return self._turn(now).keys

    def _turn(self, now: datetime) -> _Keys:
        """Drop what is over, and return the keys in use."""
        if self._closed or now.utcoffset() is None:
            raise InputError("a closed key ring, or a time without a zone")
        last = self._current
        if last is not None:
            spent = len(last.seen) >= MAX_REQUESTS
            if not spent and now < last.keys.not_after - self._overlap:
                self._expire(now)
                return last
            last.until = min(last.until, now + self._overlap)
            self._retired.append(last)
        self._current = made = self._make(now)
        self._expire(now)
        return made

    def _expire(self, now: datetime) -> None:
        if not self._retired:
            return
        kept = [keys for keys in self._retired if now < keys.until][-_MAX_RETIRED:]
        for keys in self._retired:
            if keys not in kept:
                keys.drop()
        self._retired = kept

    def _make(self, now: datetime) -> _Keys:
        private = HpkePrivateKey.from_bytes(KemSuite.HYBRID, self._random(KemSuite.HYBRID.private_bytes))
        signing = SigningKey(Ed25519PrivateKey.from_private_bytes(self._random(32)))
        begins = now.astimezone(UTC).replace(microsecond=0)
        keys = KeySet(
            private.public_key.to_bytes(),
            signing.verify_key.to_bytes(),
            begins,
            begins + self._lifetime + self._overlap,
            *self._about,
        )
        return _Keys(keys, private, signing)

    def open(self, prefix: Buffer, now: datetime) -> Answering:
        """Open the secret of a request.

        Args:
            prefix: its first 1,201 bytes.
            now: aware.

        Raises:
            StaleKey: it is under a key set that is not in use, or no longer.
            Refused: it is no request, does not open, or came before.
            InputError: the ring was closed, or `now` has no time zone.
        """
        self._turn(now)
        data = bytes(prefix)
        if len(data) != sealing.REQUEST_PREFIX or data[:1] != sealing.VERSION:  # 1
            raise Refused
        keys = self._named(data[1 : 1 + sealing.DIGEST_BYTES])  # 2
        sealed = data[1 + sealing.DIGEST_BYTES :]
        mark = sha256(sealed)
        if mark in keys.seen:  # 3
            raise Refused
        assert keys.private is not None  # noqa: S101  # keys that were dropped are in no list
        try:
            secret = hpke_open(  # 4
                keys.private, sealed, info=sealing.info(keys.keys.digest), associated_data=sealing.AAD
            )
        except IntegrityError:
            raise Refused from None
        keys.seen.add(mark)  # 5
        return Answering(keys, secret, sealed, max_body=self._max_body, random=self._random)

    def _named(self, digest: bytes) -> _Keys:
        for keys in (self._current, *self._retired):
            if keys is not None and keys.keys.digest == digest and len(keys.seen) < 2 * MAX_REQUESTS:
                return keys
        raise StaleKey

    def close(self) -> None:
        """Destroy all keys: nothing is opened any more, and no answer under the keys in use can end."""
        for keys in (self._current, *self._retired):
            if keys is not None:
                keys.drop()
                keys.signing = None
        self._current, self._retired, self._closed = None, [], True
