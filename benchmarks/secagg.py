"""The secure sum's costs: masking against its physical limit, encoding, bytes, set-up, one whole round.

10 M parameters in the 32-bit ring, 11 neighbours: 12 keystreams with the self mask. One pinned core; medians.
Masking and the bare AES-256-GCM pass over as many bytes of keystream alternate: both see the same machine.

    python -m benchmarks.secagg [--quick]
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.common import arguments, emit, median_seconds, peer
from cloister.crypto import Identity, apply_masks
from cloister.secagg import Encoding, EpochContext, Params, Roster, SecureSumHub, SecureSumSite

PARAMETERS = 10_000_000
SITES = 12
ATTEMPTS = 50
_BLOCK = 128 << 10


def pin() -> int | None:
    """Keep to one core; return its number."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def alternate(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time the actions in turn, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if repeat:
                times[name].append(time.perf_counter() - begin)
    return times


def masking(repeats: int) -> dict[str, Any]:
    """apply_masks; AES-256-GCM over as much keystream with reused buffers; as many additions in the cache."""
    target = np.zeros(PARAMETERS, dtype=np.uint32)
    keys = [(os.urandom(32), 1 if i % 2 else -1) for i in range(SITES)]
    zeros, out = memoryview(bytes(_BLOCK)), memoryview(bytearray(_BLOCK + 16))
    ciphers = [AESGCM(key) for key, _ in keys]
    blocks = -(-target.nbytes // _BLOCK)
    block, words = np.zeros(_BLOCK // 4, dtype=np.uint32), np.ones(_BLOCK // 4, dtype=np.uint32)

    def gcm() -> None:
        for number in range(blocks):
            nonce = number.to_bytes(12, "big")
            for cipher in ciphers:
                cipher.encrypt_into(nonce, zeros, None, out)

    def additions() -> None:
        for _ in range(blocks * SITES):
            np.add(block, words, out=block)

    times = alternate({"mask": lambda: apply_masks(target, keys), "gcm": gcm, "add": additions}, repeats)
    ratio = statistics.median(m / g for m, g in zip(times["mask"], times["gcm"], strict=True))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "mask_over_gcm": round(ratio, 3),
        "mask_ms": milliseconds(medians["mask"]),
        "gcm_ms": milliseconds(medians["gcm"]),
        "gcm_gigabytes_per_second": round(target.nbytes * SITES / medians["gcm"] / 1e9, 2),
        "additions_ms": milliseconds(medians["add"]),
        "physical_limit_ms": milliseconds(medians["gcm"] + medians["add"]),
        "mask_over_physical_limit": round(medians["mask"] / (medians["gcm"] + medians["add"]), 3),
    }


def encoding(repeats: int) -> dict[str, Any]:
    """Encode and decode; `encode_ms` is float64 into the 32-bit ring."""
    vector = np.random.default_rng(0).normal(0.0, 0.01, PARAMETERS)
    single = vector.astype(np.float32)
    detail: dict[str, float] = {}
    for bits in (16, 32):
        code = Encoding(bits, SITES, 1.0)
        total = code.encode(vector)
        for name, action in (
            (f"encode_float64_{bits}", lambda code=code: code.encode(vector)),
            (f"encode_float32_{bits}", lambda code=code: code.encode(single)),
            (f"count_clamped_{bits}", lambda code=code: code.clamped(vector)),
            (f"decode_{bits}", lambda code=code, total=total: code.decode_sum(total, SITES)),
        ):
            detail[name] = milliseconds(median_seconds(action, repeats=repeats))
    return {"encode_ms": detail["encode_float64_32"], "encoding_ms": detail}


def context(identities: list[Identity], bits: int) -> EpochContext:
    roster = Roster(tuple(identity.public for identity in identities))
    return EpochContext(bytes(32), roster, 0, ATTEMPTS, Params.derive(len(identities)), bits, "sum")


def set_up(identities: list[Identity], bits: int) -> tuple[SecureSumHub, list[SecureSumSite], dict[str, Any]]:
    """One epoch of 50 attempts; bytes and milliseconds of one site, milliseconds of the hub."""
    ctx = context(identities, bits)
    names = ctx.roster.names
    site_seconds = hub_seconds = 0.0

    def timed(action: Callable[[], Any]) -> tuple[Any, float]:
        begin = time.perf_counter()
        value = action()
        return value, time.perf_counter() - begin

    sites, hub = [], SecureSumHub(ctx)
    announcements: list[bytes] = []
    for identity in identities:
        site, seconds = timed(lambda identity=identity: SecureSumSite(ctx, identity))
        sites.append(site)
        site_seconds += seconds
    for name, site in zip(names, sites, strict=True):
        message, seconds = timed(site.announce)
        site_seconds += seconds
        relayed, seconds = timed(lambda name=name, message=message: hub.on_announcement(name, message))
        hub_seconds += seconds
        announcements = relayed or announcements
    bundles: dict[str, bytes] = {}
    for name, site in zip(names, sites, strict=True):
        deal, seconds = timed(lambda site=site: site.deal(announcements))
        site_seconds += seconds
        relayed, seconds = timed(lambda name=name, deal=deal: hub.on_deal(name, deal))
        hub_seconds += seconds
        bundles = relayed or bundles
    for name, site in zip(names, sites, strict=True):
        _, seconds = timed(lambda name=name, site=site: site.finish_setup(bundles[name]))
        site_seconds += seconds
    return (
        hub,
        sites,
        {
            "sites": len(names),
            "attempts": ATTEMPTS,
            "site_ms": milliseconds(site_seconds / len(names)),
            "hub_ms": milliseconds(hub_seconds),
            "bytes_up_per_site": len(announcements[0]) + len(deal),
            "bytes_down_per_site": sum(map(len, announcements)) + len(bundles[names[0]]),
        },
    )


def whole_round(
    hub: SecureSumHub, sites: list[SecureSumSite], bits: int, attempt: int, drop: bool
) -> dict[str, Any]:
    """One round in one process, the last site missing if `drop`: time of a site and of the hub, and bytes."""
    vector = np.arange(PARAMETERS, dtype=np.uint32 if bits == 32 else np.uint16)
    names = list(hub._context.roster.names)
    model = b"digest of the model that was broadcast"
    present = sites[:-1] if drop else sites
    begin = time.perf_counter()
    hub.begin(attempt)
    site_seconds, size = [], 0
    for name, site in zip(names, present, strict=False):
        start = time.perf_counter()
        message = site.upload(attempt, vector, model)
        site_seconds.append(time.perf_counter() - start)
        size = len(message)
        hub.on_upload(name, message)
    requests: dict[str, bytes] | None = hub.close()
    while requests and hub.result() is None:
        further = None
        for name, site in zip(names, present, strict=False):
            if hub.result() is None:
                further = hub.on_answer(name, site.answer(requests[name])) or further
        requests = further
    total = time.perf_counter() - begin
    result = hub.result()
    assert result is not None
    expected = (vector * np.asarray(len(present), dtype=vector.dtype)).astype(vector.dtype)
    assert np.array_equal(result.total, expected), "the sum is not exact"
    return {
        "bytes_per_param": round(size / PARAMETERS, 4),
        "upload_ms": milliseconds(statistics.median(site_seconds)),
        "hub_ms": milliseconds(total - sum(site_seconds)),
    }


def main() -> None:
    quick = arguments("costs of the secure sum").parse_args().quick
    core = pin()
    repeats = 5 if quick else 15
    result: dict[str, Any] = masking(repeats) | encoding(3 if quick else 9)
    identities = [Identity.generate(f"site-{number}") for number in range(SITES)]
    rounds: dict[str, Any] = {}
    for bits in (16, 32):
        hub, sites, figures = set_up(identities, bits)
        rounds[str(bits)] = whole_round(hub, sites, bits, 0, drop=False)
        rounds[f"{bits}, one dropped"] = whole_round(hub, sites, bits, 1, drop=True)
    result |= {
        "bytes_per_param": {str(bits): rounds[str(bits)]["bytes_per_param"] for bits in (16, 32)},
        "setup": figures,
        "rounds": rounds,
        "parameters": PARAMETERS,
        "streams": SITES,
        "pinned_core": core,
    }
    flower, reason = peer("flower", "flower_secagg.py", PARAMETERS, SITES, 1 if quick else 3)
    result |= {
        "flower": flower,
        "flower_over_ours": None if flower is None else round(flower["mask_ms"] / result["mask_ms"], 1),
        "reasons": {"flower": reason},
    }
    emit("secagg", result)


if __name__ == "__main__":
    main()
