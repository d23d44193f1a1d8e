"""Small mechanisms to attack, with claims of known epsilon; and mechanisms that are not what is claimed of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning import LogisticHead, Model, SoftmaxHead, SquaredHead
from cloister.learning.attacks import Claim, DistributedMechanism, LocalMechanism, Mechanism, Rows
from cloister.learning.attacks.mechanism import Run
from cloister.learning.heads import Array
from cloister.learning.private import NumpyPrivate
from cloister.learning.sections import TrainingSection
from cloister.privacy.accounting import Event, IntegerGaussian, Poisson
from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid
from cloister.types import RandomBytes

FEATURES = 6
DELTA = 1e-5
MODELS = {
    "logistic": Model((FEATURES, 1), LogisticHead()),
    "linear": Model((FEATURES, 1), SquaredHead()),
    "softmax": Model((FEATURES, 4), SoftmaxHead(4)),
    "mlp": Model((FEATURES, 8, 1), LogisticHead()),
}


def classes(model: Model) -> int:
    return model.head.classes if isinstance(model.head, SoftmaxHead) else 0


def claim_for(
    model: Model, *, noise: float, rate: float, steps: int, shares: int = 3, **changes: Any
) -> Claim:
    """A claim whose noise multiplier is `noise`: each share has its part of (noise * sensitivity)^2."""
    batch = changes.pop("batch", 40)
    private = NumpyPrivate(model)
    grid = IntegerGrid.fit(changes.pop("bits", 32), batch=batch, noise=1.1 * noise)
    sensitivity = grid.sensitivity(model.size, private.float_bound(64))
    fields = {
        "learning_rate": 0.1,
        **{
            key: changes.pop(key)
            for key in ("learning_rate", "algorithm", "l2", "server_learning_rate")
            if key in changes
        },
    }
    training = TrainingSection(rounds=changes.get("rounds", steps), batch=batch, local_steps=1, **fields)
    return Claim(
        **{
            "training": training,
            "divisor": float(batch),
            "rate": rate,
            "clip": 1.0,
            "grid": grid,
            "microbatch": 64,
            "share_variance": ((noise * sensitivity) ** 2 + 4.0) / shares,
            "shares": shares,
            "steps": steps,
            "rounds": steps,
            "sensitivity": sensitivity,
            **changes,
        }
    )


def events_for(claim: Claim, coordinates: int) -> tuple[Event, ...]:
    distance = DiscreteGaussian(claim.share_variance).distance
    mechanism = IntegerGaussian(
        variance=claim.variance,
        sensitivity=claim.sensitivity,
        coordinates=coordinates,
        shares=claim.shares,
        distance=distance,
    )
    return (
        Event(mechanism=mechanism, sampler=Poisson(rate=claim.rate), relation="zero-out", count=claim.steps),
    )


def fixed_bytes(seed: int) -> RandomBytes:
    """Random bytes that are the same in every run of a test."""
    random = StreamRandom.from_seed(seed, "mechanism under attack")

    def take(count: int) -> bytes:
        return random.words(-(-count // 8)).tobytes()[:count]

    return take


def mechanism_for(model: Model, claim: Claim, seed: int = 0) -> Mechanism:
    private, random = NumpyPrivate(model), fixed_bytes(seed)
    if claim.local:
        return LocalMechanism(private, claim, insecure_test_random=random)
    return DistributedMechanism(private, claim, model, insecure_test_random=random)


def random_rows(seed: int, sites: int, rows: int, model: Model = MODELS["logistic"]) -> list[Rows]:
    random = StreamRandom.from_seed(seed, "rows to attack")
    count = classes(model) or 2
    return [
        (random.uniform((rows, FEATURES)) * 2 - 1, random.integers(count, rows).astype(np.float64))
        for _ in range(sites)
    ]


class Mislabelled:
    """A mechanism that claims one thing and runs another."""

    def __init__(self, claimed: Mechanism, real: Mechanism) -> None:
        self._claimed, self._real = claimed, real

    @property
    def claim(self) -> Claim:
        return self._claimed.claim

    @property
    def size(self) -> int:
        return self._claimed.size

    @property
    def penalised(self) -> np.ndarray:
        return self._claimed.penalised

    def signals(self, params: Array, rows: Rows, clip: float) -> Array:
        return self._claimed.signals(params, rows, clip)

    def begin(self, start: Array, parts: Sequence[Rows]) -> Run:
        return self._real.begin(start, parts)
