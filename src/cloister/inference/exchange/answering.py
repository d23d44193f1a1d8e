"""The server's side of one exchange, once its secret was opened: bytes in, bytes out; no sockets, no clocks.

    answering = ring.open(prefix, now)                       the first 1,201 bytes
    for data in rest: answering.feed(data)                   until answering.ended
    head, body = answering.request()
    answering.head(status, headers, streamed=True), answering.body(piece) ..., answering.end(now)

Invariants: a request is whole or it is nothing: `request` returns none that was cut, padded wrongly, too
large or not in canonical form; every fault of what was fed raises one of two errors that do not say which it
was; an answer has one head, then its body, then the ending, in that order; the receipt is about exactly the
bytes that `head` and `body` were given, and is signed with the key of the key set that the request was sealed
to.

It does not know who asks or what may be asked. An answer of which `end` was not sent is taken by no client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from cloister.crypto import Buffer, HoldsSecret, SigningKey, sha256
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange import sealing
from cloister.inference.exchange.frames import FrameSealer
from cloister.inference.exchange.keyset import KeySet
from cloister.inference.exchange.messages import Ending, RequestHead, ResponseHead, decode, encode
from cloister.inference.exchange.padding import MAX_CONTENT, BlockKind, block, blocks, padded, unblock
from cloister.inference.exchange.receipt import Receipt, salted_digest, sign_receipt
from cloister.inference.exchange.refusals import Refused, TooLarge
from cloister.types import RandomBytes

__all__ = ["Answering", "Epoch"]

_ENDING_BLOCK: Final = 2_048
"""Bytes of the block that holds the ending."""


class Epoch(HoldsSecret):
    """A key set with what an answer under it needs: the key that signs receipts."""

    __slots__ = ("keys", "signing")

    def __init__(self, keys: KeySet, signing: SigningKey) -> None:
        self.keys = keys
        self.signing: SigningKey | None = signing


class Answering(HoldsSecret):
    """One request as it comes, and its answer; made by `KeyRing.open`.

    Attributes:
        ended: whether the request is whole.
    """

    __slots__ = (
        "_answer_head",
        "_asked",
        "_closed",
        "_dropped",
        "_epoch",
        "_fault",
        "_frames",
        "_hash",
        "_left",
        "_limit",
        "_parts",
        "_random",
        "_request",
        "_sealed",
        "_sealer",
        "_secret",
        "_status",
        "_streamed",
    )

    def __init__(
        self, epoch: Epoch, secret: bytes, sealed: bytes, *, max_body: int, random: RandomBytes
    ) -> None:
        self._epoch, self._random = epoch, random
        self._secret, self._sealed = secret, sealed
        self._frames = sealing.request_opener(secret, sealed)
        self._limit = max_body
        self._left = padded(max_body)  # of blocks, so that padding without end is too large as well
        self._parts: list[memoryview] = []
        self._dropped: hashlib._Hash | None = None  # of the body, where nobody wants it
        self._asked: tuple[RequestHead, bytes] | None = None
        self._request: tuple[bytes, bytes] | None = None  # head, SHA-256 of the body
        self._fault: type[Refused] | None = None
        self._sealer: FrameSealer | None = None
        self._answer_head = b""
        self._hash = hashlib.sha256()
        self._status = 0
        self._streamed = False
        self._closed = False

    @property
    def ended(self) -> bool:
        """Whether the request's final frame came and opened."""
        return self._frames.ended and self._fault is None

    @property
    def asked(self) -> RequestHead | None:
        """The head of the request, as soon as it has come."""
        return self._asked[0] if self._asked is not None else None

    def drop(self) -> None:
        """Keep no body from now on, only its digest for the receipt: `request` gives an empty one then."""
        if self._dropped is None:
            self._dropped = hashlib.sha256(b"".join(self._parts))
            self._parts.clear()

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the request, cut anywhere.

        Raises:
            TooLarge: its body exceeds the limit.
            Refused: anything else is wrong with it; no more is said.
        """
        if self._fault is not None:
            raise self._fault()
        try:
            for plaintext in self._frames.feed(data):
                self._take(plaintext)
        except IntegrityError:
            self._fault = Refused
        except Refused as refusal:
            self._fault = type(refusal)
        if self._fault is not None:
            self._parts.clear()
            raise self._fault()

    def _take(self, plaintext: bytes) -> None:
        kind, content = unblock(plaintext)
        if self._asked is None:
            if kind is not BlockKind.HEAD:
                raise Refused
            head = bytes(content)
            self._asked = decode(head, RequestHead), head
            return
        if kind is not BlockKind.BODY:
            raise Refused
        self._left -= len(plaintext)
        self._limit -= len(content)
        if self._left < 0 or self._limit < 0:
            raise TooLarge
        if self._dropped is not None:
            self._dropped.update(content)
        else:
            self._parts.append(content)

    def request(self) -> tuple[RequestHead, bytes]:
        """Return head and body of the request, once: this object keeps neither.

        Raises:
            Refused: it is not whole.
            InputError: it was read before.
        """
        if not self.ended or self._asked is None:
            raise Refused
        if self._request is not None:
            raise InputError("a request that was read before", fix="Keep what the first call returned")
        head, head_bytes = self._asked
        body = b"".join(self._parts)
        self._parts.clear()
        self._request = head_bytes, self._dropped.digest() if self._dropped is not None else sha256(body)
        return head, body

    def head(self, status: int, headers: Mapping[str, str], streamed: bool) -> bytes:
        """Return the beginning of the answer.

        Args:
            status: of HTTP.
            headers: lower-case names to values.
            streamed: whether the body comes in pieces whose lengths are nobody's business: each goes out in
                blocks of one size. Else the body is given whole, and is padded to a bucket.

        Raises:
            InputError: the request was not read, a head was made already, or this one cannot be sent.
        """
        if self._request is None or self._sealer is not None:
            raise InputError("an answer's head comes once, after its request", fix="Read the request first")
        self._answer_head = encode(ResponseHead(status, dict(headers)))
        if len(self._answer_head) > MAX_CONTENT:
            raise InputError("an answer's head does not fit one block", fix="Send fewer headers")
        self._status, self._streamed = status, streamed
        nonce = self._random(sealing.NONCE_BYTES)
        self._sealer = sealing.answer_sealer(self._secret, self._sealed, nonce)
        self._secret = b""
        frames = map(self._sealer.seal, blocks(BlockKind.HEAD, self._answer_head))
        return b"".join((sealing.VERSION, nonce, *frames))

    def body(self, data: Buffer) -> bytes:
        """Return the frames of the next piece of the body, or of the whole of it.

        An empty piece of a stream gives one frame like any other piece; an empty body gives none.

        Raises:
            InputError: before the head, or after the end.
        """
        sealer = self._open_sealer()
        self._hash.update(data)
        if not self._streamed and not len(data):
            return b""
        return b"".join(map(sealer.seal, blocks(BlockKind.BODY, data, streamed=self._streamed)))

    def end(self, now: datetime) -> bytes:
        """Return the last frame, with the receipt.

        Args:
            now: aware; goes into the receipt, in whole seconds.

        Raises:
            InputError: before the head, after the end, after the keys were destroyed, or `now` has no zone.
        """
        sealer = self._open_sealer()
        signing, keys = self._epoch.signing, self._epoch.keys
        if now.utcoffset() is None:
            raise InputError("a time without a zone", fix="Give one in UTC")
        if signing is None or self._request is None or self._asked is None:
            raise InputError("the keys of this answer were destroyed", fix="Ask again")
        self._closed = True
        request_salt, answer_salt = self._random(32), self._random(32)
        receipt = Receipt(
            keys=keys.digest.hex(),
            policy=self._asked[0].policy,
            model=keys.model,
            model_digest=keys.model_digest,
            request=salted_digest(request_salt, *self._request).hex(),
            answer=salted_digest(answer_salt, self._answer_head, self._hash.digest()).hex(),
            status=self._status,
            at=now.astimezone(UTC).replace(microsecond=0),
        )
        content = encode(Ending(sign_receipt(receipt, signing), request_salt, answer_salt))
        return sealer.seal(block(BlockKind.END, content, _ENDING_BLOCK), True)

    def _open_sealer(self) -> FrameSealer:
        if self._sealer is None or self._closed:
            raise InputError("an answer's body comes after its head and before its end")
        return self._sealer
