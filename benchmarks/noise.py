"""Discrete Gaussian noise shares: seconds for 10 M on one core, drawn and added into a ring's vector.

    python -m benchmarks.noise [--quick]

`seconds_per_10m` is the figure at a deviation of 2**20 units, a share on a 32-bit grid whose clip is worth
some millions of units; `by_deviation` has others, up to the widest that is offered. Every call draws a fresh
key from the operating system. The small vector is the 14 integers of a logistic regression, its tables made
before.

The peer is OpenDP's exact sampler (make_gaussian over a vector of i64), in the same process on the same core.
It draws fewer samples; `seconds_per_10m` there is its time for one times 10 M. Its lists are converted
between Python and Rust: the time for a deviation of 0, which is that conversion alone, is taken off in
`without_lists`.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

import numpy as np

from benchmarks.common import arguments, emit, median_seconds
from benchmarks.secagg import pin
from cloister.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace
from cloister.privacy.mechanisms.gaussian import _levels

SHARES = 10_000_000
MAIN = 2.0**20
DEVIATIONS = {"3": 3.0, "100": 100.0, "1000": 1000.0, "2**14": 2.0**14, "2**20": MAIN, "2**28": 2.0**28}
RINGS = {"int64": np.int64, "uint32": np.uint32, "uint16": np.uint16}


def building(deviation: float) -> float:
    """Milliseconds that the tables of a new variance take."""
    _levels.cache_clear()
    begin = time.perf_counter()
    DiscreteGaussian(deviation**2)
    return round((time.perf_counter() - begin) * 1e3, 2)


def opendp(deviation: float, repeats: int, count: int) -> tuple[dict[str, Any] | None, str | None]:
    """Microseconds of OpenDP's sampler for one integer, with and without the conversion of its lists."""
    try:
        import opendp.prelude as dp
    except ImportError:
        return None, "OpenDP is not installed; pip install 'cloister[stats]'"
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    zeros = [0] * count
    seconds = {}
    for scale in (deviation, 0.0):
        measurement = dp.m.make_gaussian(*space, scale=scale)
        seconds[scale] = median_seconds(lambda m=measurement: m(zeros), repeats=repeats) / count
    return {
        "version": importlib.metadata.version("opendp"),
        "deviation": deviation,
        "samples_measured": count,
        "microseconds": round(seconds[deviation] * 1e6, 3),
        "microseconds_of_lists": round(seconds[0.0] * 1e6, 3),
        "seconds_per_10m": round(seconds[deviation] * SHARES, 2),
        "seconds_per_10m_without_lists": round((seconds[deviation] - seconds[0.0]) * SHARES, 2),
    }, None


def main() -> None:
    quick = arguments("discrete Gaussian noise shares").parse_args().quick
    core = pin()
    repeats = 3 if quick else 9
    target = np.zeros(SHARES, np.uint32)
    figures: dict[str, Any] = {}
    for name, deviation in DEVIATIONS.items():
        tables = building(deviation)
        noise = DiscreteGaussian(deviation**2)
        seconds = median_seconds(lambda noise=noise: noise.add_into(target), repeats=repeats)
        small = median_seconds(lambda noise=noise: noise.sample(14), repeats=200 * repeats, warmup=50)
        figures[name] = {
            "seconds_per_10m": round(seconds, 4),
            "microseconds_for_14": round(small * 1e6, 1),
            "milliseconds_to_build": tables,
            "distance": noise.distance,
        }
    main_noise = DiscreteGaussian(MAIN**2)
    rings: dict[str, float] = {}
    for name, dtype in RINGS.items():
        vector = np.zeros(SHARES, dtype)
        seconds = median_seconds(lambda vector=vector: main_noise.add_into(vector), repeats=repeats)
        rings[name] = round(seconds, 4)
    laplace = DiscreteLaplace(1e5)
    seconds = median_seconds(lambda: laplace.add_into(target), repeats=repeats)
    theirs, reason = opendp(MAIN, repeats, 20_000 if quick else 100_000)
    ours = figures["2**20"]["seconds_per_10m"]
    without = None if theirs is None else theirs["seconds_per_10m_without_lists"]
    emit(
        "noise",
        {
            "seconds_per_10m": ours,
            "by_deviation": figures,
            "seconds_per_10m_by_ring": rings,
            "laplace_seconds_per_10m": round(seconds, 4),
            "opendp": theirs,
            "opendp_without_lists_over_ours": None if without is None else round(without / ours, 1),
            "reasons": {"opendp": reason},
            "shares": SHARES,
            "pinned_core": core,
        },
    )


if __name__ == "__main__":
    main()
