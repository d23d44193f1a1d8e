"""The key broker: holds KEKs, and opens data keys for attested workers alone. It does no I/O but its book's.

`Broker.converse` gives one `Conversation` for each connection; messages and the time come in, answers go out.
What a conversation adds to `releases` and `orders`:

- a challenge is fresh, for one request on this connection within a minute, and used up by that request
  whatever becomes of it;
- an attested worker may, for ten minutes and on this connection, ask for further data keys of the same
  dataset: opening one dataset takes a key for each column, and is one use. Each request is entered;
- owners give orders signed over both sides' nonces and the order's number. There is no order that unwraps;
  wrapping needs no attestation, for who wraps has the data key;
- every release, every refusal and every change is in the log before its answer is returned. What cannot be
  read is answered and not entered: anybody could fill the log with it.

Not covered: whoever runs this process, or can read its memory, has its keys; run it where the owner trusts
the machine. The machine's clock decides what has expired.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from cloister.crypto import HoldsSecret, Identity, PublicIdentity, sha256
from cloister.enclave.appraise import Appraise
from cloister.enclave.broker.book import Book
from cloister.enclave.broker.entries import Refusal, short_reasons
from cloister.enclave.broker.messages import (
    MAX_MESSAGE,
    MAX_SMALL,
    Act,
    Ask,
    Challenge,
    Done,
    Hello,
    More,
    Refused,
    Release,
    Reply,
    Request,
    Welcome,
    act_bytes,
    decode_request,
    done_bytes,
    encode,
    refused,
    welcome_bytes,
)
from cloister.enclave.broker.ordermessages import (
    decode_order,
)
from cloister.enclave.broker.orders import Orders
from cloister.enclave.broker.releases import Releases, Session, Turned
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, ProtocolError

__all__ = ["NONCE_SECONDS", "Broker", "Conversation"]

NONCE_SECONDS: Final = 60
"""How long a challenge may be answered."""
_MAX_HELLO: Final = 4096
_MAX_SESSIONS: Final = 64


class Broker(HoldsSecret):
    """Opens data keys for workers whose evidence an owner's policy accepts.

    Args:
        book: store and log.
        identity: the broker's; owners seal to it and believe what it signs.
        appraise: claims of evidence, and the policy's reasons to refuse.
        policy: digest of that policy, hexadecimal.
        owners: who may give orders.
        former: fingerprints of owners' earlier identities, each with the present one's.
    """

    __slots__ = ("book", "identity", "lock", "orders", "owners", "releases")

    def __init__(
        self,
        book: Book,
        identity: Identity,
        appraise: Appraise,
        *,
        policy: str,
        owners: Iterable[PublicIdentity],
        former: Mapping[str, str] | None = None,
    ) -> None:
        self.book: Final = book
        self.identity: Final = identity
        self.owners: Final = {owner.fingerprint: owner for owner in owners}
        self.orders: Final = Orders(book, identity, former or {})
        self.releases: Final = Releases(book, self.orders, identity, appraise, policy)
        self.lock: Final = threading.Lock()

    def converse(self) -> Conversation:
        """Return the broker's side of a new connection."""
        return Conversation(self)


class Conversation:
    """One connection's state: nonces, the orders' number, the workers that were attested on it.

    Attributes:
        ended: whether the connection is of no further use and should be closed.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._client: bytes | None = None
        self._own = os.urandom(32)
        self._number = 0
        self._challenge: tuple[bytes, datetime] | None = None
        self._sessions: dict[tuple[str, str], Session] = {}
        self.ended = False

    @property
    def limit(self) -> int:
        """How many bytes the next message may have."""
        if self._client is None:
            return _MAX_HELLO
        return MAX_MESSAGE if self._challenge is not None else MAX_SMALL

    def handle(self, message: bytes, at: datetime) -> bytes:
        """Return the answer to a message; a refusal is an answer too.

        Args:
            message: as the client sent it.
            at: now, with its zone.
        """
        try:
            if len(message) > self.limit:
                raise InputError("a message to the key broker is too long", fix="Ask for a challenge first")
            request = decode_request(message)
        except InputError as error:
            self.ended = True
            return encode(refused(error))
        with self._broker.lock:
            try:
                return encode(self._answer(request, at))
            except CloisterError as error:
                return encode(refused(error))

    def _answer(self, request: Request, at: datetime) -> Reply:
        if isinstance(request, Hello) != (self._client is None):
            self.ended = True
            return refused(ProtocolError("a client begins with hello, once", fix="Open another connection"))
        if isinstance(request, Hello):
            return self._welcome(request)
        if isinstance(request, Ask):
            nonce = os.urandom(32)
            self._challenge = (nonce, at)
            return Challenge(nonce, NONCE_SECONDS)
        if isinstance(request, Act):
            return self._order(request, at)
        try:
            return self._more(request, at) if isinstance(request, More) else self._release(request, at)
        except Turned as turned:
            return self._refuse(request, turned, at)

    def _welcome(self, hello: Hello) -> Welcome:
        self._client = hello.nonce
        identity = self._broker.identity
        return Welcome(
            identity.public.to_json(), self._own, identity.sign(welcome_bytes(hello.nonce, self._own))
        )

    def _release(self, request: Release, at: datetime) -> Reply:
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            raise Turned(
                PolicyRefused("evidence came without a challenge, or a second time", fix="Ask for a new one")
            )
        nonce, since = challenge
        if not timedelta() <= at - since < timedelta(seconds=NONCE_SECONDS):
            raise Turned(PolicyRefused("the challenge has expired", fix="Ask for a new one"))
        session, released = self._broker.releases.release(request, nonce, at)
        while len(self._sessions) >= _MAX_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[session.grant.permission, session.grant.worker] = session
        return released

    def _more(self, request: More, at: datetime) -> Reply:
        session = self._sessions.get((request.permission, request.worker))
        return self._broker.releases.more(session, request, at)

    def _refuse(self, request: Release | More, turned: Turned, at: datetime) -> Refused:
        if isinstance(request, Release):
            entry = Refusal(
                at,
                None,
                "release",
                turned.reasons,
                request.wanted,
                sha256(request.worker).hex(),
                turned.evidence,
                turned.found,
            )
        else:
            session = self._sessions.get((request.permission, request.worker))
            known = (session.grant.wanted, session.grant.worker, session.grant.evidence) if session else ()
            entry = Refusal(at, None, "more", turned.reasons, *known)
        index, _ = self._broker.book.enter(entry)
        return refused(turned.error, index)

    def _order(self, act: Act, at: datetime) -> Done | Refused:
        client, number = self._client or b"", self._number
        self._number += 1
        try:
            owner = self._broker.owners.get(act.owner)
            if owner is None:
                raise PolicyRefused(
                    "this key broker takes no orders from this identity",
                    fix="Start it with `--owner` and the identity's name",
                )
            owner.verify(act.signature, act_bytes(client, self._own, number, act.order))
            value = self._broker.orders.carry_out(decode_order(act.order), act.owner, at)
        except (PolicyRefused, IntegrityError) as error:
            index, _ = self._broker.book.enter(Refusal(at, None, "order", short_reasons([str(error)])))
            return refused(error, index)
        answer = encode(value)
        signed = done_bytes(client, self._own, number, act.order, answer)
        return Done(answer, self._broker.identity.sign(signed))
