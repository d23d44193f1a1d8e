"""Flower's SecAgg+ masking of one client, with Flower's own functions; run by the peer's interpreter.

    .peers/flower/bin/python benchmarks/peers/flower_secagg.py PARAMETERS STREAMS REPEATS

One private mask and STREAMS - 1 pairwise ones over a vector of PARAMETERS, as its client mod does in stage 2.
Prints one JSON object.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import sys
import time

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

MOD_RANGE = 1 << 32  # the default of its workflow


def mask(vector: list[np.ndarray], seeds: list[bytes]) -> list[np.ndarray]:
    shapes = [array.shape for array in vector]
    vector = parameters_addition(vector, pseudo_rand_gen(seeds[0], MOD_RANGE, shapes))
    for number, seed in enumerate(seeds[1:]):
        change = parameters_addition if number % 2 else parameters_subtraction
        vector = change(vector, pseudo_rand_gen(seed, MOD_RANGE, shapes))
    return parameters_mod(vector, MOD_RANGE)


def main() -> None:
    parameters, streams, repeats = (int(text) for text in sys.argv[1:])
    vector = [np.zeros(parameters, dtype=np.int64)]
    seeds = [os.urandom(32) for _ in range(streams)]
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        masked = mask(vector, seeds)
        times.append(time.perf_counter() - begin)
    print(
        json.dumps(
            {
                "version": importlib.metadata.version("flwr"),
                "mask_ms": round(statistics.median(times) * 1e3, 2),
                "bytes_per_param": masked[0].nbytes / parameters,
            }
        )
    )


if __name__ == "__main__":
    main()
