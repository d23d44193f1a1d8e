"""The global model, computed alike by everybody who may see it.

Hub (where the plan says hub_view = "sum") and sites each start from the plan's pinned initial model and apply
every round's sum through the same server step, elementwise in float64, so they hold the same bits without
anybody sending a model. A site whose hub showed it another sum ends with another digest, and its next mask
does not cancel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.learning import Plan, build_algorithm, mean_update, site_weights
from cloister.secagg import Encoding, RingVector

__all__ = ["GlobalModel", "weights_by_site"]


def weights_by_site(plan: Plan, rows: Mapping[str, int]) -> dict[str, float]:
    """Return each site's weight in (0, 1], from the public row counts of the roster."""
    return dict(zip(rows, site_weights(list(rows.values()), plan.training.weights), strict=True))


class GlobalModel:
    """The global model and the state of the server step.

    Args:
        plan: decides the algorithm and how many last models the released one averages.
        initial: float64[d], the pinned initial model.
    """

    def __init__(self, plan: Plan, initial: NDArray[np.float64]) -> None:
        self._algorithm = build_algorithm(plan.training)
        self._state = self._algorithm.start(initial)

    @property
    def params(self) -> NDArray[np.float64]:
        """float64[d]: the current global model, read-only."""
        return self._state.params

    @property
    def rounds(self) -> int:
        """How many rounds it has seen."""
        return self._state.rounds

    def apply(
        self, total: RingVector, survivors: Sequence[str], weights: Mapping[str, float], encoding: Encoding
    ) -> None:
        """Decode one round's sum of weighted updates and take the server step.

        Args:
            total: uint[d], the sum in the ring.
            survivors: whose updates are in it.
            weights: by site, from `weights_by_site`.
            encoding: the epoch's fixed point.
        """
        mean = mean_update(encoding.decode_sum(total, len(survivors)), [weights[name] for name in survivors])
        self._state = self._algorithm.step(self._state, mean)

    def released(self) -> NDArray[np.float64]:
        """float64[d]: the model the plan releases after its last round. Raises InputError before it."""
        return self._algorithm.final(self._state)
