"""A signed, encrypted, ordered channel between two parties of one study, over a transport nobody trusts.

Set-up is one `Hello` each way: a fresh X25519 key, signed by the sender's identity together with the plan's
digest, both names and a nonce. The two direction keys are HKDF(X25519(fresh, fresh), plan | initiator's hello
| responder's hello): reading an identity's long-term key later does not open what was said.

Every message after that is `Frame`: header | AES-256-GCM ciphertext | Ed25519 signature over header and
ciphertext. The header (study, sender, receiver, session, sequence) is the associated data, and a key is used
in one direction only.

Invariants:
- a frame is delivered once and in the order it was sent, whatever the transport duplicates or reorders;
- a frame of another study, session, sender or receiver, or with any bit changed, raises and changes nothing;
- a hello is answered once: the same one again is ignored, as any duplicate, and a second hello of the same
  peer is refused, so a session cannot be reset from outside;
- what waits for its turn is signed by the peer and bounded, in number and in bytes.

What it does not do: hide who talks to whom, how much and when; resist a quantum computer (stated in the
threat model).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Annotated

import msgspec

from cloister.crypto import (
    AgreementKey,
    HoldsSecret,
    Identity,
    PublicIdentity,
    decrypt,
    encrypt,
    hkdf,
    sha256,
)
from cloister.errors import ProtocolError
from cloister.types import RandomBytes

__all__ = ["Channel", "peek"]

VERSION = 1
MAX_MESSAGE = 2**30
WINDOW = 1024
EARLY = 16
_LABEL = b"cloister/channel/v1"

Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,63}\Z")]


class Route(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Study and direction; the first thing in every message and the only thing in the clear."""

    version: int
    study: Bytes32
    sender: Name
    receiver: Name


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="hello"):
    """Opens a session: a fresh X25519 public key and a nonce, signed."""

    route: bytes
    key: Bytes32
    nonce: Bytes32
    signature: bytes


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="frame"):
    """One message of a session."""

    route: bytes
    session: Bytes32
    sequence: Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
    ciphertext: bytes
    signature: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_any: msgspec.msgpack.Decoder[Hello | Frame] = msgspec.msgpack.Decoder(Hello | Frame)
_decode_route: msgspec.msgpack.Decoder[Route] = msgspec.msgpack.Decoder(Route)


def _parse(message: bytes) -> tuple[Route, Hello | Frame]:
    if len(message) > MAX_MESSAGE:
        raise ProtocolError("sent a message above the size limit")
    try:
        parsed = _decode_any.decode(message)
        route = _decode_route.decode(parsed.route)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError("sent bytes that are no channel message") from error
    if route.version != VERSION:
        raise ProtocolError(
            f"speaks channel version {route.version}, not {VERSION}",
            peer=route.sender,
            fix="Install the same version at both ends",
        )
    return route, parsed


def peek(message: bytes) -> str:
    """Return the name the message claims to come from. Nothing about it is verified yet.

    Raises:
        ProtocolError: it is no channel message at all.
    """
    return _parse(message)[0].sender


