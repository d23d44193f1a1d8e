"""Which keystreams are added to a vector, and which the hub takes off again.

In Z_2^bits, for site i, attempt r, survivors S and dropped sites D:

    y_i   = x_i + PRG(b_i) + sum over j of sign(i, j) PRG(s_ij)  [+ PRG(v_i) under hub_view none] s_ij  =
    HKDF(X25519(k_i, K_j), plan | roster | set-up digest | attempt | model tag | {i, j});  sign(i, j) = +1
    iff i < j total = sum over S of y_i - sum over S of PRG(b_i) - sum over i in S, j in D of sign(i, j)
    PRG(s_ij)

The masks of two survivors with the same model tag cancel in the sum. Seeds b_i are known to the hub for
survivors only, keys k_j for dropped sites only. Neither list of keys is ever kept: it is made, used by
`apply_masks`, and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloister.crypto import AgreementKey
from cloister.secagg import derivation
from cloister.secagg.setup import Setup

__all__ = ["MaskKeys", "unmasking_keys", "upload_keys", "view_keys"]

MaskKeys = list[tuple[bytes, int]]
"""PRG keys with the sign under which their stream is added."""


def _sign(own: int, other: int) -> int:
    return 1 if own < other else -1


def _pair(setup: Setup, attempt: int, tag: bytes, key: AgreementKey, own: int, other: int) -> bytes:
    context = setup.context
    shared = key.exchange(setup.announced.attempt_key(other, attempt))
    return derivation.pair_key(
        shared, context.plan_digest, context.roster.digest, setup.digest, attempt, tag, own, other
    )


def upload_keys(setup: Setup, attempt: int, tag: bytes, me: int, key: AgreementKey, seed: bytes) -> MaskKeys:
    """Return the keys of a site's self mask and of its mask with every other site."""
    keys = [(derivation.self_key(seed, setup.digest, me, attempt), 1)]
    others = [other for other in range(len(setup.context.roster)) if other != me]
    keys += [(_pair(setup, attempt, tag, key, me, other), _sign(me, other)) for other in others]
    return keys


def view_keys(
    setup: Setup, attempt: int, tag: bytes, epoch_key: bytes, sites: Iterable[int], sign: int
) -> MaskKeys:
    """Return the keys of the streams that hide the sites' vectors from the hub even in the sum."""
    context = setup.context
    bound = (context.plan_digest, context.roster.digest, context.epoch, attempt)
    return [(derivation.view_key(epoch_key, *bound, site, tag), sign) for site in sites]


def unmasking_keys(
    setup: Setup, attempt: int, tag: bytes, seeds: Mapping[int, bytes], dropped: Mapping[int, AgreementKey]
) -> MaskKeys:
    """Return the keys, with reversed signs, that leave the plain sum of the survivors.

    Args:
        setup: the epoch's set-up.
        attempt: its number.
        tag: the model tag of all uploads.
        seeds: the rebuilt seed of every survivor.
        dropped: the rebuilt secret key of everybody else.
    """
    keys = [(derivation.self_key(seed, setup.digest, site, attempt), -1) for site, seed in seeds.items()]
    for site, key in dropped.items():
        keys += [(_pair(setup, attempt, tag, key, site, s), -_sign(s, site)) for s in seeds]
    return keys
