"""A base in 4 bits (NF4, Dettmers et al. 2023, "QLoRA"), where the hardware computes with it.

It needs an NVIDIA GPU and the package bitsandbytes; elsewhere the plan is refused, before anything is read.
What bitsandbytes makes of the same weights may differ between releases, and so may losses between sites; the
adapters' average stays exact.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch
from torch import nn

from cloister.errors import InputError
from cloister.learning.sections import LanguageSection

__all__ = ["check_quantised", "quantise"]


def check_quantised(language: LanguageSection, device: torch.device) -> None:
    """Return if this machine can keep the base as the plan says.

    Raises:
        InputError: it cannot.
    """
    if language.quantised == "no":
        return
    if device.type != "cuda":
        raise InputError(
            "a base in 4 bits needs an NVIDIA GPU, and this worker computes on the CPU",
            where="[language] quantised",
            fix='Run on a machine with a GPU, or write quantised = "no"',
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "a base in 4 bits needs the package bitsandbytes",
            where="[language] quantised",
            fix="pip install bitsandbytes",
        )


def quantise(base: nn.Module, layers: Iterable[str], device: torch.device) -> None:
    """Replace these linear layers by ones in 4 bits, one by one, on the GPU; Conv1D stays as it is."""
    import bitsandbytes as bnb  # type: ignore[import-not-found]

    for name in layers:
        parent, _, own = name.rpartition(".")
        holder = base.get_submodule(parent)
        layer = getattr(holder, own)
        if not isinstance(layer, nn.Linear):
            continue
        small = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        setattr(holder, own, small.to(device))
    base.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks for it
