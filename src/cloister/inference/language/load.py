"""A model's files into an engine. Nothing is fetched, nothing unpickled, and no code of the model's is run.

1. `check_language_model`: the files are those of a language model, and ask for nothing of their own.
2. The configuration becomes an object of a class that transformers has itself.
3. The tokenizer's files are written to a scratch folder, for its loader reads files, and removed again.
4. The weights become tensors one by one; every parameter of the model is among them, and no more.
5. Memory for keys and values is taken now, and two prompts of our own are answered at once: what does not
   fit, or cannot be batched, fails here and not at a client's request.
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
from cloister.inference.application import LanguageEngine
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import CONFIG, LanguageModel, check_language_model

if TYPE_CHECKING:
    import torch

    from cloister.inference.language.words import Words

__all__ = ["load_engine", "preload"]


def preload() -> None:
    """Import what loading and generating need, where `.py` files can still be read; it takes seconds.

    Raises:
        InputError: torch or transformers is not installed.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    try:
        import transformers
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

        from cloister.inference.language import engine  # noqa: F401
    except ImportError:
        raise InputError("language models need torch and transformers", fix="Install cloister[llm]") from None
    transformers.utils.logging.set_verbosity(logging.CRITICAL + 1)
    transformers.utils.logging.disable_progress_bar()


def load_engine(
    files: ModelFiles, *, name: str, kv_tokens: int, threads: int, scratch: Path
) -> LanguageEngine:
    """Load a model.

    Args:
        files: of the model.
        name: under which clients ask for it.
        kv_tokens: room for keys and values, in tokens of all requests together.
        threads: that compute.
        scratch: a folder in memory, not on a disk; what is written there is removed before this returns.

    Raises:
        InputError: the files are none of a language model that can be served, or it does not fit the memory.
        IntegrityError: a file is not what it was.
    """
    found = check_language_model(files)  # 1
    preload()
    import torch

    from cloister.inference.language.engine import Engine, Loaded
    from cloister.inference.language.tools import tool_format
    from cloister.inference.language.words import Words

    torch.set_num_threads(threads)
    config = _config(found)  # 2
    words = Words(_tokenizer(files, found, scratch))  # 3
    model = _model(files, found, config)  # 4
    loaded = Loaded(
        name=name,
        model=model,
        words=words,
        generates=found.kind == "causal",
        context=_context(config, found, words, kv_tokens),
        vocabulary=int(model.get_input_embeddings().num_embeddings),
        ends=_ends(files, found),
        pooling=found.pooling,
        tools=tool_format(found.template),
    )
    try:
        return Engine(loaded, cache_tokens=kv_tokens)  # 5
    except InputError:
        raise
    except Exception as error:  # a model of another kind may fail in any way
        raise InputError(
            "this model cannot answer many requests at once, or there is no memory for their cache",
            fix=f"Give fewer --kv-tokens than {kv_tokens}, or use a model with plain attention",
        ) from error


def _config(found: LanguageModel) -> Any:
    """Return the configuration as transformers' own class: step 2."""
    from transformers import CONFIG_MAPPING

    model_type = str(found.config["model_type"])
    if model_type not in CONFIG_MAPPING:
        raise InputError("transformers does not know this kind of model", where=CONFIG)
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(found.config))
    except Exception as error:
        raise InputError("the model's configuration does not hold together", where=CONFIG) from error


def _tokenizer(files: ModelFiles, found: LanguageModel, scratch: Path) -> Any:
    """Return the tokenizer: step 3."""
    from transformers import AutoTokenizer

    place = Path(tempfile.mkdtemp(prefix="tokenizer-", dir=scratch))
    try:
        for name in (*found.tokenizer, CONFIG):
            (place / name).write_bytes(files.read(name))
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        if not tokenizer.is_fast:
            raise ValueError
    except Exception as error:
        raise InputError(
            "the model's tokenizer cannot be loaded",
            fix="Save it with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return tokenizer


def _model(files: ModelFiles, found: LanguageModel, config: Any) -> Any:
    """Return the model with its weights: step 4."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    from cloister.learning.torch.weights import read_weights

    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if found.kind == "causal" else MODEL_MAPPING
    if type(config) not in mapping:
        raise InputError("transformers has no such model for text", where=CONFIG)
    kind = mapping[type(config)]
    weights = read_weights(files, found.weights)
    try:
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=_dtype(weights),
            attn_implementation="sdpa" if kind._supports_sdpa else "eager",
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


def _context(config: Any, found: LanguageModel, words: Words, kv_tokens: int) -> int:
    """Return the most tokens the model was made for; an encoder may have fewer places than it says."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or kv_tokens)
    return min(most, words.longest) if found.kind == "encoder" else most


def _dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Return the type that most parameters have in the files, whatever the configuration says."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        raise InputError("the weights hold no numbers to compute with", fix="Copy the model again")
    return max(sizes, key=sizes.__getitem__)


def _ends(files: ModelFiles, found: LanguageModel) -> tuple[int, ...]:
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
