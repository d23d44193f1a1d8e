"""A base model from its files. Nothing is fetched, nothing unpickled, and no code of the model's is run.

1. The configuration becomes an object of a class that transformers has itself (`configuration`).
2. The tokenizer's files are written to a scratch folder, for its loader reads files, and removed again
   (`tokenizer`).
3. The weights become tensors one by one; every parameter of the model is among them, and no more
   (`pretrained`). `outlined` is the same model without weights, for who only counts.

`check_language_model` of `learning.modelfiles` comes before all of it. Serving and training load a base by
these same steps.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import InputError
from cloister.learning.language.extra import extra_error
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import CONFIG, LanguageModel
from cloister.learning.torch.language.tokenising import is_failure

if TYPE_CHECKING:
    import torch

__all__ = ["configuration", "end_ids", "outlined", "pretrained", "quiet_transformers", "tokenizer"]


def quiet_transformers() -> Any:
    """Import transformers, offline and silent, and return it; it takes seconds the first time.

    Raises:
        InputError: torch or transformers is not installed, or cannot be loaded.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    try:
        import transformers
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401
    except ImportError as error:
        raise extra_error(error) from None
    transformers.utils.logging.set_verbosity(logging.CRITICAL + 1)
    transformers.utils.logging.disable_progress_bar()
    return transformers


def configuration(found: LanguageModel) -> Any:
    """Return the configuration as transformers' own class: step 1.

    Raises:
        InputError: transformers has no such class, or the configuration contradicts itself.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(found.config["model_type"])
    if model_type not in CONFIG_MAPPING:
        raise InputError("transformers does not know this kind of model", where=CONFIG)
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(found.config))
    except Exception as error:
        raise InputError("the model's configuration does not hold together", where=CONFIG) from error


def tokenizer(files: ModelFiles, found: LanguageModel, scratch: Path) -> Any:
    """Return the tokenizer: step 2.

    Args:
        files: of the model.
        found: what they hold.
        scratch: a folder, best in memory; what is written there is removed before this returns.

    Raises:
        InputError: it cannot be loaded, or is none of transformers' fast ones.
        IntegrityError: a file is not what it was.
    """
    from transformers import AutoTokenizer

    place = Path(tempfile.mkdtemp(prefix="tokenizer-", dir=scratch))
    try:
        for name in (*found.tokenizer, CONFIG):
            (place / name).write_bytes(files.read(name))
        loaded = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        if not loaded.is_fast:
            raise ValueError
    except BaseException as error:  # a panic of the tokenizer's is no Exception
        if not is_failure(error):
            raise
        raise InputError(
            "the model's tokenizer cannot be loaded",
            fix="Save it with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return loaded


def pretrained(
    files: ModelFiles, found: LanguageModel, config: Any, *, dtype: torch.dtype | None = None
) -> Any:
    """Return the model with its weights, in evaluation mode, on the CPU: step 3.

    Args:
        files: of the model.
        found: what they hold.
        config: what `configuration` returned.
        dtype: of the parameters; None for the type that most of them have in the files.

    Raises:
        InputError: the weights are not those of the configuration.
        IntegrityError: a file is not what it was.
    """
    from cloister.learning.torch.weights import read_weights

    kind = _kind(found, config)
    weights = read_weights(files, found.weights)
    try:
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype or _dtype(weights),
            attn_implementation=_attention(kind),
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise InputError("the weights do not fit the model's configuration") from error
    missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
    unknown = report["unexpected_keys"] if found.kind == "causal" else ()
    if missing or unknown or report["mismatched_keys"]:
        raise InputError(
            f"the weights are not those of the configuration: {len(missing)} are missing, {len(unknown)} are "
            f"unknown, {len(report['mismatched_keys'])} have another shape",
            fix="Copy the model again",
        )
    return model.eval()


def outlined(found: LanguageModel, config: Any, dtype: torch.dtype) -> Any:
    """Return the model on torch's meta device: names and shapes, no numbers. Raises InputError as above."""
    import torch

    kind = _kind(found, config)
    try:
        with torch.device("meta"):
            model = kind._from_config(config, dtype=dtype, attn_implementation=_attention(kind))
    except Exception as error:
        raise InputError("the model's configuration does not hold together", where=CONFIG) from error
    return model.eval()


def end_ids(files: ModelFiles, found: LanguageModel) -> tuple[int, ...]:
    """Return the ids of tokens that end an answer: generation_config.json's, or else config.json's."""
    import msgspec

    written: object = None
    if "generation_config.json" in files.names:
        document = msgspec.json.decode(files.read("generation_config.json"))
        written = document.get("eos_token_id") if isinstance(document, dict) else None
    if written is None:
        written = found.config.get("eos_token_id")
    ids = written if isinstance(written, list) else [written]
    return tuple(sorted({one for one in ids if isinstance(one, int) and one >= 0}))


def _kind(found: LanguageModel, config: Any) -> Any:
    """Return the class of transformers' that the model is."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if found.kind == "causal" else MODEL_MAPPING
    if type(config) not in mapping:
        raise InputError("transformers has no such model for text", where=CONFIG)
    return mapping[type(config)]


def _attention(kind: Any) -> str:
    return "sdpa" if kind._supports_sdpa else "eager"


def _dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Return the type that most parameters have in the files, whatever the configuration says."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        raise InputError("the weights hold no numbers to compute with", fix="Copy the model again")
    return max(sizes, key=sizes.__getitem__)
