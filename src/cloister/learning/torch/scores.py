"""From a module's output to the scores that `learning.heads` knows, and which head that is.

`classes` 0 is a number: one output, half the squared error. 2 is a binary label: one output, the logit of
class 1; or two, whose difference is that logit (the same loss as a softmax over two). k classes need k
outputs. Losses and predictions are those of the numpy models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloister.errors import InputError
from cloister.learning.heads import Array, Head, LogisticHead, SoftmaxHead, SquaredHead

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores:
    """The last step of a torch module.

    Args:
        head: loss and prediction.
        width: outputs of the module for one example.
    """

    head: Head
    width: int

    @classmethod
    def of(cls, classes: int, output: object, count: int) -> Scores:
        """Return what fits a label of `classes` classes and the output for `count` examples.

        Raises:
            InputError: the output is no tensor of (count, k) or (count,), or k does not fit.
        """
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        if shape is None or len(shape) not in (1, 2) or shape[0] != count:
            raise InputError(
                "the module does not return one row of scores for each example",
                fix="Return a tensor (b, k), the batch first",
            )
        width = shape[1] if len(shape) == 2 else 1
        allowed = {0: (1,), 2: (1, 2)}.get(classes, (classes,))
        if classes < 0 or classes == 1 or width not in allowed:
            raise InputError(
                f"the module returns {width} scores for each example, and {classes} classes need "
                + " or ".join(map(str, allowed)),
                fix="Change the module's last layer, or classes",
            )
        head: Head = (
            SquaredHead() if classes == 0 else LogisticHead() if classes == 2 else SoftmaxHead(classes)
        )
        return cls(head, width)

    def read(self, output: Tensor) -> Tensor:
        """Return the head's scores [n, k] of a module's output, with its graph."""
        if output.numel() != len(output) * self.width:
            raise InputError("the module returns another number of scores than before", fix="Return (b, k)")
        scores = output.reshape(len(output), self.width)
        return scores if self.width == self.head.outputs else scores[:, 1:] - scores[:, :1]

    def residuals(self, scores: Tensor, labels: Array) -> Tensor:
        """Return the derivative of each example's own loss by its scores, in their type."""
        found = self.head.residual(_copied(scores), labels)
        return torch.from_numpy(found).to(scores.device, scores.dtype)

    def prediction(self, scores: Tensor) -> Array:
        """Return values or probabilities, as the head has them."""
        return self.head.prediction(_copied(scores))

    def losses(self, scores: Tensor, labels: Array) -> Array:
        """Return each example's loss, float64[n]."""
        return self.head.loss(_copied(scores), labels)

    def check_labels(self, labels: Array, count: int) -> Array:
        """Return the labels as float64[n].

        Raises:
            InputError: their number is another, or one of them is no class.
        """
        found = np.asarray(labels, dtype=np.float64)
        if found.shape != (count,):
            raise InputError("features and labels differ in length", fix="Give one label for each row")
        if isinstance(self.head, SoftmaxHead) and not np.isin(found, np.arange(self.head.classes)).all():
            raise InputError(
                f"a label is not one of the classes 0 to {self.head.classes - 1}",
                fix="Check the plan's classes",
            )
        return found


def _copied(scores: Tensor) -> Array:
    """Return the values as float64 in memory of their own: heads work in place."""
    return scores.detach().to("cpu", torch.float64, copy=True).numpy()
