"""peft's LoRA layers in a base; A comes as the seed draws it.

    y = W x + (alpha / rank) B (A x)        (Hu et al. 2022, "LoRA")

B starts at zero, so the model starts as its base. A is drawn from the plan's public seed by our own stream,
uniform in +-1 / sqrt(features), which is what peft draws from (`learning.language.adapter.draw_a`): torch's
generators promise the same numbers neither across versions nor across machines.

**Why A stands still.** A sum of sites' models is linear in what they trained. With one A for all,
mean(B_i) A = mean(B_i A): the averaged adapter is the average of the merged models, exactly. Where both are
trained, mean(B_i) mean(A_i) is another matrix than mean(B_i A_i), a bias that no aggregation removes (Sun et
al. 2024, "Improving LoRA in privacy-preserving federated learning"). Alternating trains one of the two in a
round, so each round's average is exact.

Linear layers get adapters, and GPT-2's Conv1D, which is a linear layer stored the other way round.
"""

from __future__ import annotations

import warnings
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from cloister.errors import InputError, PlanError
from cloister.learning.sections import LanguageSection

__all__ = ["add_adapters", "linear_layers", "public_name", "target_layers"]

_NAME = "default"
_PREFIX = "base_model.model."


def public_name(name: str) -> str:
    """Return how a tensor of `LanguageModule` is called outside: an adapter's as in peft's files."""
    own = name.removeprefix("base.")
    if ".lora_A." in own or ".lora_B." in own:
        return _PREFIX + own.replace(f".{_NAME}.", ".")
    return own


def linear_layers(base: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the extents of the base's linear layers by name, in its own order, without the output's."""
    output = getattr(base, "get_output_embeddings", lambda: None)()
    return {
        name: (int(layer.weight.shape[0]), int(layer.weight.shape[1]))
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not output and name
    }


def target_layers(base: nn.Module, language: LanguageSection) -> tuple[str, ...]:
    """Return the names of the base's layers that get adapters, in its own order.

    Raises:
        PlanError: the base has none of a name in the plan, or the rank is larger than a layer.
    """
    linear = linear_layers(base)
    there = {name.rpartition(".")[2] for name in linear}
    unknown = [target for target in language.targets if target not in there]
    if unknown or not there:
        raise PlanError(
            "the base has no linear layer" + (f" called {unknown[0]!r}" if unknown else ""),
            where="[language] targets",
            fix=f"It has {', '.join(sorted(there))}" if there else "Use method = 'full'",
        )
    wanted = set(language.targets) or there
    chosen = {name: shape for name, shape in linear.items() if name.rpartition(".")[2] in wanted}
    for name, shape in chosen.items():
        if language.rank > min(shape):
            raise PlanError(
                f"rank {language.rank} is larger than layer {name}, which is {shape[0]} x {shape[1]}",
                where="[language] rank",
                fix=f"Write {min(min(each) for each in chosen.values())} or less, or name other targets",
            )
    return tuple(chosen)


def add_adapters(base: nn.Module, language: LanguageSection, layers: tuple[str, ...]) -> None:
    """Put peft's LoRA layers into `base`; A and B are float32, without values yet, and nothing is trainable.

    Raises:
        InputError: peft has no adapter for a layer.
    """
    config = LoraConfig(
        r=language.rank,
        lora_alpha=language.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        target_modules=list(layers),
        lora_dropout=0.0,
        bias="none",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Conv1D, which peft sets right by itself
            inject_adapter_in_model(config, base, adapter_name=_NAME, low_cpu_mem_usage=True)
    except ValueError as error:
        raise InputError(
            "peft has no adapter for a layer of this base", where="[language] targets", fix="Name others"
        ) from error
    base.requires_grad_(False)
    for layer in adapted(base).values():
        device = layer.base_layer.weight.device
        for part in (layer.lora_A, layer.lora_B):
            part.float()
            part.to_empty(device=device)


def adapted(base: nn.Module) -> dict[str, Any]:
    """Return the layers that have adapters, by name, in the base's order."""
    return {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
