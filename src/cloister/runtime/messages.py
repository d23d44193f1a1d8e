"""What hub and sites say to each other, before it is signed and encrypted by a `Link`.

One tagged msgpack struct a message; unknown tags, unknown fields, wrong types and trailing bytes are refused.
In the order of a study:

    both ways     Challenge       show evidence for this nonce; only where the plan asks for any
    both ways     Attested        evidence of the hub's aggregator; then of the site's worker
    site -> hub   Join            who I am, my signed manifest, my row count; after a break, where I was
    hub  -> site  RosterOffer     these members, in this order, for this epoch
    site -> hub   Countersign     I agree to this plan with this roster
    hub  -> site  RosterClosed    everybody's countersignature
    site -> hub   Announce        secure sum, set-up message 1
    hub  -> site  Announcements
    site -> hub   Deal            secure sum, set-up message 2
    hub  -> site  Bundle
    site -> hub   Ready           set-up digest; from the first member also the sealed study keys
    hub  -> site  StudyKeys
    hub  -> site  StateRequest    hand the model on to these, sealed; only where the hub may not see it
    site -> hub   SealedState
    hub  -> site  State           the model as it is, for who comes later, with the vouchers of others
    hub  -> site  CatchUp         the outcome of a round that was missed
    hub  -> site  RoundStart      round, attempt, and the outcome of the round before
    site -> hub   Upload          masked vector
    hub  -> site  Request         full list, proposal or certified list
    site -> hub   Answer          signature or shares
    hub  -> site  Finish          the last outcome
    site -> hub   Done            the tag of the model it ended with
    hub  -> site  Concluded       what everybody did, for the site's own record
    site -> hub   Farewell        what the study left is kept here; nobody need wait for me
    site -> hub   Leave           I take no part, or no further part, with the reason
    hub  -> site  Stop            the study ends early, with the reason
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloister.enclave.evidence import MAX_EVIDENCE
from cloister.errors import ProtocolError
from cloister.runtime.bodies import Joined, encode_around

__all__ = [
    "MAX_REASON",
    "Announce",
    "Announcements",
    "Answer",
    "Bundle",
    "CatchUp",
    "Concluded",
    "Countersign",
    "Deal",
    "Done",
    "Farewell",
    "Finish",
    "Join",
    "Leave",
    "Message",
    "Outcome",
    "Position",
    "Ready",
    "Request",
    "RosterClosed",
    "RosterOffer",
    "RoundStart",
    "SealedState",
    "State",
    "StateRequest",
    "Stop",
    "StudyKeys",
    "Upload",
    "decode_message",
    "encode_large",
    "encode_message",
]

MAX_MEMBERS = 10_000
MAX_REASON = 500
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Names = Annotated[list[Name], msgspec.Meta(max_length=MAX_MEMBERS)]
Bodies = Annotated[list[bytes], msgspec.Meta(max_length=MAX_MEMBERS)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all messages."""


class Challenge(_Message, tag="challenge", frozen=True):
    """Show evidence for this nonce, fresh and used once, and for the session that it comes in."""

    nonce: Digest


class Attested(_Message, tag="attested", frozen=True):
    """Evidence.

    Attributes:
        key: SHA-256 of the exported public identity that it vouches for.
        evidence: the document (JSON).
        appraisal: from a site, its signed appraisal of the hub's evidence (DSSE).
    """

    key: Digest
    evidence: Annotated[bytes, msgspec.Meta(max_length=MAX_EVIDENCE)]
    appraisal: Annotated[bytes, msgspec.Meta(max_length=1 << 16)] | None = None


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a site is in a study whose epoch it still holds the secrets of.

    Attributes:
        epoch: the epoch's number.
        setup_digest: of its secure sum's set-up.
        rounds: rounds whose outcome it has applied.
        attempt: the last attempt it entered, -1 before the first.
    """

    epoch: Index
    setup_digest: Digest
    rounds: Index
    attempt: Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]


class Join(_Message, tag="join", frozen=True):
    """A site offers to take part, or to go on: exported identity (JSON), signed manifest (DSSE), rows it
    trains on, and where it was, if it still has the epoch's secrets."""

    identity: bytes
    manifest: bytes
    rows: Annotated[int, msgspec.Meta(ge=1, lt=2**48)]
    position: Position | None = None


class RosterOffer(_Message, tag="roster-offer", frozen=True):
    """The hub's proposal for an epoch: identities (JSON), manifest digests and row counts in one order."""

    epoch: Index
    members: Bodies
    manifests: Annotated[list[Digest], msgspec.Meta(max_length=MAX_MEMBERS)]
    rows: Annotated[list[int], msgspec.Meta(max_length=MAX_MEMBERS)]


class Countersign(_Message, tag="countersign", frozen=True):
    """A site's signed agreement to plan and roster (DSSE)."""

    envelope: bytes


class RosterClosed(_Message, tag="roster-closed", frozen=True):
    """All countersignatures, in roster order."""

    countersignatures: Bodies


