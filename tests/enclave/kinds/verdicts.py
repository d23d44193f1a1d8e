"""When an altered piece of evidence counts as refused: an InputError, or a claim that says no."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from cloister.enclave.claims import Claims
from cloister.errors import InputError

CHECKED = (
    *("signature", "chain", "revocation_checked", "collateral_fresh", "tcb_consistent"),
    *("freshness", "bindings", "event_log", "measurement_match", "hardware_rooted"),
)


def said_no(claims: Claims) -> bool:
    return any(getattr(claims, name) is False for name in CHECKED)


def flipped(data: bytes, count: int, seed: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield (position, data with one random bit of it flipped) at random positions."""
    chance = random.Random(seed)  # noqa: S311 - what is chosen is no secret
    for _ in range(count):
        position = chance.randrange(len(data))
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        yield position, bytes(changed)


def refused_or_same(verify: Callable[[bytes], Claims], before: Claims, altered: bytes) -> bool | None:
    """True where altered evidence is refused, None where its claims are the same, False for any other."""
    try:
        after = verify(altered)
    except InputError:
        return True
    if said_no(after):
        return True
    return None if after == before else False
