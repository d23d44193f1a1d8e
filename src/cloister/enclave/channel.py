"""An encrypted channel to a key that evidence vouches for: bytes in, bytes out; no sockets, no clocks.

    initiator                                            responder (in the enclave)
    Hello   nonce                                -->
                                                 <--     Offer   nonce, HPKE key, evidence
    Opening 32-byte secret, sealed to that key   -->
    frames                                       <-->    frames

    initiator = Initiator(purpose, appraise)        responder = Responder(purpose, key, attest)
    hello = initiator.hello()                       offer, waiting = responder.offer(hello)
    opening, channel = initiator.open(offer, at)    channel = waiting.accept(opening)

Invariants:
- the responder's key (ML-KEM768-X25519) stands in report data, with the initiator's fresh nonce, the purpose
  and the responder's nonce; whoever relays the evidence cannot open what is sealed to the key in it;
- the initiator appraises before it seals; evidence that is not fresh is refused whatever the policy says;
- keys of both directions come from the secret and the digest of everything that was said before them, so that
  a changed message gives other keys; one offer takes one opening, so a recorded one opens nothing again;
- frame i of a direction has nonce i and associated data direction | i | final: frames that are dropped,
  repeated, moved or altered do not open. A direction ends with its final frame and not without.

Steps of the initiator: 1 the offer answers this hello; 2 evidence is read; 3 it is appraised against the
report data that key and nonces ask for; 4 the owner's reasons and freshness; 5 a secret is sealed; 6 keys.

It does not say who the initiator is, nor hide sizes. After an error a channel is of no more use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from cloister.crypto import (
    Buffer,
    HoldsSecret,
    HpkePrivateKey,
    HpkePublicKey,
    KemSuite,
    constant_time_equal,
    hkdf,
    hpke_open,
    hpke_seal,
    sha256,
)
from cloister.crypto.aead import Numbered
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import MAX_EVIDENCE, Evidence, report_data
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.types import RandomBytes

__all__ = ["MAX_FRAME", "Channel", "Initiator", "Offered", "Responder"]

MAX_FRAME: Final = 16 << 20
"""Plaintext bytes of one frame."""
_LABEL: Final = b"cloister/channel/v1"
_TAG: Final = 16
_HEAD: Final = 9

AppraisesEvidence = Callable[[Evidence, datetime, bytes | None], tuple[Claims, Sequence[str]]]

_Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Key = Annotated[bytes, Meta(min_length=1216, max_length=1216)]
_Sealed = Annotated[bytes, Meta(min_length=1168, max_length=1168)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Base of what travels."""


class _Hello(_Wire, tag="cloister/channel/v1/hello", frozen=True):
    nonce: _Nonce


class _Offer(_Wire, tag="cloister/channel/v1/offer", frozen=True):
    hello: _Nonce
    nonce: _Nonce
    key: _Key
    evidence: Annotated[bytes, Meta(max_length=MAX_EVIDENCE)]


class _Opening(_Wire, tag="cloister/channel/v1/opening", frozen=True):
    offer: _Nonce
    sealed: _Sealed


_encode = msgspec.msgpack.Encoder().encode


_Kind = TypeVar("_Kind", bound=_Wire)


def _decode(data: Buffer, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"this is no {kind.__name__[1:].lower()} of a channel: {error}") from None


def _expected(purpose: str, hello: bytes, key: bytes, nonce: bytes) -> bytes:
    """Return the report data of a responder: over both nonces, purpose and key."""
    return report_data(purpose, hello, sha256(key), channel=nonce.hex())


class Channel(HoldsSecret):
    """An open channel: frames of either direction, in order.

    Attributes:
        ended: whether the peer's final frame has come: only then is what it said complete.
    """

    __slots__ = ("_closed", "_mine", "_open", "_received", "_seal", "_sent", "_theirs", "ended")

    def __init__(self, secret: bytes, transcript: bytes, *, initiator: bool) -> None:
        self._mine, self._theirs = (b"i", b"r")[:: 1 if initiator else -1]
        keys = {way: hkdf(secret, salt=transcript, info=_LABEL + b"/frames/" + way) for way in (b"i", b"r")}
        self._seal, self._open = Numbered(keys[self._mine]), Numbered(keys[self._theirs])
        self._sent = self._received = 0
        self._closed = False
        self.ended = False

    def seal(self, plaintext: Buffer, *, final: bool = False) -> bytes:
        """Return the next frame, 25 bytes longer than `plaintext`.

        Args:
            plaintext: at most `MAX_FRAME` bytes.
            final: whether nothing follows in this direction.

        Raises:
            InputError: it is too long, or the direction has ended.
        """
        if self._closed:
            raise InputError("a frame after the final one", fix="Open another channel")
        if memoryview(plaintext).nbytes > MAX_FRAME:
            raise InputError(f"a frame has more than {MAX_FRAME} bytes", fix="Split it")
        head = self._sent.to_bytes(8, "big") + bytes([final])
        frame = head + self._seal.seal(self._sent, plaintext, _LABEL + self._mine + head)
        self._sent += 1
        self._closed = final
        return frame

    def open(self, frame: Buffer) -> bytes:
        """Return the plaintext of the next frame; `ended` then says whether it was the last.

        Raises:
            IntegrityError: altered, out of order, of another channel, or after the final frame.
        """
        view = memoryview(frame).cast("B")
        head = bytes(view[:_HEAD])
        due = self._received.to_bytes(8, "big")
        if self.ended or not _HEAD + _TAG <= len(view) <= _HEAD + _TAG + MAX_FRAME:
            raise IntegrityError("a frame that cannot be: too short, too long, or after the final one")
        if head[:8] != due or head[8] > 1:
            raise IntegrityError("a frame is missing, repeated or out of order", fix="Open another channel")
        plaintext = self._open.open(self._received, view[_HEAD:], _LABEL + self._theirs + head)
        self._received += 1
        self.ended = bool(head[8])
        return plaintext

    def finish(self) -> None:
        """Raise IntegrityError where the connection ended and the peer's final frame has not come."""
        if not self.ended:
            raise IntegrityError(
                "the channel broke off before its end", fix="Do not use what came; ask again"
            )