class Announce(_Message, tag="announce", frozen=True):
    """Secure sum, set-up message 1 of one site."""

    body: bytes


class Announcements(_Message, tag="announcements", frozen=True):
    """Secure sum, set-up message 1 of all sites, in roster order."""

    bodies: Bodies


class Deal(_Message, tag="deal", frozen=True):
    """Secure sum, set-up message 2 of one site."""

    body: bytes


class Bundle(_Message, tag="bundle", frozen=True):
    """Secure sum, set-up message 2 of all sites as far as it concerns the receiver."""

    body: bytes


class Ready(_Message, tag="ready", frozen=True):
    """A site holds the epoch's secrets.

    Attributes:
        setup_digest: of the secure sum's set-up.
        rounds: rounds whose outcome it has applied.
        study_keys: from the first member, the study key sealed to each who may read checkpoints.
        voucher: signed digest of the model it holds; absent before the first round.
    """

    setup_digest: Digest
    rounds: Index = 0
    study_keys: bytes | None = None
    voucher: bytes | None = None


class StudyKeys(_Message, tag="study-keys", frozen=True):
    """The first member's signed envelope of sealed study keys."""

    envelope: bytes


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of one round: who is in the sum, and the sum itself (ring integers, little-endian)."""

    round: Index
    attempt: Index
    survivors: Names
    total: memoryview


class StateRequest(_Message, tag="state-request", frozen=True):
    """Seal the model to these members, by name: they come later and have none."""

    receivers: Names


class SealedState(_Message, tag="sealed-state", frozen=True):
    """The model and the server's state, sealed to one member."""

    receiver: Name
    sealed: memoryview


class State(_Message, tag="state", frozen=True):
    """The model and the server's state after `rounds` rounds, with vouchers of c + 1 members for its digest.
    `sealed` says that a member sealed it to the receiver, and the hub could not read it."""

    rounds: Index
    state: memoryview
    sealed: bool
    vouchers: Bodies


class CatchUp(_Message, tag="catch-up", frozen=True):
    """The outcome of a round, for a site that was away when it ended."""

    outcome: Outcome


class RoundStart(_Message, tag="round-start", frozen=True):
    """Begin a round. `outcome` is that of the round before, absent for the first and after a burnt
    attempt."""

    round: Index
    attempt: Index
    outcome: Outcome | None = None


class Upload(_Message, tag="upload", frozen=True):
    """A masked vector. `evaluation` is present only where the plan declares the rows public."""

    attempt: Index
    body: memoryview
    evaluation: Annotated[list[float], msgspec.Meta(max_length=64)] | None = None


class Request(_Message, tag="request", frozen=True):
    """Secure sum, step 3, hub to site."""

    attempt: Index
    body: bytes


class Answer(_Message, tag="answer", frozen=True):
    """Secure sum, step 3, site to hub."""

    attempt: Index
    body: bytes


class Finish(_Message, tag="finish", frozen=True):
    """The outcome of the last round."""

    outcome: Outcome


class Done(_Message, tag="done", frozen=True):
    """The site has its final model; `tag` is what the hub compares, never the model. `debit` is what its
    ledger says of the study, signed, where the plan claims privacy."""

    tag: Digest
    evaluation: Annotated[list[float], msgspec.Meta(max_length=64)] | None = None
    debit: bytes | None = None


class Concluded(_Message, tag="concluded", frozen=True):
    """The study ended as planned: its public record (JSON), and the envelope of the study keys."""

    record: bytes
    study_keys: bytes


class Farewell(_Message, tag="farewell", frozen=True):
    """What the study left is kept at the site, which needs nothing any more."""


class Leave(_Message, tag="leave", frozen=True):
    """The site takes no part, or no further part."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


class Stop(_Message, tag="stop", frozen=True):
    """The study ends before its last round."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]


Message = (
    Challenge
    | Attested
    | Join
    | RosterOffer
    | Countersign
    | RosterClosed
    | Announce
    | Announcements
    | Deal
    | Bundle
    | Ready
    | StudyKeys
    | StateRequest
    | SealedState
    | State
    | CatchUp
    | RoundStart
    | Upload
    | Request
    | Answer
    | Finish
    | Done
    | Concluded
    | Farewell
    | Leave
    | Stop
)

_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: Message) -> bytes:
    """Return the msgpack bytes of a message without large fields."""
    return _encoder.encode(message)


def encode_large(message: Message) -> bytes | Joined:
    """Return the msgpack bytes of a message; large fields (`bodies.as_field`) stay where they are."""
    return encode_around(message)


def decode_message(data: bytes | bytearray | memoryview, *, peer: str) -> Message:
    """Parse a message strictly. Large fields are views of `data`, which must stay unchanged.

    Raises:
        ProtocolError: not exactly one message of a known kind.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            "sent a message that cannot be parsed", peer=peer, fix="Check that both run the same version"
        ) from error
