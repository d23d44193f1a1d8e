"""A released model as what is computed under encryption: constants, checked to fit.

`Network.of` refuses, with the reason and a way out, whatever has no circuit:

1. a module in the user's own Python file, and networks of two or more hidden layers;
2. a hidden layer with local scaling, whose inputs no schema bounds;
3. more features, outputs or hidden units than a file may carry;
4. a model whose scores may reach 2**14;
5. a hidden layer whose polynomials may change a logit by more than 0.5, or a value by more than 0.05
   of half the label's range.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.activation import approximation, approximation_error, reach
from cloister.inference.encrypted.parameters import SCORE_LIMIT, Circuit

__all__ = ["LOCAL_LIMIT", "MAX_FEATURES", "MAX_OUTPUTS", "Head", "Network"]

Array = NDArray[np.float64]
Head = Literal["value", "logistic", "softmax"]

MAX_FEATURES: Final = 4096
MAX_OUTPUTS: Final = 1024
MAX_HIDDEN: Final = 256
LOCAL_LIMIT: Final = 64.0
"""Under local scaling: so many deviations from its mean a value may lie."""

_ALLOWED_ERROR: Final = {"value": 0.05, "logistic": 0.5, "softmax": 0.5}
_WIDER: Final = 1.0 + 2.0**-10
_ELSEWHERE: Final = "score it in a walled worker: `cloister serve`, or `cloister predict` on sealed rows"


@dataclass(frozen=True)
class Network:
    """What is computed.

    Attributes:
        circuit: which parameters.
        head: what scores mean: a value in units of half the label's range, a logit, logits of all classes.
        weights: float64[f, k] from the inputs, which lie in [-1, 1], to scores; of a hidden layer to its
            units' inputs divided by their bounds.
        biases: float64[k] of the same.
        basis: of a hidden layer, float64[33, h, k]: what each Chebyshev polynomial of each unit adds to each
            score. Otherwise empty.
        offset: float64[k], added to scores.
        error: bound of what the polynomials change in a score; 0 without a hidden layer.
    """

    circuit: Circuit
    head: Head
    weights: Array = field(repr=False)
    biases: Array = field(repr=False)
    basis: Array = field(repr=False)
    offset: Array = field(repr=False)
    error: float

    @property
    def outputs(self) -> int:
        """Scores of a row, k."""
        return len(self.offset)

    @classmethod
    def of(cls, artifact: ModelArtifact) -> Network:
        """Return what a released model computes.

        Raises:
            InputError: it is not scored under encryption; says why, and what to do instead.
        """
        section, features = artifact.card.model, artifact.card.features
        if section.kind == "torch":  # 1
            raise _refused("a module in a Python file has no circuit", _ELSEWHERE)
        if len(section.hidden) > 1:
            raise _refused(
                f"it has {len(section.hidden)} hidden layers, and one is what the parameters carry",
                f"Train it with one hidden layer, or {_ELSEWHERE}",
            )
        if section.hidden and features.scaling == "local":  # 2
            raise _refused(
                "with local scaling nothing bounds what its hidden units see",
                f'Train it with scaling = "bounds", or {_ELSEWHERE}',
            )
        model = artifact.model
        sizes = (model.inputs, *section.hidden, model.head.outputs)
        if sizes[0] > MAX_FEATURES or sizes[-1] > MAX_OUTPUTS or sum(section.hidden) > MAX_HIDDEN:  # 3
            raise _refused(
                f"it is larger than {MAX_FEATURES} features, {MAX_HIDDEN} hidden units and "
                f"{MAX_OUTPUTS} outputs",
                f"Train a smaller one, or {_ELSEWHERE}",
            )
        head: Head = "value" if not features.classes else "logistic" if sizes[-1] == 1 else "softmax"
        layers = _layers(artifact.parameters, model.widths)
        if section.hidden:
            return _with_hidden(artifact, head, layers)
        limit = LOCAL_LIMIT if features.scaling == "local" else 1.0
        weights, biases = layers[0]
        _check_reach(np.abs(biases) + limit * np.abs(weights).sum(axis=0))
        nothing = np.zeros((0, 0, len(biases)))
        return cls("linear", head, weights * limit, np.zeros(len(biases)), nothing, biases, 0.0)


def _layers(parameters: Array, widths: tuple[int, ...]) -> list[tuple[Array, Array]]:
    found, at = [], 0
    for inputs, outputs in itertools.pairwise(widths):
        weights = parameters[at : at + inputs * outputs].reshape(inputs, outputs)
        at += (inputs + 1) * outputs
        found.append((weights, parameters[at - outputs : at]))
    return found


def _with_hidden(artifact: ModelArtifact, head: Head, layers: list[tuple[Array, Array]]) -> Network:
    (weights, biases), (last, offset) = layers
    activation = artifact.card.model.activation
    bounds = reach(artifact.card.features, weights, biases) * _WIDER
    _check_reach(bounds)
    bounds[bounds == 0.0] = 1.0
    coefficients = np.stack([approximation(activation, bound) for bound in bounds], axis=1)
    errors = np.array(
        [
            approximation_error(activation, bound, own)
            for bound, own in zip(bounds, coefficients.T, strict=True)
        ]
    )
    worst = errors @ np.abs(last)
    largest = 1.0 if activation == "tanh" else bounds
    _check_reach(np.abs(offset) + np.sum(np.abs(last) * np.reshape(largest, (-1, 1)), axis=0) + worst)  # 4
    error = _rounded_up(float(worst.max()))
    if error > _ALLOWED_ERROR[head]:  # 5
        raise _refused(
            f"polynomials in place of its hidden units may change a score by {error:g}",
            'Train it with activation = "tanh", fewer hidden units, or more l2, which keeps weights '
            f"small; or {_ELSEWHERE}",
        )
    basis = coefficients[:, :, None] * last
    return Network("hidden", head, weights / bounds, biases / bounds, basis, offset, error)


def _check_reach(bounds: Array) -> None:  # 4
    if not bounds.max(initial=0.0) < SCORE_LIMIT:
        raise _refused(
            f"its parameters are so large that a score may reach {SCORE_LIMIT:g}",
            f"Train it with l2, which keeps them small, or {_ELSEWHERE}",
        )


def _rounded_up(value: float) -> float:
    """Return the next number of two digits: a bound tells no more of the parameters than that."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")


def _refused(reason: str, fix: str) -> InputError:
    return InputError(f"this model is not scored under encryption: {reason}", fix=fix[0].upper() + fix[1:])
