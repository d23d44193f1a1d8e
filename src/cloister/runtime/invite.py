"""How a site and a hub find each other before they share a study.

    site -> hub   Knock    I am here; is there anything for me?
    hub  -> site  Invite   this plan, by this hub, under this lease; signed, and sealed to the site
    site -> hub   Decline  not as things are, and why, in a sentence; signed, and sealed to the hub

All are signed. What a plan says is for its sites alone, so it is sealed to each of them. A knock or an
invite that is replayed tells nobody anything new: a hub answers a knock with an invite, and a site that knows
the plan, and this instance of the hub, does nothing. A decline is of one study and one instance of its hub,
which listens to it while the site has no session; whoever replays one can at most make a hub give up whose
sites do not reach it anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from cloister.crypto import Buffer, Identity, PublicIdentity, canonical_bytes, hpke_open, hpke_seal
from cloister.errors import CloisterError, ProtocolError
from cloister.learning import Plan, parse_plan
from cloister.runtime.messages import MAX_REASON

__all__ = [
    "Invitation",
    "Knock",
    "is_decline",
    "is_greeting",
    "make_decline",
    "make_invite",
    "make_knock",
    "read_decline",
    "read_invite",
    "read_knock",
]

_LABEL = b"cloister/invite/v1"
_MAX_PLAN = 4 << 20
_MAX_DECLINE = 8192

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,63}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Knock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="knock"):
    """A site says that it is there."""

    site: Name
    hub: Name
    nonce: Nonce
    signature: bytes


class _Invite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="invite"):
    hub: Hex32
    site: Name
    term: Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
    instance: Nonce
    sealed: Annotated[bytes, msgspec.Meta(max_length=_MAX_PLAN)]
    signature: bytes


class _Decline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="decline"):
    site: Name
    instance: Nonce
    sealed: Annotated[bytes, msgspec.Meta(max_length=_MAX_DECLINE)]
    signature: bytes


@dataclass(frozen=True)
class Invitation:
    """What a site was invited to.

    Attributes:
        hub: who invites; trusted by the site's owner.
        plan: the study's plan.
        term: of the hub's lease.
        instance: 16 bytes that differ whenever the hub's process does.
    """

    hub: PublicIdentity
    plan: Plan
    term: int
    instance: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Knock | _Invite | _Decline] = msgspec.msgpack.Decoder(
    Knock | _Invite | _Decline
)


def is_greeting(datagram: Buffer) -> bool:
    """Tell a knock, an invite or a decline, which are maps, from what belongs to a session, an array."""
    return bool(datagram) and datagram[0] & 0xF0 == 0x80


def _decode(datagram: Buffer) -> Knock | _Invite | _Decline:
    try:
        return _decoder.decode(datagram)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("sent bytes that are no greeting") from error


def _knock_bytes(site: str, hub: str, nonce: bytes) -> bytes:
    return _LABEL + b"/knock" + canonical_bytes({"site": site, "hub": hub}) + nonce


def make_knock(identity: Identity, hub: str, nonce: bytes) -> bytes:
    """Return the datagram with which a site makes itself known to a hub."""
    signature = identity.sign(_knock_bytes(identity.name, hub, nonce))
    return _encode(Knock(identity.name, hub, nonce, signature))


def read_knock(datagram: Buffer, hub: str, sites: Mapping[str, PublicIdentity]) -> str:
    """Return the name of the site that knocked.

    Raises:
        ProtocolError, IntegrityError: it is no knock, not for this hub, or not by one of `sites`.
    """
    knock = _decode(datagram)
    if not isinstance(knock, Knock) or knock.hub != hub:
        raise ProtocolError("sent something else than a knock for this hub")
    site = sites.get(knock.site)
    if site is None:
        raise ProtocolError("knocked, and is not in this study", peer=knock.site)
    site.verify(knock.signature, _knock_bytes(knock.site, hub, knock.nonce))
    return knock.site


def _invite_bytes(hub: str, site: str, term: int, instance: bytes, sealed: bytes) -> bytes:
    return _LABEL + canonical_bytes({"hub": hub, "site": site, "term": term}) + instance + sealed


def make_invite(identity: Identity, site: PublicIdentity, plan: Plan, term: int, instance: bytes) -> bytes:
    """Return the datagram that invites a site to a study."""
    hub = identity.fingerprint
    bound = canonical_bytes({"hub": hub, "site": site.fingerprint})
    sealed = hpke_seal(site.sealing_key, plan.to_toml().encode(), info=_LABEL, associated_data=bound)
    signature = identity.sign(_invite_bytes(hub, site.name, term, instance, sealed))
    return _encode(_Invite(hub, site.name, term, instance, sealed, signature))


def read_invite(datagram: Buffer, identity: Identity, trusted: Mapping[str, PublicIdentity]) -> Invitation:
    """Return what this site is invited to.

    Args:
        datagram: from the network.
        identity: the site's own keys.
        trusted: identities its owner trusts, by fingerprint.

    Raises:
        ProtocolError, IntegrityError: it is no invite for this site by a hub that its owner trusts, or the
            plan in it is none, or names another hub.
    """
    invite = _decode(datagram)
    if not isinstance(invite, _Invite) or invite.site != identity.name:
        raise ProtocolError("sent something else than an invite for this site")
    hub = trusted.get(invite.hub)
    if hub is None:
        raise ProtocolError(
            f"an invite by an unknown hub {invite.hub[:16]}", fix="`cloister keys trust` it, if you know it"
        )
    hub.verify(
        invite.signature, _invite_bytes(invite.hub, invite.site, invite.term, invite.instance, invite.sealed)
    )
    bound = canonical_bytes({"hub": hub.fingerprint, "site": identity.fingerprint})
    try:
        text = hpke_open(identity.sealing, invite.sealed, info=_LABEL, associated_data=bound)
        plan = parse_plan(text)
    except CloisterError as error:
        raise ProtocolError(f"sent a plan that cannot be used: {error.what}", peer=hub.name) from error
    if plan.hub.identity != hub.fingerprint:
        raise ProtocolError("invites to the study of another hub", peer=hub.name)
    return Invitation(hub, plan, invite.term, invite.instance)


def _declined(study: bytes, hub: PublicIdentity, site: PublicIdentity, instance: bytes) -> bytes:
    parties = canonical_bytes({"study": study.hex(), "hub": hub.fingerprint, "site": site.fingerprint})
    return _LABEL + b"/decline" + parties + instance


def is_decline(greeting: Buffer) -> bool:
    """Tell a decline from a knock or an invite. Raises ProtocolError where it is no greeting."""
    return isinstance(_decode(greeting), _Decline)


def make_decline(identity: Identity, invitation: Invitation, reason: str) -> bytes:
    """Return the datagram with which a site says that it begins nothing, and why, for the hub alone."""
    bound = _declined(invitation.plan.digest, invitation.hub, identity.public, invitation.instance)
    sealed = hpke_seal(
        invitation.hub.sealing_key, reason[:MAX_REASON].encode(), info=_LABEL, associated_data=bound
    )
    return _encode(_Decline(identity.name, invitation.instance, sealed, identity.sign(bound + sealed)))


def read_decline(
    datagram: Buffer, identity: Identity, sites: Mapping[str, PublicIdentity], study: bytes, instance: bytes
) -> tuple[str, str] | None:
    """Return who declines and why; None where that was said to another instance: to one before this hub was
    started anew, most often.

    Args:
        datagram: from the network.
        identity: the hub's own keys.
        sites: identities of the study's sites, by name.
        study: 32-byte digest of the plan.
        instance: of this hub's process.

    Raises:
        ProtocolError, IntegrityError: it is no decline, or not by one of `sites`, or does not open.
    """
    decline = _decode(datagram)
    if not isinstance(decline, _Decline):
        raise ProtocolError("sent something else than a decline")
    if decline.instance != instance:
        return None
    site = sites.get(decline.site)
    if site is None:
        raise ProtocolError("declined, and is not in this study", peer=decline.site)
    bound = _declined(study, identity.public, site, instance)
    site.verify(decline.signature, bound + decline.sealed)
    reason = hpke_open(identity.sealing, decline.sealed, info=_LABEL, associated_data=bound)
    return decline.site, reason.decode(errors="replace")