class Channel(HoldsSecret):
    """One party's end of a session with one peer.

    Args:
        identity: this party.
        peer: the other party's public identity; only its signatures count.
        study: 32-byte digest of the plan; a message of another study is refused.
        initiator: True at the party that sends the first hello (the hub).
        insecure_test_random: source of randomness in tests.
    """

    def __init__(
        self,
        identity: Identity,
        peer: PublicIdentity,
        study: bytes,
        *,
        initiator: bool,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        random = insecure_test_random or os.urandom
        self._identity = identity
        self._peer = peer
        self._initiator = initiator
        self._out = _encode(Route(VERSION, study, identity.name, peer.name))
        self._in = _encode(Route(VERSION, study, peer.name, identity.name))
        self._study = study
        self._ephemeral: AgreementKey | None = AgreementKey.generate(random)
        signed = self._out + self._ephemeral.public + (nonce := random(32))
        self.hello = _encode(
            Hello(self._out, self._ephemeral.public, nonce, identity.sign(_LABEL + b"/hello" + signed))
        )
        self._session = b""
        self._answered = b""  # the peer's hello
        self._keys: tuple[bytes, bytes] | None = None  # mine, theirs
        self._sent = 0
        self._delivered = 0
        self._early: list[Frame] = []
        self._waiting: dict[int, Frame] = {}

    def __repr__(self) -> str:
        return f"Channel({self._identity.name} to {self._peer.name}, {'open' if self.ready else 'opening'})"

    @property
    def ready(self) -> bool:
        """True once both hellos are exchanged."""
        return self._keys is not None

    def seal(self, payload: bytes) -> bytes:
        """Return the next signed and encrypted frame for `payload`."""
        if self._keys is None:
            raise ProtocolError("no session with this party yet", peer=self._peer.name)
        sequence = self._sent
        ciphertext = encrypt(self._keys[0], payload, self._associated(self._out, sequence))
        signature = self._identity.sign(self._signed(self._out, self._session, sequence, ciphertext))
        self._sent += 1
        return _encode(Frame(self._out, self._session, sequence, ciphertext, signature))

    def receive(self, message: bytes) -> list[bytes]:
        """Take one message from the transport; return the payloads that are now in order (often one,
        sometimes none).

        Raises:
            ProtocolError: not from this peer, not for this study or session, or not well formed.
            IntegrityError: signature or ciphertext does not verify.
        """
        try:
            route, parsed = _parse(message)
            if parsed.route != self._in:
                raise ProtocolError(f"sent a message for {route.receiver!r} of another study or party")
            if isinstance(parsed, Hello):
                self._on_hello(message, parsed)
                early, self._early = self._early, []
                own = (frame for frame in early if frame.session == self._session)
                return [payload for frame in own for payload in self._on_frame(frame)]
            if self._keys is None:
                return self._keep_early(parsed)
            return self._on_frame(parsed)
        except ProtocolError as error:
            raise ProtocolError(error.what, peer=self._peer.name, fix=error.fix) from error

    def _on_hello(self, message: bytes, hello: Hello) -> None:
        self._peer.verify(hello.signature, _LABEL + b"/hello" + hello.route + hello.key + hello.nonce)
        if self._ephemeral is None:
            if message == self._answered:
                return
            raise ProtocolError("tried to open a second session")
        first, second = (self.hello, message) if self._initiator else (message, self.hello)
        self._session = sha256(_LABEL, sha256(first), sha256(second))
        shared = self._ephemeral.exchange(hello.key)
        self._ephemeral, self._answered = None, message
        forward, backward = (
            hkdf(shared, salt=self._session, info=_LABEL + direction + self._study)
            for direction in (b"/initiator/", b"/responder/")
        )
        self._keys = (forward, backward) if self._initiator else (backward, forward)

    def _keep_early(self, frame: Frame) -> list[bytes]:
        # the transport may reorder: a frame can overtake its own hello. It may also be of an older session
        self._verify(frame)
        if len(self._early) >= EARLY:
            raise ProtocolError("sent too much before opening a session")
        self._bound(frame, self._early)
        if frame not in self._early:
            self._early.append(frame)
        return []

    def _on_frame(self, frame: Frame) -> list[bytes]:
        if self._keys is None or frame.session != self._session:
            raise ProtocolError("sent a message of another session")
        if frame.sequence < self._delivered or frame.sequence in self._waiting:
            return []  # a duplicate; the transport may deliver at least once
        if frame.sequence >= self._delivered + WINDOW:
            raise ProtocolError("is too far ahead of what has arrived")
        self._verify(frame)
        if frame.sequence != self._delivered:
            self._bound(frame, self._waiting.values())
        self._waiting[frame.sequence] = frame
        payloads = []
        while (following := self._waiting.pop(self._delivered, None)) is not None:
            payloads.append(
                decrypt(self._keys[1], following.ciphertext, self._associated(self._in, following.sequence))
            )
            self._delivered += 1
        return payloads

    def _verify(self, frame: Frame) -> None:
        self._peer.verify(
            frame.signature, self._signed(frame.route, frame.session, frame.sequence, frame.ciphertext)
        )

    def _bound(self, frame: Frame, held: Collection[Frame]) -> None:
        if held and len(frame.ciphertext) + sum(len(each.ciphertext) for each in held) > MAX_MESSAGE:
            raise ProtocolError("sent too much that cannot be delivered yet")

    def _associated(self, route: bytes, sequence: int) -> bytes:
        return _LABEL + route + self._session + sequence.to_bytes(8, "big")

    def _signed(self, route: bytes, session: bytes, sequence: int, ciphertext: bytes) -> bytes:
        return _LABEL + b"/frame" + route + session + sequence.to_bytes(8, "big") + sha256(ciphertext)
