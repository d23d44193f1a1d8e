"""One request and its answer, as a client's transport handles them; bytes in, bytes out, no sockets.

An answer's pieces are handed on as they come, authenticated. Two things wait for the checked receipt: the
`[DONE]` of an event stream, so that whoever has seen it has a complete answer; and an answer that is sealed
to readers, whose readers must be those that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from cloister.crypto import PublicIdentity, sealed_recipients
from cloister.errors import InputError, IntegrityError
from cloister.inference.client.verify import Verified
from cloister.inference.exchange.client import Asking
from cloister.inference.exchange.messages import Ending, RequestHead, ResponseHead
from cloister.inference.exchange.receipt import Receipt

__all__ = [
    "ANSWER_TYPE",
    "MAX_REFUSAL",
    "SEALED_TYPE",
    "Keep",
    "Turn",
    "refusal",
]

ANSWER_TYPE: Final = "application/octet-stream"
"""What a sealed answer is called outside."""
SEALED_TYPE: Final = "application/cloister-sealed"
"""What an answer sealed to readers is called inside."""
_DONE: Final = b"[DONE]"
_TAIL: Final = 16
MAX_REFUSAL: Final = 4096
"""Bytes of a refusal that are read."""
Refusal = Literal["stale-key", "request", "busy", "too-large"]
Keep = Callable[[Verified, bytes, Ending], None]
"""Keeps a receipt that was checked: (service, envelope, ending)."""


class _Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refused: Refusal


_refusals: Final = msgspec.json.Decoder(_Refused)


def refusal(status: int, body: bytes) -> Refusal | None:
    """Return the service's reason where a body is one; None where it is something else.

    Nobody vouches for it: whoever sits between can say the same.
    """
    if status < 400:
        return None
    try:
        return _refusals.decode(body).refused
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Turn:
    """One request that was sealed, and the answer to it.

    Args:
        verified: the service, as it was verified.
        head: of the request.
        body: of the request.
        readers: to whom the answer must be sealed; empty for nobody.
        keep: is given the receipt once it was checked.

    Attributes:
        verified: the service.
        request: the bytes to send.
        head: of the answer, as soon as it has come.

    Raises:
        InputError: the request cannot be sent.
    """

    __slots__ = (
        "_asking",
        "_held",
        "_keep",
        "_readers",
        "_sealed",
        "_stream",
        "_tail",
        "head",
        "request",
        "verified",
    )

    def __init__(
        self,
        verified: Verified,
        head: RequestHead,
        body: bytes,
        *,
        readers: Sequence[PublicIdentity] = (),
        keep: Keep | None = None,
    ) -> None:
        self.verified = verified
        self._asking = Asking(verified.keys, head, body)
        self.request = self._asking.request
        self._readers = (
            tuple(dict.fromkeys(each.fingerprint for each in readers)) if head.method == "POST" else ()
        )
        self._keep = keep
        self._held: list[bytes] = []
        self._sealed = self._stream = False
        self._tail = b""
        self.head: ResponseHead | None = None

    @property
    def receipt(self) -> Receipt | None:
        """What the service signed, once the answer is complete and the receipt was checked."""
        return self._asking.receipt if self._asking.complete else None

    @property
    def envelope(self) -> bytes | None:
        """The signed receipt itself, as `receipt`."""
        return self._asking.envelope if self._asking.complete else None

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces of the answer's body that `data` completes and that may be handed on.

        Raises:
            IntegrityError: the bytes are not this request's answer, or not sealed as was asked.
        """
        pieces = self._held
        self._held = []
        for event in self._asking.feed(data):
            if isinstance(event, ResponseHead):
                self._begin(event)
            else:
                pieces.append(event)
        if self._sealed:
            self._held, pieces = pieces, []
        elif self._stream and pieces:
            self._tail = (self._tail + b"".join(pieces))[-_TAIL:]  # the word may lie in two blocks
            if self._tail.rstrip().endswith(_DONE):
                self._held, pieces = pieces, []
        return pieces

    def finish(self) -> list[bytes]:
        """Return what was held back: no more bytes come, the answer is complete, its receipt is kept.

        Raises:
            IntegrityError: the answer was cut, or is sealed to other readers than was asked for.
            StorageError: the receipt cannot be kept.
        """
        self._asking.finish()
        pieces, self._held = self._held, []
        if self._sealed:
            self._check_readers(b"".join(pieces))
        if self._keep is not None:
            self._keep(self.verified, self._asking.envelope, self._asking.ending)
        return pieces

    def _begin(self, head: ResponseHead) -> None:
        self.head = head
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._stream = kind == "text/event-stream"
        self._sealed = kind == SEALED_TYPE
        if self._readers and head.status < 400 and not self._sealed:
            raise IntegrityError(
                "the answer is not sealed to its readers",
                fix="Ask the service's operator whether it can seal",
            )

    def _check_readers(self, sealed: bytes) -> None:
        try:
            named = sealed_recipients(sealed)
        except (InputError, IntegrityError):
            named = ()
        if not named or (self._readers and named != self._readers):
            raise IntegrityError("the answer is sealed to other readers than was asked for")
