"""The global model, computed alike by everybody who may see it.

Hub (where the plan says hub_view = "sum") and sites each start from the plan's pinned initial model and apply
every round's sum through the same server step, elementwise in float64, so they hold the same bits without
anybody sending a model. A site whose hub showed it another sum ends with another digest, and its next mask
does not cancel.

Where the sum carries noise, whatever it is is taken: an overflow or an odd value is a function of the noisy
sum, and reacting to it would say more than the noise allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import ProtocolError
from cloister.learning import Plan, build_algorithm, mean_update, site_weights
from cloister.learning.algorithms import ServerState
from cloister.learning.private import AdaptiveClip, server_mean, split_bits
from cloister.secagg import RingVector

if TYPE_CHECKING:
    from cloister.runtime.epoch import EpochTerms

__all__ = ["GlobalModel", "weights_by_site"]


def weights_by_site(plan: Plan, rows: Mapping[str, int]) -> dict[str, float]:
    """Return each site's weight in (0, 1], from the public row counts of the roster."""
    return dict(zip(rows, site_weights(list(rows.values()), plan.training.weights), strict=True))


class _Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a global model; arrays are float64, little-endian."""

    rounds: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    clip: float
    arrays: Annotated[list[memoryview], msgspec.Meta(min_length=4, max_length=4)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Snapshot).decode


class GlobalModel:
    """The global model and the state of the server step.

    Args:
        plan: decides the algorithm and how many last models the released one averages.
        initial: float64[d], the pinned initial model.
        penalised: bool[d], which parameters an l2 penalty touches.

    Attributes:
        clip: the clip of the next round, where the plan claims privacy; else 0.
    """

    def __init__(self, plan: Plan, initial: NDArray[np.float64], penalised: NDArray[np.bool_]) -> None:
        self._plan = plan
        self._penalised = penalised
        self._algorithm = build_algorithm(plan.training)
        self._state = self._algorithm.start(initial)
        self.clip = plan.privacy.clip if plan.privacy else 0.0

    @property
    def params(self) -> NDArray[np.float64]:
        """float64[d]: the current global model, read-only."""
        return self._state.params

    @property
    def rounds(self) -> int:
        """How many rounds it has seen."""
        return self._state.rounds

    def apply(self, total: RingVector, survivors: Sequence[str], terms: EpochTerms) -> None:
        """Decode one round's sum and take the server step.

        Args:
            total: uint[d], the sum in the ring; uint[d + 1] under an adaptive clip.
            survivors: whose vectors are in it.
            terms: of the epoch.
        """
        if terms.distributed_noise is None:
            summed = terms.encoding.decode_sum(total, len(survivors))
            mean = mean_update(summed, [terms.weights[name] for name in survivors], spend=True)
        else:
            mean = self._private_mean(total, terms)
        self._state = self._algorithm.step(self._state, mean, spend=True)

    def _private_mean(self, total: RingVector, terms: EpochTerms) -> NDArray[np.float64]:
        """Return the mean step of a noisy sum: by the plan's divisor, whoever was sampled or present."""
        privacy, training = terms.distributed_noise, self._plan.training
        assert privacy is not None  # noqa: S101  # the caller has looked
        section, integers, clip = privacy.section, privacy.grid.from_ring(total), self.clip
        if section.adaptive_quantile is not None:
            integers, bits = split_bits(integers, privacy.grid)
            adaptive = AdaptiveClip(section.adaptive_quantile)
            self.clip = adaptive.after(clip, bits, float(section.expected_units or 0))
        values = privacy.grid.values(integers, clip)
        if section.expected_units is not None:  # units send updates, whose steps are their own
            return values / float(section.expected_units)
        return server_mean(
            values, self.params, training=training, divisor=float(training.batch), penalised=self._penalised
        )

    def snapshot(self) -> bytes:
        """Return the model and all that the next step needs, for who comes later or goes on."""
        state = self._state
        arrays = [
            array.astype("<f8", copy=False).tobytes()
            for array in (state.params, state.tail, state.first, state.second)
        ]
        return _encode(_Snapshot(state.rounds, self.clip, [memoryview(array) for array in arrays]))

    def restore(self, snapshot: bytes | bytearray | memoryview) -> None:
        """Take over what `snapshot` returned at another party of the same plan.

        Raises:
            ProtocolError: it is none, or is of another model.
        """
        try:
            read = _decode(snapshot)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError("a model's state does not parse") from error
        params, tail, first, second = (
            np.frombuffer(array, "<f8").astype(np.float64) for array in read.arrays
        )
        if not all(each.shape == self.params.shape for each in (params, tail, first, second)):
            raise ProtocolError("a model's state is of another model")
        self._state = ServerState(params, tail, first, second, read.rounds)
        self.clip = read.clip

    def released(self) -> NDArray[np.float64]:
        """float64[d]: the model the plan releases after its last round. Raises InputError before it."""
        return self._algorithm.final(self._state)
