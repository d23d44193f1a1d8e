"""A released language model as files that other software reads: peft's, or transformers' own.

    lora              adapter_model.safetensors, adapter_config.json     PeftModel.from_pretrained(base, DIR)
    full, causal-lm   model.safetensors and the base's other files       AutoModelForCausalLM.from_pretrained
    full, classifier  the same without an output layer                   AutoModel.from_pretrained
    text-classifier   in addition head.safetensors: weight and bias of a linear layer over the mean of a
                      text's tokens in the last layer; neither peft nor transformers has such a head, so
                      classes.json says the classes' names and how it is read

Names of the layers are written out, so that no other layer gets an adapter. What the head takes off a text's
vector (`learning.torch.language.standing`) is folded into its weight and bias, for which the base is needed.
What leaves this way has no certificate any more: whoever takes it further has the numbers alone, in the
clear.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from cloister.errors import InputError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.language.adapted import check_base, folded_head
from cloister.learning.language.adapter import HEAD, layer_of
from cloister.learning.modelfiles.files import ModelFiles

__all__ = ["ADAPTER_CONFIG", "ADAPTER_MODEL", "exported"]

ADAPTER_MODEL: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_TORCH: Final = {"format": "pt"}  # what transformers and peft look for


def exported(artifact: AdapterArtifact, base: ModelFiles | None = None) -> dict[str, bytes]:
    """Return name -> content of the files.

    Args:
        artifact: the released model.
        base: files of its base; needed where the whole of it was trained, and for a text-classifier.

    Raises:
        InputError: the base is needed, and not given, or cannot be loaded.
        IntegrityError: it is not the one that the model was trained on.
    """
    rest = {name: np.asarray(each) for name, each in artifact.tensors.items() if name not in HEAD}
    files: dict[str, bytes] = {}
    if base is None and not (artifact.generates and artifact.card.adapted):
        raise InputError(
            "this model is exported with what its base tells of itself, which is not given",
            fix="Give the folder of the base: --base DIR",
        )
    if base is not None:
        check_base(artifact, base)
    if artifact.card.adapted:
        files[ADAPTER_MODEL] = save(rest, metadata=_TORCH)
        files[ADAPTER_CONFIG] = _json(_config(artifact))
    elif base is not None:
        files = {name: base.read(name) for name in base.names if not _WEIGHTS.fullmatch(name)}
        files["model.safetensors"] = save(rest, metadata=_TORCH)
    if base is not None and not artifact.generates:
        weight, bias = folded_head(artifact, base)
        files["head.safetensors"] = save({"weight": weight, "bias": bias}, metadata=_TORCH)
        files["classes.json"] = _json(
            {
                "classes": list(artifact.card.texts.class_names),
                "pooling": "mean of the text's tokens in the last layer",
                "scores": "weight @ pooled + bias, then softmax",
            }
        )
    return files


def _config(artifact: AdapterArtifact) -> dict[str, Any]:
    """Return what peft reads; https://huggingface.co/docs/peft, LoraConfig."""
    language = artifact.card.language
    alpha = int(language.alpha) if language.alpha == int(language.alpha) else language.alpha
    layers = sorted({layer_of(name) for name in artifact.tensors if name not in HEAD})
    return {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": language.rank,
        "target_modules": layers,
        "task_type": "CAUSAL_LM" if artifact.generates else "FEATURE_EXTRACTION",
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
