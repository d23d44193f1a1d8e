"""One hello each way, and the keys that follow from them.

    session = SHA-256(label | digest of the initiator's hello | digest of the responder's)
    key of a direction = HKDF(X25519(fresh, fresh), session, label | direction | version | study)

A hello is signed by its sender's identity together with the receiver's signing key, so it is good for that
receiver alone; the responder's names the digest of the hello it answers. Everything either side said, the
versions it speaks among them, is in the session's name and therefore in the keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from cloister.crypto import AgreementKey, HoldsSecret, Identity, PublicIdentity, hkdf, sha256
from cloister.errors import ProtocolError
from cloister.runtime.link.wire import HELLO_VERSION, LABEL, Hello, Route, encode
from cloister.types import RandomBytes

__all__ = ["VERSIONS", "Parties", "SessionKeys", "common_version", "derive_keys", "digest"]

VERSIONS: tuple[int, ...] = (1,)
"""The session formats this installation speaks."""


class SessionKeys(NamedTuple):
    """A session's name, format and the keys of its two directions."""

    session: bytes
    version: int
    initiator: bytes
    responder: bytes

    def __repr__(self) -> str:
        return "SessionKeys(secret)"


class Parties(HoldsSecret):
    """The two ends of a link and the study: who signs, who is believed, and the routes between them."""

    __slots__ = ("identity", "peer", "study")

    def __init__(self, identity: Identity, peer: PublicIdentity, study: bytes) -> None:
        self.identity = identity
        self.peer = peer
        self.study = study

    def route_out(self, version: int = HELLO_VERSION) -> bytes:
        """Return the encoded route from this party."""
        return encode(Route(version, self.study, self.identity.name, self.peer.name))

    def route_in(self, version: int = HELLO_VERSION) -> bytes:
        """Return the encoded route to this party."""
        return encode(Route(version, self.study, self.peer.name, self.identity.name))

    def hello(
        self, key: AgreementKey, versions: Iterable[int], term: int, answers: bytes, random: RandomBytes
    ) -> bytes:
        """Return an encoded, signed hello."""
        hello = Hello(self.route_out(), key.public, random(32), list(versions), term, answers, bytes(64))
        signature = self.identity.sign(_statement(hello, self.peer.signing))
        return encode(msgspec.structs.replace(hello, signature=signature))

    def verify_hello(self, hello: Hello) -> None:
        """Return if the peer signed `hello` for this party. Raises IntegrityError if it did not."""
        self.peer.verify(hello.signature, _statement(hello, self.identity.public.signing))


def _statement(hello: Hello, receiver: bytes) -> bytes:
    versions = struct.pack(f">B{len(hello.versions)}H", len(hello.versions), *hello.versions)
    end = versions + hello.term.to_bytes(8, "big") + hello.answers
    return b"".join((LABEL, b"/hello", sha256(hello.route), receiver, hello.key, hello.nonce, end))


def digest(hello: bytes) -> bytes:
    """Return the digest of an encoded hello, by which an answer names it."""
    return sha256(LABEL, b"/hello", hello)


def common_version(own: Iterable[int], theirs: Iterable[int]) -> int:
    """Return the highest version both speak. Raises ProtocolError, which names both lists, if none is."""
    own, theirs = sorted(set(own)), sorted(set(theirs))
    common = set(own) & set(theirs)
    if not common:
        raise ProtocolError(
            f"speaks session versions {_listed(theirs)} and this party {_listed(own)}",
            fix="Install versions that have one in common",
        )
    return max(common)


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(map(str, versions))


def derive_keys(
    key: AgreementKey, peer_key: bytes, first: bytes, second: bytes, version: int, study: bytes
) -> SessionKeys:
    """Return the keys of the session that `first` (the initiator's encoded hello) and `second` open.

    Raises:
        ProtocolError: the peer's public key is one that gives a secret everybody knows.
    """
    session = sha256(LABEL, b"/session", digest(first), digest(second))
    shared = key.exchange(peer_key)
    initiator, responder = (
        hkdf(shared, salt=session, info=LABEL + direction + version.to_bytes(2, "big") + study)
        for direction in (b"/initiator/", b"/responder/")
    )
    return SessionKeys(session, version, initiator, responder)
