"""The client's side of one exchange: bytes in, events out; no sockets, no clocks.

    asking = Asking(keys, RequestHead("POST", "/v1/chat/completions", headers), body)
    send asking.request
    for data in answer:  for event in asking.feed(data): ...     ResponseHead once, then pieces of the body
    asking.finish()
    asking.receipt

Whoever calls has appraised the evidence that vouches for `keys`, and that they hold now; nothing here does.

`feed`, in this order: 1 version and server nonce; 2 frames open, in order; 3 the first block is the head; 4
then body, as it comes; 5 the ending, in the final frame; 6 the receipt is signed with the key set's receipt
key; 7 it names this key set, model, policy and status; 8 its digests are those of what was asked and of what
came.

Pieces of a body are handed out before the end: they are the enclave's own words, in order, but not known to
be all of them, or covered by a receipt, until `finish` returns. What came of an answer that fails is to be
dropped. An object is for one exchange: to ask again, also after a stale key, make another, which seals a
fresh secret.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

from cloister.crypto import (
    Buffer,
    HoldsSecret,
    HpkePublicKey,
    KemSuite,
    hpke_seal,
    sha256,
)
from cloister.errors import InputError, IntegrityError
from cloister.inference.exchange import sealing
from cloister.inference.exchange.frames import FrameOpener
from cloister.inference.exchange.keyset import KeySet
from cloister.inference.exchange.messages import Ending, RequestHead, ResponseHead, decode, encode
from cloister.inference.exchange.padding import MAX_CONTENT, BlockKind, blocks, unblock
from cloister.inference.exchange.receipt import Receipt, open_receipt, salted_digest
from cloister.types import RandomBytes

__all__ = ["Asking"]


class Asking(HoldsSecret):
    """One request, and its answer as it comes.

    Args:
        keys: the service's key set, vouched for by evidence that the caller accepted.
        head: what is asked.
        body: of the request; may be empty.
        insecure_test_random: source of the secret in tests.

    Attributes:
        request: the bytes to send, all of them, once.

    Raises:
        InputError: the key set's key is none, or the head does not fit one block.
    """

    __slots__ = (
        "_answer_head",
        "_asked",
        "_broken",
        "_ending",
        "_frames",
        "_hash",
        "_head",
        "_keys",
        "_receipt",
        "_sealed",
        "_secret",
        "_start",
        "_status",
        "request",
    )

    def __init__(
        self,
        keys: KeySet,
        head: RequestHead,
        body: Buffer,
        *,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._keys, self._head = keys, head
        self._secret = (insecure_test_random or os.urandom)(32)
        self._sealed = hpke_seal(
            _public(keys.encryption_key),
            self._secret,
            info=sealing.info(keys.digest),
            associated_data=sealing.AAD,
        )
        head_bytes = encode(head)
        if len(head_bytes) > MAX_CONTENT:
            raise InputError("a request's head does not fit one block", fix="Send fewer or shorter headers")
        self._asked = head_bytes, sha256(body)
        self.request = self._seal(head_bytes, body)
        self._start = bytearray()
        self._frames: FrameOpener | None = None
        self._hash = hashlib.sha256()
        self._answer_head: bytes | None = None
        self._status = 0
        self._ending: Ending | None = None
        self._receipt: Receipt | None = None
        self._broken = False

    def _seal(self, head: bytes, body: Buffer) -> bytes:
        plaintexts = blocks(BlockKind.HEAD, head)
        if len(body):
            plaintexts += blocks(BlockKind.BODY, body)
        sealer = sealing.request_sealer(self._secret, self._sealed)
        last = len(plaintexts) - 1
        frames = (sealer.seal(plaintext, at == last) for at, plaintext in enumerate(plaintexts))
        return b"".join((sealing.VERSION, self._keys.digest, self._sealed, *frames))

    def feed(self, data: Buffer) -> list[ResponseHead | bytes]:
        """Return what `data` completes, in order: the head once, then pieces of the body.

        Args:
            data: the next bytes of the answer, cut anywhere.

        Raises:
            IntegrityError: they are not this request's answer, or its receipt does not fit it. Nothing that
                comes later is taken then.
        """
        if self._broken:
            raise _no_answer()
        try:
            if self._frames is None:
                data = self._begin(data)
            return self._events(data) if self._frames else []
        except IntegrityError:
            self._broken = True
            raise

    def _begin(self, data: Buffer) -> Buffer:
        """Take version and nonce; return what follows them."""
        start = self._start
        start += data
        if start and not start.startswith(sealing.VERSION):  # 1
            raise _no_answer()
        if len(start) < sealing.ANSWER_PREFIX:
            return b""
        nonce = bytes(start[1 : sealing.ANSWER_PREFIX])
        self._frames = sealing.answer_opener(self._secret, self._sealed, nonce)
        self._secret = b""
        rest = bytes(start[sealing.ANSWER_PREFIX :])
        start.clear()
        return rest

    def _events(self, data: Buffer) -> list[ResponseHead | bytes]:
        events: list[ResponseHead | bytes] = []
        frames = self._frames
        assert frames is not None  # noqa: S101  # `feed` has seen to it
        plaintexts = frames.feed(data)  # 2
        for at, plaintext in enumerate(plaintexts):
            final = frames.ended and at == len(plaintexts) - 1
            kind, content = unblock(plaintext)
            if (kind is BlockKind.HEAD) is not (self._answer_head is None) or final is not (
                kind is BlockKind.END
            ):
                raise _no_answer()
            if kind is BlockKind.BODY:  # 4
                if content:
                    piece = bytes(content)
                    self._hash.update(piece)
                    events.append(piece)
            elif kind is BlockKind.HEAD:  # 3
                self._answer_head = bytes(content)
                head = decode(self._answer_head, ResponseHead)
                self._status = head.status
                events.append(head)
            else:  # 5
                self._end(decode(bytes(content), Ending))
        return events

    def _end(self, ending: Ending) -> None:
        keys = self._keys
        receipt = open_receipt(ending.receipt, keys.receipt_key)  # 6
        named = (receipt.keys, receipt.policy, receipt.model, receipt.model_digest, receipt.status)
        if named != (keys.digest.hex(), self._head.policy, keys.model, keys.model_digest, self._status):  # 7
            raise _no_receipt()
        assert self._answer_head is not None  # noqa: S101  # the ending comes after the head
        request = salted_digest(ending.request_salt, *self._asked)
        answer = salted_digest(ending.answer_salt, self._answer_head, self._hash.digest())
        if receipt.request != request.hex() or receipt.answer != answer.hex():  # 8
            raise _no_receipt()
        self._ending, self._receipt = ending, receipt

    @property
    def complete(self) -> bool:
        """Whether the whole answer came, and its receipt fits it."""
        return self._receipt is not None and not self._broken

    def finish(self) -> None:
        """Raise IntegrityError unless the answer is complete; to call where the connection ends."""
        if not self.complete:
            raise IntegrityError("an answer was cut before its end", fix="Do not use what came; ask again")

    @property
    def receipt(self) -> Receipt:
        """What the enclave signed about this answer; checked. Raises InputError before the end."""
        self._check_complete()
        assert self._receipt is not None  # noqa: S101
        return self._receipt

    @property
    def ending(self) -> Ending:
        """The receipt's envelope and the salts of its digests. Raises InputError before the end."""
        self._check_complete()
        assert self._ending is not None  # noqa: S101
        return self._ending

    @property
    def envelope(self) -> bytes:
        """The receipt as it was signed, a DSSE envelope. Raises InputError before the end."""
        return self.ending.receipt

    def _check_complete(self) -> None:
        if not self.complete:
            raise InputError("an answer's receipt comes at its end", fix="Read the whole answer first")


@lru_cache(maxsize=16)
def _public(key: bytes) -> HpkePublicKey:
    """Return a key set's key; reading one takes a fifth of what sealing to it does."""
    return HpkePublicKey.from_bytes(KemSuite.HYBRID, key)


def _no_answer() -> IntegrityError:
    return IntegrityError(
        "bytes that are not the answer to this request", fix="Do not use what came; ask again"
    )


def _no_receipt() -> IntegrityError:
    return IntegrityError(
        "an answer's receipt is not about this request and answer", fix="Do not use what came; ask again"
    )
