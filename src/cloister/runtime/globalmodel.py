"""The global model, computed alike by everybody who may see it.

Hub (where the plan says hub_view = "sum") and sites each start from the plan's pinned initial model and apply
every round's sum through the same server step, elementwise in float64, so they hold the same bits without
anybody sending a model. A site whose hub showed it another sum ends with another digest, and its next mask
does not cancel.

A language model's vector is float32 and large: each of its elements is widened, moved, and rounded once, a
block at a time and in place, so the model is held once. A round moves its window of the vector and nothing
else, FedAdam's moments included; moments and the sum of last models exist only where the plan uses them. Of
any other model, `params` stays as it was when a step replaces it.

Where the sum carries noise, whatever it is is taken: an overflow or an odd value is a function of the noisy
sum, and reacting to it would say more than the noise allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Buffer, StreamRandom
from cloister.errors import InputError, ProtocolError
from cloister.learning import Plan, build_algorithm, client_update, mean_update, site_weights
from cloister.learning.language.layout import Window, width_of, window_of
from cloister.learning.learner import Shape, Vector
from cloister.learning.private import AdaptiveClip, server_mean, split_bits
from cloister.runtime.bodies import Joined, as_field, encode_around
from cloister.secagg import RingVector

if TYPE_CHECKING:
    from cloister.runtime.epoch import EpochTerms

__all__ = ["GlobalModel", "weights_by_site"]

_BLOCK = 1 << 16
"""Elements that are rounded or moved at once."""


def weights_by_site(plan: Plan, rows: Mapping[str, int]) -> dict[str, float]:
    """Return each site's weight in (0, 1], from the public row counts of the roster."""
    return dict(zip(rows, site_weights(list(rows.values()), plan.training.weights), strict=True))


