"""The global model, computed alike by everybody who may see it.

Hub (where the plan says hub_view = "sum") and sites each start from the plan's pinned initial model and apply every round's sum
through the same server step, elementwise in float64, so they hold the same bits without anybody sending a model. A site whose hub
showed it another sum ends with another digest, and its next mask does not cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import sha256
from cloister.errors import ProtocolError
from cloister.learning import Plan, ServerState, build_algorithm
from cloister.secagg import Encoding

__all__ = ["GlobalModel", "aggregation_weights"]


def aggregation_weights(plan: Plan, rows: Mapping[str, int]) -> dict[str, float]:
    """Return each site's weight in (0, 1]: rows over the largest site's rows, or 1 where the plan weighs equally.

    Row counts are public; the ring's value range holds for weighted updates because no weight exceeds 1.
    """
    if plan.training.weights == "equal":
        return dict.fromkeys(rows, 1.0)
    largest = max(rows.values())
    return {name: count / largest for name, count in rows.items()}


class GlobalModel:
    """The global model and the optimiser state of the server step.

    Args:
        plan: decides the algorithm and how many last models the released one averages.
        initial: float64[d], the pinned initial model.
    """

    def __init__(self, plan: Plan, initial: NDArray[np.float64]) -> None:
        self._algorithm = build_algorithm(plan.training)
        self._state: ServerState = self._algorithm.initial(initial)
        self._average_last = plan.training.average_last
        self._tail: list[NDArray[np.float64]] = []
        self.rounds = 0

    @property
    def params(self) -> NDArray[np.float64]:
        """float64[d]: the current global model."""
        return self._state.params

    @property
    def state(self) -> ServerState:
        """Model and optimiser state, for checkpoints."""
        return self._state

    def apply(
        self, total: NDArray[np.unsignedinteger], survivors: Sequence[str], weights: Mapping[str, float], encoding: Encoding
    ) -> None:
        """Decode one round's sum of weighted updates and take the server step."""
        weight = 0.0
        for name in survivors:
            weight += weights[name]
        mean = encoding.decode_sum(total, len(survivors)) / weight
        self._state = self._algorithm.step(self._state, mean)
        if not np.isfinite(self._state.params).all():
            raise ProtocolError("the global model is no longer finite", fix="Lower the learning rate in the plan")
        self.rounds += 1
        if self._average_last:
            self._tail = [*self._tail[-(self._average_last - 1) :], self.params] if self._average_last > 1 else [self.params]

    def released(self) -> NDArray[np.float64]:
        """float64[d]: the mean of the last `average_last` models, or the current one."""
        if not self._tail:
            return self.params
        total = np.zeros_like(self.params)
        for params in self._tail:
            total = total + params
        return total / len(self._tail)

    def digest(self) -> bytes:
        """32 bytes: SHA-256 of the model to be released, float64 little-endian."""
        return sha256(np.ascontiguousarray(self.released(), dtype="<f8"))
