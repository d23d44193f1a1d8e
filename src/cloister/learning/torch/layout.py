"""Where the examples lie in what enters and leaves a layer.

A module is called with n examples in the first axis, but its layers may see them elsewhere: time first (t, n,
f), or positions folded into the batch (n t, f). The layout of a call is found by calling the module with two
numbers of examples and looking which axis grows with them; every later call must have the same shape but for
that axis. An input that does not grow, like one that numbers positions and is added to all examples, has no
per-example gradient, and its layer is refused.

That the axis is cut into examples in the right order is not known from shapes; `probe` tests it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cloister.errors import InputError

__all__ = ["Axis", "Layout"]


@dataclass(frozen=True)
class Axis:
    """The axis that holds the examples.

    Args:
        at: its number.
        each: its entries for one example.
        shape: the whole shape for one example.
    """

    at: int
    each: int
    shape: tuple[int, ...]

    @classmethod
    def between(cls, few: tuple[int, ...], many: tuple[int, ...], counts: tuple[int, int]) -> Axis | None:
        """Return the axis that grows from `few` to `many` as the examples do; None if none does."""
        if len(few) != len(many):
            return None
        differ = [at for at, (a, b) in enumerate(zip(few, many, strict=True)) if a != b]
        if len(differ) != 1:
            return None
        at = differ[0]
        each, rest = divmod(few[at], counts[0])
        if rest or each == 0 or many[at] != each * counts[1]:
            return None
        return cls(at, each, (*few[:at], each, *few[at + 1 :]))

    def fits(self, shape: tuple[int, ...], count: int) -> bool:
        """Whether `count` examples have this shape."""
        return (*self.shape[: self.at], self.each * count, *self.shape[self.at + 1 :]) == shape


@dataclass(frozen=True)
class Layout:
    """Where the examples are in one call of one layer.

    Args:
        name: the layer's.
        inputs: in its input.
        outputs: in its output.
    """

    name: str
    inputs: Axis
    outputs: Axis

    def rows(self, tensor: Tensor, trailing: int, *, out: bool = False) -> Tensor:
        """Return [n, T, ...] with the last `trailing` axes kept and all positions of an example in one."""
        axis = self.outputs if out else self.inputs
        if axis.at >= tensor.dim() - trailing:
            raise self._refusal("its examples lie along an axis that it treats as features")
        moved = tensor.movedim(axis.at, 0)
        kept = moved.shape[moved.dim() - trailing :]
        return moved.reshape(len(moved) // axis.each, -1, *kept)

    def whole(self, tensor: Tensor, *, out: bool = False) -> Tensor:
        """Return the tensor with its examples in the first axis."""
        axis = self.outputs if out else self.inputs
        if axis.each != 1:
            raise self._refusal("several of its inputs belong to one example")
        return tensor.movedim(axis.at, 0)

    def leading(self, tensor: Tensor, axes: int) -> int:
        """Return the number of examples in an input of that many axes that must have them in the first."""
        if self.inputs.at or self.outputs.at or tensor.dim() != axes:
            raise self._refusal("its examples do not lie along the first axis")
        return len(tensor) // self.inputs.each

    def _refusal(self, what: str) -> InputError:
        return InputError(
            what, where=f"layer {self.name}", fix="Give it one example per entry of the first axis"
        )
