"""What hub and site need to know of a model: sizes, how its scores are read, its start, its float error.

A built-in model is data, and everybody has it. A module of the user's own is code, which runs in a worker and
nowhere else; to hub and site the worker states these facts. They are checked as far as they can be from
outside: counts fit each other, numbers are finite, and the start is the one that the plan pins. Its float
error has to be believed, as what the code computes has: the plan names the code's digest, and who allows it
answers for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError
from cloister.learning.heads import Head, LogisticHead, SoftmaxHead, SquaredHead, TokensHead
from cloister.learning.language.layout import Tensor, Window, check_layout
from cloister.learning.learner import Vector
from cloister.learning.models import Model
from cloister.learning.plan import Plan
from cloister.learning.privacy import private_model
from cloister.learning.start import check_pin, pin_of

if TYPE_CHECKING:
    from cloister.learning.torch import TorchPrivate

__all__ = ["ModelFacts"]

_MOST: int = 1 << 40
_BLOCK = 1 << 18
_Count = Annotated[int, msgspec.Meta(ge=1, lt=_MOST)]
_Classes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class ModelFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, eq=False, kw_only=True):
    """The facts; a `Shape` and `Bounded`. Made by `of` from a model, or read from a worker's message.

    Attributes:
        size: number of parameters, d.
        inputs: features it takes, f.
        loss: "squared", "logistic" or "softmax"; "tokens" for a model of text.
        classes: of the label under "softmax", else 0.
        weights: bool[d] as bits, which parameters an l2 penalty touches.
        start: float64[d], or float32[d] of a model in single precision, little-endian; empty for zeros.
        fixed: digest of what is not trained, in hex; empty where there is no such thing.
        microbatch: rows of a sum that `error` speaks of; 0 where the plan claims no privacy.
        error: float error of such a sum, relative to the clip.
        tensors: the vector's named tensors, in its order; () where the model names none.
        windows: what rounds move, in turn; given empty, the whole vector.
        single: whether the vector is float32.

    Raises:
        InputError: they contradict each other.
    """

    size: _Count
    inputs: _Count
    loss: Literal["squared", "logistic", "softmax", "tokens"]
    classes: _Classes
    weights: bytes
    start: bytes
    fixed: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    microbatch: Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]
    error: float
    tensors: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=1 << 20)] = ()
    windows: Annotated[tuple[Window, ...], msgspec.Meta(max_length=1 << 10)] = ()
    single: bool = False

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "windows", self.windows or ((0, self.size),))
        check_layout(self.size, self.tensors, self.windows)
        if not (
            len(self.weights) == -(-self.size // 8)
            and len(self.start) in (0, self._dtype.itemsize * self.size)
            and (self.classes >= 2) == (self.loss == "softmax")
            and math.isfinite(self.error)
            and self.error >= 0.0
            and _finite(np.frombuffer(self.start, self._dtype))
        ):
            raise InputError("the stated facts of a model contradict each other")
        if self.single and not np.frombuffer(self.start, np.uint8).any():
            msgspec.structs.force_setattr(self, "start", b"")  # adapters start at zero, and are large

    @classmethod
    def of(cls, plan: Plan, model: Model | TorchPrivate) -> ModelFacts:
        """Return the facts of a plan's model. Nothing is compared with what the plan pins."""
        head, microbatch = model.head, 0 if plan.privacy is None else plan.privacy.microbatch
        loss: Literal["squared", "logistic", "softmax", "tokens"] = "logistic"
        if isinstance(head, SquaredHead | SoftmaxHead):
            loss = "squared" if isinstance(head, SquaredHead) else "softmax"
        return cls(
            size=model.size,
            inputs=model.inputs,
            loss=loss,
            classes=head.classes if isinstance(head, SoftmaxHead) else 0,
            weights=np.packbits(model.penalised).tobytes(),
            start=np.ascontiguousarray(model.initial(plan.model.seed), "<f8").tobytes(),
            fixed="" if isinstance(model, Model) else model.fixed_digest,
            microbatch=microbatch,
            error=private_model(model).float_bound(microbatch) if microbatch else 0.0,
        )

    @property
    def head(self) -> Head:
        """How scores become a loss and a prediction."""
        if self.loss == "softmax":
            return SoftmaxHead(self.classes)
        if self.loss == "tokens":
            return TokensHead()
        return SquaredHead() if self.loss == "squared" else LogisticHead()

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which parameters an l2 penalty touches; bool[d]."""
        return np.unpackbits(np.frombuffer(self.weights, np.uint8), count=self.size).astype(np.bool_)

    @property
    def initial(self) -> Vector:
        """The start, float64[d] or float32[d]; a new array."""
        dtype = np.float32 if self.single else np.float64
        if not self.start:
            return np.zeros(self.size, dtype)
        return np.frombuffer(self.start, self._dtype).astype(dtype)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype("<f4" if self.single else "<f8")

    @property
    def pin(self) -> str:
        """What a plan pins of this start."""
        return pin_of(self.initial, self.fixed)

    def require_pinned(self, plan: Plan) -> None:
        """Return if the plan pins this start. Raises PlanError where it pins none or another."""
        check_pin(plan, self.pin)

    def float_bound(self, microbatch: int) -> float:
        """Return the float error of one sum, relative to the clip.

        Raises:
            InputError: it is not known for sums of so many rows.
        """
        if microbatch != self.microbatch or microbatch < 1:
            raise InputError("the worker stated no float error for sums of so many rows")
        return self.error

    def __repr__(self) -> str:
        return f"<ModelFacts {self.size} parameters, {self.loss}>"


def _finite(values: NDArray[np.floating[Any]]) -> bool:
    """Tell whether all are numbers; a block at a time."""
    return all(bool(np.isfinite(values[at : at + _BLOCK]).all()) for at in range(0, values.size, _BLOCK))
