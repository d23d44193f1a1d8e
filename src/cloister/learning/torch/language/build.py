"""From a base's files to the module that is trained, and its parameters in the vector's order.

1. Base, with its output layer for next tokens, without for classes; an encoder's pooler is left out. Its
   configuration asks for no more numbers than its files hold (twice over: tensors may be shared): a few bytes
   of JSON would else take all memory.
2. Adapters, where the method has them; the rank fits every layer.
3. Head, at zero.
4. The order of the vector (see `learner`), and A as the seed draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cloister.errors import InputError, PlanError
from cloister.learning.language.layout import Window
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.sections import LanguageSection, ModelSection
from cloister.learning.torch.language.adapters import (
    add_adapters,
    linear_layers,
    public_name,
    target_layers,
)
from cloister.learning.torch.language.base import Base
from cloister.learning.torch.language.module import LanguageModule
from cloister.learning.torch.language.pretrained import outlined, pretrained
from cloister.learning.torch.language.quantised import check_quantised, quantise
from cloister.learning.torch.weights import stored

__all__ = ["Built", "build", "device_of"]


@dataclass(frozen=True, eq=False)
class Built:
    """A module and what of it is trained.

    Args:
        module: base, adapters and head.
        layers: of the base that have adapters, in its order; () where there are none.
        trained: public name to parameter, in the vector's order.
        frozen: public name to A, where A stands still.
        windows: what rounds move.
    """

    module: LanguageModule
    layers: tuple[str, ...]
    trained: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    windows: tuple[Window, ...]


def device_of(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one.

    Raises:
        InputError: there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("there is no such device", where=name[:32], fix="Choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no GPU", fix="Choose device auto or cpu, or install torch for CUDA")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def build(
    section: ModelSection,
    language: LanguageSection,
    files: ModelFiles,
    base: Base,
    *,
    device: torch.device,
    weights: bool,
) -> Built:
    """Return the module of a plan; parameters that the seed or the vector decides have no values yet.

    Args:
        section: `[model]`.
        language: `[language]`.
        files: of the base.
        base: what was opened of it.
        device: where the module is to lie.
        weights: whether to read the base's numbers; without, the module lies on the meta device.

    Raises:
        PlanError: base and plan do not fit each other.
        InputError: as loading a base does, or the hardware cannot compute so.
    """
    if weights:
        check_quantised(language, device)
    found, config = base.found, base.config
    full = language.method == "full"
    narrow = language.precision == "bfloat16" and not full  # what is trained is float32
    dtype = torch.bfloat16 if narrow else torch.float32
    model = _outlined(files, base, dtype)
    if weights:
        model = pretrained(files, found, config, dtype=dtype)
    if section.kind == "text-classifier":  # 1
        model = model.base_model
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
    layers = () if full else target_layers(model, language)  # 2
    if weights and language.quantised != "no":
        quantise(model, linear_layers(model), device)
    if weights:
        model.to(device)
    if layers:
        add_adapters(model, language, layers)
    module = LanguageModule(  # 3
        model,
        classes=section.classes,
        hidden=int(config.get_text_config().hidden_size),
        encoder=found.kind == "encoder",
    )
    if language.checkpointing:
        module.checkpoint_layers()
    return _ordered(module, language, layers)


def _outlined(files: ModelFiles, base: Base, dtype: torch.dtype) -> Any:
    """Return the base on torch's meta device.

    Raises:
        InputError: it would be larger than its files.
    """
    tensors, numbers = stored(files, base.found.weights)
    layers = getattr(base.config.get_text_config(), "num_hidden_layers", None) or 0
    if layers <= tensors:
        model = outlined(base.found, base.config, dtype)
        if sum(each.numel() for each in model.parameters()) <= 2 * numbers:
            return model
    raise InputError(
        "the weights are not those of the configuration, which asks for far more than there are",
        where="config.json",
        fix="Copy the model again",
    )


def _ordered(module: LanguageModule, language: LanguageSection, layers: tuple[str, ...]) -> Built:
    """Return the module with its parameters in order: step 4."""
    every = {public_name(name): each for name, each in module.named_parameters()}
    head = {name: each for name, each in every.items() if name.startswith("head.")}
    if language.method == "full":
        trained = head | every
        frozen: dict[str, nn.Parameter] = {}
    else:
        a = {name: each for name, each in every.items() if name.endswith(".lora_A.weight")}
        b = {name: each for name, each in every.items() if name.endswith(".lora_B.weight")}
        alternating = language.method == "lora-alternating"
        trained, frozen = (a | head | b, {}) if alternating else (head | b, a)
    size = sum(each.numel() for each in trained.values())
    windows: tuple[Window, ...] = ((0, size),)
    if language.method == "lora-alternating":
        of_a = sum(each.numel() for each in a.values())
        windows = ((of_a, size), (0, of_a + sum(each.numel() for each in head.values())))
    if not trained:
        raise PlanError("there is nothing to train in this base", where="[language] targets")
    return Built(module, layers, trained, frozen, windows)
