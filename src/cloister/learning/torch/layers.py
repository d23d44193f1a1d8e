"""Layers whose per-example gradients are known from what entered and what came back.

For each kind of layer one function turns a recorded call, n examples of it, into terms for its parameters.
Linear, convolutions, Embedding, LayerNorm and GroupNorm are done here, and what language models have of their
own: RMSNorm under its many names, and transformers' Conv1D, a Linear stored the other way round. Of other
layers those for which Opacus has a gradient sampler, by that sampler. Everything else is refused by name,
with the reason: a layer whose statistics mix examples (BatchNorm) has no per-example gradient at all; a fused
one (LSTM, MultiheadAttention) does not show what entered its parameters; a parameter outside such layers is
used nobody knows how.

A subclass counts as its base only where it neither computes in another way nor has parameters of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import InputError
from cloister.learning.torch.arena import Arena
from cloister.learning.torch.layout import Layout
from cloister.learning.torch.terms import Dense, Lookup, Outer, Term

__all__ = ["Sampler", "check_layers", "sampler_of"]

Sampler: TypeAlias = Callable[[Any, Tensor, Tensor, Layout, Arena], dict[str, Term]]
"""(layer, input, residual, layout) to terms by the parameter's name in the layer; tensors as called."""

_BATCH_NORMS: Final = nn.modules.batchnorm._NormBase
_INSTANCE_NORMS: Final = nn.modules.instancenorm._InstanceNorm


