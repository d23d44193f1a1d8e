"""What every key, mask and signature of an epoch is bound to: the plan, the roster, and the epoch's numbers.

A roster is ordered; the position of a site in it is its index in messages and its evaluation point minus
one in Shamir's scheme. Two contexts that differ in anything have different digests, so nothing made under
one is accepted under the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cloister.crypto import PublicIdentity
from cloister.errors import InputError, PlanError, ProtocolError
from cloister.secagg.derivation import DIGEST_BYTES, bind
from cloister.secagg.encoding import ring_dtype
from cloister.secagg.parameters import Params
from cloister.types import check_name

__all__ = ["MAX_ATTEMPTS", "EpochContext", "Roster"]

MAX_ATTEMPTS = 65535


@dataclass(frozen=True)
class Roster:
    """The sites of an epoch in their fixed order.

    Args:
        members: their public identities, each already trusted by whoever builds the roster.

    Raises:
        InputError: a name, signing key or identity stands twice, or a name is not allowed.
    """

    members: tuple[PublicIdentity, ...]

    def __post_init__(self) -> None:
        for what, values in (
            ("name", [check_name(member.name) for member in self.members]),
            ("signing key", [member.signing for member in self.members]),
            ("identity", [member.fingerprint for member in self.members]),
        ):
            if len(set(values)) != len(values):
                raise InputError(f"two members of the roster share a {what}", fix="List every site once")

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The members' names in roster order."""
        return tuple(member.name for member in self.members)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for exactly these identities in this order."""
        return bind("roster", *(member.fingerprint for member in self.members))

    def index(self, name: str) -> int:
        """Return the position of `name`. Raises ProtocolError for a stranger."""
        position = self._positions.get(name)
        if position is None:
            raise ProtocolError("this party is not on the roster", peer=name[:70])
        return position

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: position for position, name in enumerate(self.names)}


@dataclass(frozen=True)
class EpochContext:
    """One epoch of a study: set up once, good for `attempts` sums.

    Args:
        plan_digest: 32 bytes, the hash of the signed plan.
        roster: who takes part.
        epoch: its number within the study, never used twice.
        attempts: R, how many sums the set-up is made for; they are numbered 0 to R - 1.
        params: n, c, t, m.
        bits: ring width, 8, 16 or 32.
        hub_view: "sum", or "none" where the hub must not read the sum either.

    Raises:
        PlanError, InputError: they do not fit together.
    """

    plan_digest: bytes
    roster: Roster
    epoch: int
    attempts: int
    params: Params
    bits: int
    hub_view: Literal["sum", "none"]

    def __post_init__(self) -> None:
        ring_dtype(self.bits)
        if len(self.plan_digest) != DIGEST_BYTES:
            raise InputError("a plan digest has 32 bytes")
        if self.params.parties != len(self.roster):
            raise PlanError(
                f"{len(self.roster)} sites are on the roster, {self.params.parties} in the parameters"
            )
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise PlanError(f"an epoch of {self.attempts} attempts", fix=f"Take 1 to {MAX_ATTEMPTS}")
        if not 0 <= self.epoch < 2**63:
            raise InputError(f"epoch number {self.epoch}")
        if self.hub_view not in ("sum", "none"):
            raise PlanError(f"hub_view = {self.hub_view!r}", fix='Write "sum" or "none"')

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all of this."""
        p = self.params
        numbers = (self.epoch, self.attempts, p.parties, p.colluders, p.threshold, p.minimum, self.bits)
        return bind("context", self.plan_digest, self.roster.digest, *numbers, self.hub_view)

    def check_attempt(self, attempt: int) -> None:
        """Raise ProtocolError unless `attempt` is one of this epoch's."""
        if not 0 <= attempt < self.attempts:
            raise ProtocolError(f"attempt {attempt} is not one of the epoch's {self.attempts}")

    def check_survivors(self, survivors: Sequence[str]) -> tuple[int, ...]:
        """Return the roster indices of a survivor list.

        Raises:
            ProtocolError: it is shorter than m, names a stranger, or is not in roster order without
                repetition.
        """
        if len(survivors) > len(self.roster):
            raise ProtocolError("a survivor list is longer than the roster")
        positions = tuple(self.roster.index(name) for name in survivors)
        if any(a >= b for a, b in itertools.pairwise(positions)):
            raise ProtocolError("a survivor list repeats a site or is not in roster order")
        if len(positions) < self.params.minimum:
            raise ProtocolError(
                f"a survivor list of {len(positions)} is shorter than the minimum of {self.params.minimum}",
                fix="Refused: a sum over fewer sites would say too much about each",
            )
        return positions
