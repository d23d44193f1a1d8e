"""One forward pass and one backward pass, recording what entered each layer and what came back to it.

Order: `forward` notes each layer's input and the edge of the graph behind its output, not the output itself,
which a later operation may overwrite; `backward` starts from the derivatives by the scores and asks autograd
for the derivatives at those edges alone, so that no parameter's gradient is computed. An input that was
overwritten after the layer had read it is refused: it no longer says what entered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from cloister.errors import InputError

__all__ = ["Call", "Count", "Recorder"]


@dataclass(frozen=True, eq=False)
class Call:
    """One use of one layer in a forward pass.

    Args:
        name: the layer's.
        inputs: what entered.
        shape: of what left.
        version: how often the input had been written to then.
        edge: where the derivative by its output arrives.
    """

    name: str
    inputs: Tensor
    shape: tuple[int, ...]
    version: int
    edge: GradientEdge


@dataclass
class Count:
    """How many numbers came out."""

    floats: int = 0


class Recorder:
    """Records the calls of some layers of a module. One pass at a time.

    Args:
        module: the whole.
        layers: those to be recorded, by name.
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._module = module
        self._calls: list[Call] | None = None
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name), with_kwargs=True)

    def forward(self, X: Tensor) -> tuple[Tensor, list[Call]]:
        """Return the module's output for X, with its graph, and the layers' calls in order.

        Raises:
            InputError: the module raised something; what it said is the cause, since it may hold rows.
        """
        calls: list[Call] = []
        self._calls = calls
        try:
            with torch.enable_grad():
                return self._module(X), calls
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the module failed with {type(error).__name__}",
                fix="Try its forward on rows of this shape",
            ) from error
        finally:
            self._calls = None

    @staticmethod
    def backward(scores: Tensor, residuals: Tensor, calls: Sequence[Call]) -> list[Tensor]:
        """Return the derivative by each call's output, in order; the graph is used up.

        Args:
            scores: what `forward` returned, or something computed from it.
            residuals: d loss / d scores, of its shape.
            calls: what `forward` returned.

        Raises:
            InputError: a layer's input was overwritten, or a step has no derivative.
        """
        for call in calls:
            if call.inputs._version != call.version:
                raise InputError(
                    "what entered this layer was overwritten in place",
                    where=f"layer {call.name}",
                    fix="Write inplace=False where its input is used again",
                )
        edges = [call.edge for call in calls]
        try:
            found = torch.autograd.grad(scores, edges, grad_outputs=residuals, allow_unused=True)
        except RuntimeError as error:
            raise InputError(
                "autograd cannot go back through the module",
                fix="Write inplace=False, and keep every step differentiable",
            ) from error
        return [
            torch.zeros(call.shape, dtype=scores.dtype, device=scores.device) if each is None else each
            for call, each in zip(calls, found, strict=True)
        ]

    @contextlib.contextmanager
    def counted(self) -> Iterator[Count]:
        """Count what the module's parts put out, for the length of a `with`: roughly what a pass holds."""
        count = Count()

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                count.floats += output.numel()

        parts = [part for part in self._module.modules() if next(part.children(), None) is None]
        handles = [part.register_forward_hook(hook) for part in parts]
        try:
            yield count
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if self._calls is None:
                return
            entered = given[0] if given else next(iter(named.values()), None)
            if not isinstance(entered, Tensor) or not isinstance(output, Tensor):
                raise InputError(
                    "this layer was not called with a tensor", where=f"layer {name}", fix="Do so"
                )
            if not output.requires_grad:
                raise InputError(
                    "this layer has trainable parameters and is used without gradients",
                    where=f"layer {name}",
                    fix="Freeze its parameters, or take no_grad and detach away",
                )
            edge = get_gradient_edge(output)
            self._calls.append(Call(name, entered.detach(), tuple(output.shape), entered._version, edge))

        return hook
