"""What a language model has kept of a plant: exposure, a bound of its coins, what it says; and a verdict.

`remembered`, in this order:

1. exposure of each secret that is in for certain, among others that were drawn, or among all where few;
2. the chance of such ranks if the model knew nothing (`chance_p_value`);
3. the bound on epsilon that the coins give, where there are coins;
4. a model of next tokens is asked for every secret, greedily and by sampling, and its texts are searched.

The verdict is "memorised" if steps 2 or 4 refute, each at half of 1 - confidence, that the model knows none
of the secrets; otherwise "at chance". That a model knows no secret that was planted does not say that it
knows none of its rows: rows may be easier to remember.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol, TypeAlias

import msgspec
import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning.attacks.bounds import Bound
from cloister.learning.attacks.languagebound import coin_bounds
from cloister.learning.attacks.languageexposure import Exposure, chance_p_value, exposure_of
from cloister.learning.attacks.languagescan import Scan, scan
from cloister.learning.attacks.languagesecrets import Canary, Plant, Secret
from cloister.learning.heads import Array
from cloister.privacy.accounting import Event

__all__ = ["AT_CHANCE", "MEMORISED", "Listener", "Remembered", "Run", "remembered"]

AT_CHANCE: Final = "at chance"
MEMORISED: Final = "memorised"

Run: TypeAlias = Literal["as planned", "without noise", "the model"]
"""What was attacked: the plan's training, the same steps without their noise, or a finished model."""

_OTHERS = 1000
_SAMPLES = 4


class Listener(Protocol):
    """A model with its parameters, as it is asked."""

    def losses(self, secrets: Sequence[Secret]) -> Array:
        """Return the loss of each secret's row, float64[n], in nats."""

    def base_losses(self, secrets: Sequence[Secret]) -> Array:
        """Return the same under the base, before any training."""

    def answers(self, secrets: Sequence[Secret], samples: int) -> list[list[str]] | None:
        """Return what is said when asked for each secret: greedily, and `samples` times by sampling. None
        where the model says nothing, as a classifier."""


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one model has kept.

    Attributes:
        run: of which model.
        verdict: of the module's docstring.
        reasons: what it rests on, one sentence part each; empty at chance.
        exposures: one for each secret that was planted for certain.
        p_value: chance of such ranks together at chance; None without secrets.
        bounds: on epsilon at `delta`, from the coins; empty without.
        delta: at which they hold.
        scan: of what it said; None of a classifier.
    """

    run: Run
    verdict: Literal["at chance", "memorised"]
    reasons: tuple[str, ...]
    exposures: tuple[Exposure, ...]
    p_value: float | None
    bounds: tuple[Bound, ...]
    delta: float
    scan: Scan | None

    def mean(self, copies: int) -> float:
        """Return the mean exposure of secrets planted so often, in bits; NaN where there is none."""
        found = [each.bits for each in self.exposures if each.copies == copies]
        return math.fsum(found) / len(found) if found else math.nan


def remembered(
    run: Run,
    model: Listener,
    plant: Plant,
    *,
    delta: float,
    confidence: float,
    events: Sequence[Event] = (),
    others: int = _OTHERS,
    samples: int = _SAMPLES,
    progress: Callable[[int, int], None] | None = None,
    insecure_test_random: StreamRandom | None = None,
) -> Remembered:
    """Ask a model for what was planted among its rows.

    Args:
        run: which model it is.
        model: to ask.
        plant: what was planted.
        delta: at which the coins' bound is stated.
        confidence: of the verdict and of each bound.
        events: of the claim that its training makes, for a sharper bound; empty without.
        others: secrets that each is ranked among, at most.
        samples: texts by sampling for each secret, beside the greedy one.
        progress: told after each secret.
        insecure_test_random: the others of a test.

    Raises:
        InputError: a loss is not finite.
    """
    random = insecure_test_random or StreamRandom.system()
    tell = progress or (lambda done, total: None)
    secrets, steps = plant.secrets, len(plant.secrets) + 2
    exposures = []
    for number, canary in enumerate(secrets):
        exposures.append(_exposure(model, canary, others, random, confidence))
        tell(number + 1, steps)
    bounds = _bounds(model, plant.coins, delta, confidence, events)
    tell(steps - 1, steps)
    texts = model.answers([each.secret for each in secrets], samples) if secrets else None
    found = None if texts is None else scan(secrets, texts)
    tell(steps, steps)
    p_value = chance_p_value(exposures) if exposures else None
    reasons = _reasons(p_value, found, (1.0 - confidence) / 2.0)
    return Remembered(
        run,
        "memorised" if reasons else "at chance",
        reasons,
        tuple(exposures),
        p_value,
        bounds,
        delta,
        found,
    )


def _exposure(
    model: Listener, canary: Canary, most: int, random: StreamRandom, confidence: float
) -> Exposure:
    secret = canary.secret
    losses = model.losses([secret, *secret.others(most, random)])
    return exposure_of(
        secret.kind, canary.copies, secret.space, float(losses[0]), losses[1:], confidence=confidence
    )


def _bounds(
    model: Listener, coins: Sequence[Canary], delta: float, confidence: float, events: Sequence[Event]
) -> tuple[Bound, ...]:
    if len(coins) < 2:
        return ()
    asked = [each.secret for each in coins]
    scores = model.base_losses(asked) - model.losses(asked)
    included = np.array([each.copies > 0 for each in coins])
    return coin_bounds(scores, included, delta=delta, confidence=confidence, events=events)


def _reasons(p_value: float | None, found: Scan | None, level: float) -> tuple[str, ...]:
    reasons = []
    if p_value is not None and p_value < level:
        reasons.append(f"planted secrets rank higher than chance has them (p {p_value:.2g})")
    if found is not None and found.said and found.p_value < level:
        reasons.append(f"it says {found.said} of {found.asked} planted secrets when asked")
    return tuple(reasons)