class _Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a global model: params, tail, first and second moment, little-endian. An array that the
    plan does not use is zeros in float64, and empty in float32."""

    rounds: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    clip: float
    arrays: Annotated[list[memoryview], msgspec.Meta(min_length=4, max_length=4)]


_decode = msgspec.msgpack.Decoder(_Snapshot).decode


class GlobalModel:
    """The global model and the state of the server step.

    Args:
        plan: decides the algorithm and how many last models the released one averages.
        initial: float64[d] or float32[d], the pinned initial model.
        penalised: bool[d], which parameters an l2 penalty touches; None where nobody asks, which is all.
        windows: what rounds move, in turn; None for the whole vector.
        spend: whether `initial` may become the model; else it is copied.

    Attributes:
        clip: the clip of the next round, where the plan claims privacy; else 0.
        rounds: how many rounds it has seen.
    """

    def __init__(
        self,
        plan: Plan,
        initial: Vector,
        penalised: NDArray[np.bool_] | None,
        windows: Sequence[Window] | None = None,
        *,
        spend: bool = False,
    ) -> None:
        self._plan = plan
        self._algorithm = build_algorithm(plan.training)
        self._windows = tuple(windows or ((0, initial.size),))
        self._single = initial.dtype == np.float32
        dtype = np.float32 if self._single else np.float64
        self._params = initial if spend else np.array(initial, dtype, order="C")
        self._tail: Vector | None = None
        self._first: Vector | None = None
        self._second: Vector | None = None
        if (second := self._algorithm.second_start) is not None:
            self._first, self._second = np.zeros_like(self._params), np.full_like(self._params, second)
        self._penalised = penalised if _needs_penalised(plan) else None
        self.clip = plan.privacy.clip if plan.privacy else 0.0
        self.rounds = 0

    @classmethod
    def of(cls, plan: Plan, initial: Vector, shape: Shape, *, spend: bool = False) -> GlobalModel:
        """Return that of a model of this shape."""
        penalised = shape.penalised if _needs_penalised(plan) else None
        return cls(plan, initial, penalised, shape.windows, spend=spend)

    @property
    def params(self) -> Vector:
        """float64[d] or float32[d]: the current global model, read-only. A float32 model changes in place."""
        params = self._params.view()
        params.flags.writeable = False
        return params

    @property
    def window(self) -> Window:
        """What the coming round moves."""
        return window_of(self._windows, self.rounds)

    @property
    def width(self) -> int:
        """How many elements of the vector travel in a round."""
        return width_of(self._windows)

    def apply(self, total: RingVector, survivors: Sequence[str], terms: EpochTerms) -> None:
        """Decode one round's sum and take the server step.

        Args:
            total: uint[width], the sum in the ring; one element more under an adaptive clip.
            survivors: whose vectors are in it.
            terms: of the epoch.

        Raises:
            InputError, ProtocolError: it is no such sum; nothing has changed.
        """
        if self.rounds >= self._algorithm.rounds:
            raise InputError("all rounds of the plan are done", fix="Take the final model")
        adaptive = self._adaptive(terms)
        if total.size != self.width + adaptive:
            raise _no_update()
        if any(not np.isfinite(mean).all() for _, mean in self._means(total, survivors, terms)):
            raise _no_update()
        if not self._single:
            self._params = self._params.copy()
        for window, mean in self._means(total, survivors, terms):
            self._move(window, mean)
        if adaptive:
            self._adapt(total, terms)
        self.rounds += 1
        if self.rounds > self._tail_begins:
            self._add_to_tail()

    def encoded(
        self, trained: Vector, params: Vector, name: str, terms: EpochTerms
    ) -> tuple[RingVector, int]:
        """Return what a site adds to the round's sum, and how many of its coordinates were clamped.

        The window's weighted update is rounded a block at a time; zeros are behind it.

        Args:
            trained: float64[d] or float32[d], what the site made of `params`.
            params: of the same dtype, the model it was given.
            name: the site's.
            terms: of the epoch.
        """
        encoding, weight = terms.encoding_of(self.rounds), terms.weights[name]
        random = StreamRandom.system() if encoding.at_random else None
        start, stop = self.window
        vector: RingVector = np.zeros(self.width, encoding.dtype)
        clamped = 0
        for at in range(0, stop - start, _BLOCK):
            block = slice(start + at, min(start + at + _BLOCK, stop))
            local, global_ = (each[block].astype(np.float64, copy=False) for each in (trained, params))
            update = client_update(local, global_, weight)
            clamped += encoding.clamped(update, at)
            vector[at : at + update.size] = encoding.encode(update, at, random)
        return vector, clamped

    def _means(
        self, total: RingVector, survivors: Sequence[str], terms: EpochTerms
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the window's blocks, and the mean update of each."""
        start, stop = self.window
        weights = [terms.weights[name] for name in survivors]
        for at in range(0, stop - start, _BLOCK):
            block = slice(start + at, min(start + at + _BLOCK, stop))
            words = total[at : at + block.stop - block.start]
            if terms.distributed_noise is None:
                summed = terms.encoding_of(self.rounds).decode_sum(words, len(survivors), at)
                yield block, mean_update(summed, weights, spend=True)
            else:
                yield block, self._private_mean(words, block, terms)

    def _private_mean(self, words: RingVector, block: slice, terms: EpochTerms) -> NDArray[np.float64]:
        """Return a block's mean step of a noisy sum: by the plan's divisor, whoever was present."""
        privacy, training = terms.distributed_noise, self._plan.training
        assert privacy is not None  # noqa: S101  # the caller has looked
        values = privacy.grid.values(privacy.grid.from_ring(words), self.clip)
        if privacy.section.expected_units is not None:  # units send updates, whose steps are their own
            return values / float(privacy.section.expected_units)
        return server_mean(
            values,
            self._params[block].astype(np.float64, copy=False),
            training=training,
            divisor=float(training.batch),
            penalised=None if self._penalised is None else self._penalised[block],
        )

    def _move(self, block: slice, mean: NDArray[np.float64]) -> None:
        """Take the step in one block: widened, moved, and rounded once where the model is float32."""
        arrays = [self._params, self._first, self._second]
        wide = [None if each is None else each[block].astype(np.float64, copy=False) for each in arrays]
        params, first, second = (np.empty(0) if each is None else each for each in wide)
        self._algorithm.advance(params, first, second, mean)
        for array, moved in zip(arrays, wide, strict=True):
            if array is not None and moved is not None and self._single:
                array[block] = moved

    @staticmethod
    def _adaptive(terms: EpochTerms) -> bool:
        """Tell whether the last element of a sum is that of clipped units."""
        privacy = terms.distributed_noise
        return privacy is not None and privacy.section.adaptive_quantile is not None

    def _adapt(self, total: RingVector, terms: EpochTerms) -> None:
        privacy = terms.distributed_noise
        assert privacy is not None  # noqa: S101  # only such sums have the bit
        assert privacy.section.adaptive_quantile is not None  # noqa: S101
        _, bits = split_bits(privacy.grid.from_ring(total[-1:]), privacy.grid)
        adaptive = AdaptiveClip(privacy.section.adaptive_quantile)
        self.clip = adaptive.after(self.clip, bits, float(privacy.section.expected_units or 0))

    def _add_to_tail(self) -> None:
        if self._tail is None:
            self._tail = np.zeros_like(self._params)
        for at in range(0, self._params.size, _BLOCK):
            self._tail[at : at + _BLOCK] += self._params[at : at + _BLOCK]

    def snapshot(self) -> bytes | Joined:
        """Return the model and all that the next step needs, for who comes later or goes on.

        A large one is read from the model as it is: whoever keeps it beyond the next step copies it.
        """
        arrays = [self._stored(array) for array in (self._params, self._tail, self._first, self._second)]
        return encode_around(_Snapshot(self.rounds, self.clip, arrays))

    def _stored(self, array: Vector | None) -> memoryview:
        if array is None and self._single:
            return memoryview(b"")
        kept = np.zeros_like(self._params) if array is None else array
        return as_field(np.ascontiguousarray(kept, "<f4" if self._single else "<f8").view(np.uint8).data)

    def restore(self, snapshot: Buffer) -> None:
        """Take over what `snapshot` returned at another party of the same plan.

        Raises:
            ProtocolError: it is none, or is of another model.
        """
        try:
            read = _decode(snapshot)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError("a model's state does not parse") from error
        due = self._params.nbytes
        moments, tail = self._first is not None, read.rounds > self._tail_begins
        used = (True, tail, moments, moments)
        if any(
            len(data) not in ((due,) if wanted or not self._single else (0,))
            for data, wanted in zip(read.arrays, used, strict=True)
        ):
            raise ProtocolError("a model's state is of another model")
        params, last, first, second = (
            self._read(data) if wanted else None for data, wanted in zip(read.arrays, used, strict=True)
        )
        assert params is not None  # noqa: S101  # it is always wanted
        self._params, self._tail, self._first, self._second = params, last, first, second
        self.rounds, self.clip = read.rounds, read.clip

    @property
    def _tail_begins(self) -> int:
        """After how many rounds models begin to be added up."""
        return self._algorithm.rounds - self._algorithm.average_last

    def _read(self, data: memoryview) -> Vector:
        dtype: np.dtype[Any] = self._params.dtype
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)

    def released(self) -> Vector:
        """float64[d] or float32[d]: the model the plan releases after its last round.

        Raises:
            InputError: there are rounds to come.
        """
        if self.rounds != self._algorithm.rounds:
            raise InputError(
                f"{self.rounds} of {self._algorithm.rounds} rounds are done",
                fix="Finish the study before releasing its model",
            )
        if self._tail is None:
            return self.params
        released: Vector = self._tail / self._tail.dtype.type(self._algorithm.average_last)
        return released


def _needs_penalised(plan: Plan) -> bool:
    """Tell whether the server's step looks at which parameters a penalty touches."""
    privacy = plan.privacy
    return privacy is not None and bool(plan.training.l2) and privacy.expected_units is None


def _no_update() -> InputError:
    return InputError("the mean update does not fit the model, or is not finite", fix="Leave the round out")