def _linear(
    layer: nn.Linear, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    a, b = layout.rows(inputs, 1), layout.rows(residuals, 1, out=True)
    terms: dict[str, Term] = {"weight": Outer(a[:, None], b[:, None])}
    if layer.bias is not None:
        terms["bias"] = Dense(b.sum(1))
    return terms


def _convolution(
    layer: Any, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    count, groups = layout.leading(inputs, len(layer.kernel_size) + 2), layer.groups
    images, positions = len(inputs) // count, residuals[0, 0].numel()
    terms: dict[str, Term] = {}
    if layer.weight.requires_grad:
        entries, width = layer.weight.numel(), layer.weight[0].numel()
        if Outer.is_formed(groups, images * positions, width, layer.out_channels // groups):

            def part(rows: slice, into: Tensor) -> None:
                of = slice(rows.start * images, rows.stop * images)
                _patches(layer, inputs[of], residuals[of], images).write(slice(None), into)

            floats = images * positions * groups * width
            terms["weight"] = Dense.form((count, entries), inputs.dtype, part, arena, floats=floats)
        else:
            terms["weight"] = _patches(layer, inputs, residuals, images)
    if layer.bias is not None:
        terms["bias"] = Dense(residuals.reshape(count, images, layer.out_channels, -1).sum((1, 3)))
    return terms


def _patches(layer: Any, inputs: Tensor, residuals: Tensor, images: int) -> Outer:
    """Return the weight's term: at each position of the output, what the kernel saw and what came back."""
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    spatial, strides = residuals.shape[2:], inputs.stride()
    seen = inputs.as_strided(
        (*inputs.shape[:2], *layer.kernel_size, *spatial),
        (
            *strides[:2],
            *(a * b for a, b in zip(strides[2:], layer.dilation, strict=True)),
            *(a * b for a, b in zip(strides[2:], layer.stride, strict=True)),
        ),
    )
    shape = (-1, images, layer.groups)
    a = seen.reshape(*shape, layer.weight[0].numel(), spatial.numel())
    b = residuals.reshape(*shape, layer.out_channels // layer.groups, spatial.numel())
    if images > 1:  # of one example: their positions follow each other
        a, b = (each.permute(0, 2, 3, 1, 4).flatten(3)[:, None] for each in (a, b))
    return Outer(a.flatten(0, 1).transpose(2, 3), b.flatten(0, 1).transpose(2, 3))


def _embedding(
    layer: nn.Embedding, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    index, b = layout.rows(inputs, 0).long(), layout.rows(residuals, 1, out=True)
    if layer.padding_idx is not None:
        b = b.masked_fill((index == layer.padding_idx)[:, :, None], 0.0)
    return {"weight": Lookup(index, b, layer.num_embeddings)}


def _layer_norm(
    layer: nn.LayerNorm, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    last = len(layer.normalized_shape)
    normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    b = layout.rows(residuals, last, out=True)
    terms: dict[str, Term] = {"weight": Dense((layout.rows(normal, last) * b).sum(1).flatten(1))}
    if layer.bias is not None:
        terms["bias"] = Dense(b.sum(1).flatten(1))
    return terms


def _group_norm(
    layer: nn.GroupNorm, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    count, channels = layout.leading(inputs, inputs.dim()), layer.num_channels
    normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    terms: dict[str, Term] = {}
    for name, product in (("weight", normal * residuals), ("bias", residuals)):
        terms[name] = Dense(product.reshape(count, -1, channels, product[0, 0].numel()).sum((1, 3)))
    return terms


def _rms_norm(layer: Any, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena) -> dict[str, Term]:
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None))
    normal = functional.rms_norm(inputs, (inputs.shape[-1],), eps=eps)
    return {"weight": Dense((layout.rows(normal, 1) * layout.rows(residuals, 1, out=True)).sum(1))}


def _transposed(
    layer: Any, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
) -> dict[str, Term]:
    a, b = layout.rows(inputs, 1), layout.rows(residuals, 1, out=True)
    return {"weight": Outer(b[:, None], a[:, None]), "bias": Dense(b.sum(1))}


_KNOWN: Final[dict[type[nn.Module], Sampler]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
_INSTEAD: Final[dict[type[nn.Module], str]] = {
    nn.LSTM: "use opacus.layers.DPLSTM, which is made of Linear layers",
    nn.GRU: "use opacus.layers.DPGRU, which is made of Linear layers",
    nn.RNN: "use opacus.layers.DPRNN, which is made of Linear layers",
    nn.MultiheadAttention: "use opacus.layers.DPMultiheadAttention, which is made of Linear layers",
    nn.EmbeddingBag: "use Embedding and a mean over the positions",
}


def _opacus(layer: nn.Module) -> Sampler | None:
    """Return Opacus's gradient sampler for a layer of exactly this type, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import alone; they are not about this module
        from opacus.grad_sample import GradSampleModule

    if isinstance(layer, nn.EmbeddingBag):
        return None  # its sampler needs offsets, which say where an example ends; ours are rows
    found = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    if found is None:
        return None

    def sample(
        layer: Any, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
    ) -> dict[str, Term]:
        a, b = layout.whole(inputs), layout.whole(residuals, out=True)
        try:
            given = found(layer, [a], b)
        except Exception as error:
            raise InputError(
                "Opacus's gradient sampler fails on this layer", where=f"layer {layout.name}", fix="Freeze it"
            ) from error
        names = {parameter: name for name, parameter in layer.named_parameters(recurse=False)}
        return {names[parameter]: Dense(each.flatten(1)) for parameter, each in given.items()}

    return sample


def sampler_of(layer: nn.Module) -> Sampler | None:
    """Return what gives per-example gradients of a layer's own parameters, or None.

    Layers of other libraries go by their names; `probe` finds out whether the formula is right.
    """
    axes = {name: each.dim() for name, each in layer.named_parameters(recurse=False)}
    for kind, sampler in _KNOWN.items():
        same = type(layer) is kind or (isinstance(layer, kind) and type(layer).forward is kind.forward)
        if same and set(axes) <= {"weight", "bias"}:
            return sampler
    if type(layer).__name__.endswith("RMSNorm") and axes == {"weight": 1}:
        return _rms_norm
    if type(layer).__name__ == "Conv1D" and axes == {"weight": 2, "bias": 1}:
        return _transposed
    return _opacus(layer)


def check_layers(module: nn.Module) -> dict[str, tuple[nn.Module, Sampler]]:
    """Return the layers that hold trainable parameters, by name, with their samplers.

    Raises:
        InputError: examples would be mixed, or a trainable parameter's per-example gradient is not known; the
            message says which layer and why.
    """
    layers: dict[str, tuple[nn.Module, Sampler]] = {}
    unknown: list[tuple[nn.Module, str]] = []
    for name, layer in module.named_modules():
        where = (
            f"layer {name}, {type(layer).__name__}" if name else f"the module itself, {type(layer).__name__}"
        )
        _refuse_mixing(layer, where)
        if not any(each.requires_grad for each in layer.parameters(recurse=False)):
            continue
        sampler = sampler_of(layer)
        if sampler is None:
            unknown.append((layer, where))
            continue
        if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
            raise InputError(
                "max_norm and scale_grad_by_freq make one example's gradient depend on the others",
                where=where,
                fix="Leave them out",
            )
        layers[name] = (layer, sampler)
    # a layer that only lists parameters of the layers within it, as opacus.layers.DPLSTM does, is no owner
    owned = {each for layer, _ in layers.values() for each in layer.parameters(recurse=False)}
    for layer, where in unknown:
        if any(each.requires_grad and each not in owned for each in layer.parameters(recurse=False)):
            _refuse_unknown(layer, where)
    return layers


def _refuse_unknown(layer: nn.Module, where: str) -> None:
    advice = next((text for kind, text in _INSTEAD.items() if isinstance(layer, kind)), None)
    raise InputError(
        "the gradients of single examples by this layer's parameters are not known",
        where=where,
        fix=f"For training with privacy {advice}"
        if advice
        else "Build it of Linear, Conv, Embedding, LayerNorm and GroupNorm, or freeze its parameters",
    )


def _refuse_mixing(layer: nn.Module, where: str) -> None:
    if isinstance(layer, _BATCH_NORMS) and not isinstance(layer, _INSTANCE_NORMS):
        raise InputError(
            "BatchNorm mixes the examples of a batch, so none of them can be clipped by itself",
            where=where,
            fix="Use GroupNorm or LayerNorm",
        )
    if isinstance(layer, _INSTANCE_NORMS) and layer.track_running_stats:
        raise InputError(
            "running statistics are computed from rows and would leave the site without noise",
            where=where,
            fix="Write track_running_stats=False",
        )
