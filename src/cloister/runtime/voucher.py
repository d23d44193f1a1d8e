"""Vouchers: members' signed digests of the model they hold, for a site that comes later.

A newcomer takes the model from the hub, or sealed from one member where the hub may not see it; it believes
it on the word of c + 1 members, one of whom at least is honest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cloister.crypto import (
    Buffer,
    Identity,
    PublicIdentity,
    canonical_bytes,
    keyring,
    open_envelope,
    sha256,
    sign_envelope,
)
from cloister.errors import CloisterError, ProtocolError
from cloister.runtime.bodies import Body, body_of, parts_of

__all__ = ["check_vouchers", "vouch"]

_TYPE = "application/vnd.cloister.model-voucher+json"


class _Voucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plan: str
    epoch: int
    rounds: int
    state: str


def _statement(plan: bytes, epoch: int, rounds: int, state: Buffer | Body) -> bytes:
    digest = sha256(*parts_of(body_of(state)))
    return canonical_bytes(_Voucher(plan.hex(), epoch, rounds, digest.hex()))


def vouch(identity: Identity, plan: bytes, epoch: int, rounds: int, state: Buffer | Body) -> bytes:
    """Return the signed statement that `state` is the model after `rounds` rounds of the plan."""
    return sign_envelope(_TYPE, _statement(plan, epoch, rounds, state), [identity])


def check_vouchers(
    vouchers: Sequence[bytes],
    members: Mapping[str, PublicIdentity],
    *,
    needed: int,
    plan: bytes,
    epoch: int,
    rounds: int,
    state: Buffer,
) -> None:
    """Require that `needed` different members vouch for exactly this state.

    Raises:
        ProtocolError: fewer do.
    """
    if len(vouchers) > len(members):
        raise ProtocolError("carried more vouchers than there are members", fix="Refused")
    due = _statement(plan, epoch, rounds, state)
    signers = set()
    for envelope in vouchers:
        for name, member in members.items():
            try:
                if open_envelope(envelope, _TYPE, keyring([member])) == due:
                    signers.add(name)
            except CloisterError:
                continue
    if len(signers) < needed:
        raise ProtocolError(
            f"{len(signers)} members vouch for the model, {needed} must", fix="Wait for the next epoch"
        )