class Initiator:
    """Who appraises, and then sends: one object a channel.

    Args:
        purpose: what the channel is for, such as "cloister/inference/v1".
        appraise: the owner's judgement: (evidence, time, expected report data) -> claims, reasons to refuse.
        insecure_test_random: source of nonce and secret in tests.
    """

    def __init__(
        self, purpose: str, appraise: AppraisesEvidence, *, insecure_test_random: RandomBytes | None = None
    ) -> None:
        self._purpose, self._appraise = purpose, appraise
        self._random = insecure_test_random or os.urandom
        self._hello: bytes | None = None
        self.claims: Claims | None = None

    def hello(self) -> bytes:
        """Return the first message."""
        self._hello = _encode(_Hello(self._random(32)))
        return self._hello

    def open(self, offer: Buffer, at: datetime) -> tuple[bytes, Channel]:
        """Appraise what the responder offers, and open the channel.

        Args:
            offer: its answer.
            at: the time of appraisal, aware UTC.

        Returns:
            The message that opens it at the responder, and the channel.

        Raises:
            InputError: it is no offer, or its evidence is malformed.
            PolicyRefused: the evidence does not count, with all reasons; nothing was sealed.
        """
        hello, self._hello = self._hello, None  # a nonce counts once
        if hello is None:
            raise InputError("no hello was sent, or it was answered", fix="Begin anew")
        answer = _decode(offer, _Offer)
        if not constant_time_equal(answer.hello, sha256(hello)):  # 1
            raise InputError("an offer that answers another hello")
        evidence = Evidence.from_json(answer.evidence)  # 2
        nonce = _decode(hello, _Hello).nonce
        expected = _expected(self._purpose, nonce, answer.key, answer.nonce)
        claims, found = self._appraise(evidence, at, expected)  # 3
        reasons = list(found)
        if claims.freshness is not True:  # 4
            reasons.append("freshness: it does not carry this channel's key and nonce")
        if reasons:
            raise PolicyRefused(
                f"the evidence was refused: {'; '.join(dict.fromkeys(reasons))}",
                where="enclave policy",
                fix="Send nothing to that service; or change your enclave policy, if it is wrong",
            )
        self.claims = claims
        before = sha256(_LABEL, sha256(hello), sha256(bytes(offer)))
        secret = self._random(32)
        public = HpkePublicKey.from_bytes(KemSuite.HYBRID, answer.key)
        sealed = hpke_seal(public, secret, info=_LABEL + sha256(answer.key), associated_data=before)  # 5
        opening = _encode(_Opening(sha256(bytes(offer)), sealed))
        return opening, Channel(secret, sha256(before, opening), initiator=True)  # 6


class Offered(HoldsSecret):
    """A channel that was offered and waits for its opening."""

    __slots__ = ("_before", "_key", "_offer")

    def __init__(self, key: HpkePrivateKey, hello: bytes, offer: bytes) -> None:
        self._key: HpkePrivateKey | None = key
        self._offer = sha256(offer)
        self._before = sha256(_LABEL, sha256(hello), self._offer)

    def accept(self, opening: Buffer) -> Channel:
        """Open the channel.

        Raises:
            InputError: it is no opening, or of another offer.
            IntegrityError: it does not open, or this offer has been opened.
        """
        message = _decode(opening, _Opening)
        if message.offer != self._offer:
            raise InputError("an opening of another offer")
        key, self._key = self._key, None
        if key is None:
            raise IntegrityError("this offer was opened before", fix="Begin anew")
        info = _LABEL + sha256(key.public_key.to_bytes())
        secret = hpke_open(key, message.sealed, info=info, associated_data=self._before)
        return Channel(secret, sha256(self._before, bytes(opening)), initiator=False)


class Responder(HoldsSecret):
    """Who shows evidence, and holds the key in it; one object for many channels.

    Args:
        purpose: as the initiator's.
        key: ML-KEM768-X25519; kept in this process alone, new at every start.
        attest: makes evidence that carries the given 64 bytes.
        insecure_test_random: source of nonces in tests.
    """

    __slots__ = ("_attest", "_key", "_purpose", "_random")

    def __init__(
        self,
        purpose: str,
        key: HpkePrivateKey,
        attest: Callable[[bytes], Evidence],
        *,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        if key.suite is not KemSuite.HYBRID:
            raise InputError("a channel's key is ML-KEM768-X25519", fix="Generate one of that suite")
        self._purpose, self._key, self._attest = purpose, key, attest
        self._random = insecure_test_random or os.urandom

    def offer(self, hello: Buffer) -> tuple[bytes, Offered]:
        """Answer a hello.

        Returns:
            The offer, and what waits for its opening.

        Raises:
            InputError: it is no hello.
        """
        said = bytes(hello)
        nonce, own, public = _decode(said, _Hello).nonce, self._random(32), self._key.public_key.to_bytes()
        evidence = self._attest(_expected(self._purpose, nonce, public, own))
        offer = _encode(_Offer(sha256(said), own, public, evidence.to_json()))
        return offer, Offered(self._key, said, offer)
