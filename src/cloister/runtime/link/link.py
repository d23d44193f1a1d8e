"""One end of a link: the handshake, the sessions it gives, and which of them is in force."""

from __future__ import annotations

import math
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.crypto import AgreementKey, Buffer, HoldsSecret, Identity, PublicIdentity
from cloister.errors import InputError, ProtocolError
from cloister.runtime.bodies import Body
from cloister.runtime.link import handshake
from cloister.runtime.link.handshake import Parties, common_version, derive_keys, digest
from cloister.runtime.link.incoming import Payload
from cloister.runtime.link.outgoing import FIRST_TIMEOUT, LONGEST_TIMEOUT
from cloister.runtime.link.session import Session
from cloister.runtime.link.wire import Frame, Hello, parse, route_of
from cloister.types import RandomBytes

__all__ = ["CONFIRM_WITHIN", "Link", "Received"]

CONFIRM_WITHIN: Final = 10.0
_CANDIDATES: Final = 4


@dataclass(frozen=True, slots=True)
class Received:
    """What one datagram brought: payloads that are now complete and in order, and whether a session opened
    with it, so that everything queued before is gone at both ends."""

    payloads: list[Payload]
    opened: bool = False


@dataclass(slots=True)
class _Asked:
    """The initiator's hello that waits for its answer."""

    key: AgreementKey
    hello: bytes
    due: float
    again: float = FIRST_TIMEOUT


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A session the responder agreed to and the initiator has not used yet."""

    asked: bytes  # digest of the hello
    answer: bytes
    session: Session
    term: int


class Link(HoldsSecret):
    """One party's end of a link with one peer; see the package's docstring.

    Args:
        identity: this party.
        peer: the other party's public identity; only its signatures count.
        study: 32-byte digest of the plan; a datagram of another study is refused.
        initiator: True at the party that opens sessions (the site).
        term: told to the peer in every hello; a hub's grows whenever another machine takes its place.
        least_term: a hello of the peer under a lower term is refused, as is one below the highest seen.
        auto_grant: whether large payloads may come without `grant`.
        aside: folder where what is large lies while it comes, as the peer sent it; None for memory.
        insecure_test_random: source of randomness in tests.
    """

    def __init__(
        self,
        identity: Identity,
        peer: PublicIdentity,
        study: bytes,
        *,
        initiator: bool,
        term: int = 0,
        least_term: int = 0,
        auto_grant: bool = True,
        aside: Path | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        if len(study) != 32:
            raise InputError("a study is named by 32 bytes", fix="Give the digest of its plan")
        self._parties = Parties(identity, peer, study)
        self._initiator = initiator
        self._term, self._least_term = term, least_term
        self._auto_grant, self._aside = auto_grant, aside
        self._random = insecure_test_random or os.urandom
        self._versions = handshake.VERSIONS
        self._hello_route = self._parties.route_in()
        self._session: Session | None = None
        self._asked: _Asked | None = None
        self._answered = (b"", b"")  # digests of the last hello that was answered, and of its answer
        self._confirm_by = math.inf
        self._candidates: dict[bytes, _Candidate] = {}  # by session, oldest first
        self._answers: deque[bytes] = deque(maxlen=_CANDIDATES)
        self.peer_term = 0

    def __repr__(self) -> str:
        state = "open" if self.ready else "closed"
        return f"Link({self._parties.identity.name} to {self._parties.peer.name}, {state})"

    @property
    def ready(self) -> bool:
        """True while a session is open; at the responder, once the initiator has used it."""
        return self._session is not None

    @property
    def session(self) -> bytes:
        """The open session's 32 bytes, b"" if there is none."""
        return self._session.id if self._session else b""

    @property
    def incoming(self) -> int:
        """Bytes of the large payload that the peer announced and that waits or is in transfer; 0 if none."""
        return self._session.incoming.announced if self._session else 0

    @property
    def granted(self) -> bool:
        """Whether that payload may come."""
        return self._session is not None and self._session.incoming.granted

    @property
    def lacking(self) -> int:
        """How many pieces of that payload have not come."""
        return self._session.incoming.lacking if self._session else 0

    @property
    def outgoing(self) -> int:
        """Bytes queued or not acknowledged."""
        return self._session.outgoing.size if self._session else 0

    def open(self, now: float) -> None:
        """Begin a handshake. A session that is open stays in force until the new one is.

        Raises:
            InputError: this party is not the initiator.
        """
        if not self._initiator:
            raise InputError("only the initiator opens sessions", fix="Wait for the peer's hello")
        key = AgreementKey.generate(self._random)
        hello = self._parties.hello(key, self._versions, self._term, b"", self._random)
        self._asked = _Asked(key, hello, now)
        self._confirm_by = math.inf

    def obey(self, term: int) -> None:
        """Listen to no machine below `term` any more; a session with one ends."""
        self._least_term = max(self._least_term, term)
        if self._session is not None and self.peer_term < term:
            self.close()

    def send(self, payload: Buffer | Body) -> None:
        """Queue a payload. It must not change until it is acknowledged: no copy is made, and a body is read
        as it goes.

        Raises:
            ProtocolError: no session is open.
            InputError: it is too large.
        """
        if self._session is None:
            raise ProtocolError(
                "no session with this party", peer=self._parties.peer.name, fix="Wait until one is open"
            )
        self._session.outgoing.queue(payload)

    def receive(self, datagram: Buffer, now: float) -> Received:
        """Take one datagram from the transport.

        Raises:
            ProtocolError: not from this peer, not for this study or session, or not well formed.
            IntegrityError: signature or ciphertext does not verify.
        """
        try:
            message = parse(datagram)
            if isinstance(message, Frame):
                return self._on_frame(message, now)
            if message.route != self._hello_route:
                raise _foreign(message)
            hello = self._on_answer if self._initiator else self._on_question
            return Received([], hello(message, bytes(datagram), now))
        except ProtocolError as error:
            raise ProtocolError(error.what, peer=self._parties.peer.name, fix=error.fix) from error

    def poll(self, now: float) -> bytes | None:
        """Return the next datagram to transmit, or None. Call it until then.

        Raises:
            InputError: a payload was changed while it was being sent; the session is closed.
        """
        if now >= self._confirm_by:
            self.open(now)  # the peer has forgotten the session, or never came to know it
        if self._answers:
            return self._answers.popleft()
        if self._asked is not None and now >= self._asked.due:
            self._asked.due = now + self._asked.again
            self._asked.again = min(2 * self._asked.again, LONGEST_TIMEOUT)
            return self._asked.hello
        if self._session is None:
            return None
        try:
            return self._session.poll(now)
        except InputError:
            self.close()
            raise

    def wake_at(self) -> float:
        """Return when `poll` may return something without new input; math.inf if never."""
        if self._answers:
            return -math.inf
        hello = self._asked.due if self._asked else math.inf
        session = self._session.wake_at() if self._session else math.inf
        return min(hello, session, self._confirm_by)

    def nudge(self, now: float) -> None:
        """Transmit at once what waits for an answer: the transport reconnected."""
        if self._asked is not None:
            self._asked.due, self._asked.again = now, FIRST_TIMEOUT
        if self._session is not None:
            self._session.nudge(now)

    def grant(self) -> None:
        """Let the peer transfer the large payload it announced, if it announced one."""
        if self._session is not None:
            self._session.grant()

    def close(self) -> None:
        """Forget keys and queues. What the link knows of terms stays."""
        self._session = self._asked = None
        self._confirm_by = math.inf
        self._candidates.clear()
        self._answers.clear()

    def _on_frame(self, frame: Frame, now: float) -> Received:
        session = self._session
        if session is None or frame.session != session.id:
            return self._on_candidate(frame, now)
        if frame.route != session.route_in:
            raise _foreign(frame)
        payloads = session.receive(frame, now)
        if self._confirm_by != math.inf and session.outgoing.acknowledged:
            self._confirm_by = math.inf
        return Received(payloads)

    def _on_candidate(self, frame: Frame, now: float) -> Received:
        candidate = self._candidates.get(frame.session)
        if candidate is None:
            raise ProtocolError("sent a frame of another session", fix="Open a new one")
        if frame.route != candidate.session.route_in:
            raise _foreign(frame)
        payloads = candidate.session.receive(frame, now)
        self._session, self.peer_term = candidate.session, candidate.term
        while next(iter(self._candidates)) != frame.session:  # newer ones may still be used
            del self._candidates[next(iter(self._candidates))]
        del self._candidates[frame.session]
        return Received(payloads, opened=True)

    def _on_question(self, hello: Hello, encoded: bytes, now: float) -> bool:
        if hello.answers:
            raise ProtocolError("answers a hello that was never sent")
        asked = digest(encoded)
        for candidate in self._candidates.values():
            if candidate.asked == asked:  # signed as before, byte for byte
                self._answer(candidate.answer)
                return False
        self._check(hello)
        key = AgreementKey.generate(self._random)
        answer = self._parties.hello(key, self._versions, self._term, asked, self._random)
        try:
            version = common_version(self._versions, hello.versions)
        except ProtocolError:
            self._answer(answer)  # which names our versions, so the peer can say the same
            raise
        keys = derive_keys(key, hello.key, encoded, answer, version, self._parties.study)
        session = Session(
            self._parties, keys, initiator=False, auto_grant=self._auto_grant, aside=self._aside
        )
        if len(self._candidates) >= _CANDIDATES:
            del self._candidates[next(iter(self._candidates))]
        self._candidates[keys.session] = _Candidate(asked, answer, session, hello.term)
        self._answer(answer)
        return False

    def _on_answer(self, hello: Hello, encoded: bytes, now: float) -> bool:
        asked = self._asked
        if asked is None or hello.answers != digest(asked.hello):
            return self._on_late_answer(hello, encoded, now)
        self._check(hello)
        self._asked = None
        version = common_version(self._versions, hello.versions)
        keys = derive_keys(asked.key, hello.key, asked.hello, encoded, version, self._parties.study)
        self._session = Session(
            self._parties, keys, initiator=True, auto_grant=self._auto_grant, aside=self._aside
        )
        self._answered = (hello.answers, digest(encoded))
        self._confirm_by = now + CONFIRM_WITHIN
        self.peer_term = hello.term
        return True

    def _on_late_answer(self, hello: Hello, encoded: bytes, now: float) -> bool:
        if not hello.answers or hello.answers != self._answered[0]:
            raise ProtocolError("answers a hello that was never sent or is not of interest any more")
        if digest(encoded) != self._answered[1]:
            self._check(hello)
            # either it has forgotten its first answer, and with it the session, or two machines answered
            if self._confirm_by != math.inf or hello.term > self.peer_term:
                self.open(now)
        return False

    def _check(self, hello: Hello) -> None:
        self._parties.verify_hello(hello)
        if hello.term < self._least_term:
            raise ProtocolError(
                f"speaks for term {hello.term}, and term {self._least_term} has begun",
                fix="Stop it: another machine has taken its place",
            )
        self._least_term = hello.term

    def _answer(self, answer: bytes) -> None:
        if answer not in self._answers:
            self._answers.append(answer)


def _foreign(message: Hello | Frame) -> ProtocolError:
    route = route_of(message)
    return ProtocolError(
        f"sent a datagram for {route.receiver!r} of another study, party or version",
        fix="Check which study it is in",
    )
