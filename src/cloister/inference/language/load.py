"""A model's files into an engine. Nothing is fetched, nothing unpickled, and no code of the model's is run.

1. `check_language_model`: the files are those of a language model, and ask for nothing of their own.
2. The configuration becomes an object of a class that transformers has itself.
3. The tokenizer's files are written to a scratch folder, for its loader reads files, and removed again.
4. The weights become tensors one by one; every parameter of the model is among them, and no more. A released
   adapter is merged into them, layer by layer; base and tokenizer are those that it was trained on.
5. Memory for keys and values is taken now, and two prompts of our own are answered at once: what does not
   fit, or cannot be batched, fails here and not at a client's request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import InputError
from cloister.inference.application import LanguageEngine
from cloister.inference.language.adapted import check_base, merge
from cloister.learning.language.extra import extra_error
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import LanguageModel, check_language_model

if TYPE_CHECKING:
    from cloister.inference.adapter import AdapterArtifact
    from cloister.inference.language.words import Words

__all__ = ["load_engine", "preload", "preload_adapted"]


def preload() -> None:
    """Import what loading and generating need, where `.py` files can still be read; it takes seconds.

    Raises:
        InputError: torch or transformers is not installed, or cannot be loaded.
    """
    try:
        from cloister.learning.torch.language.pretrained import quiet_transformers

        quiet_transformers()
        from cloister.inference.language import engine  # noqa: F401
    except ImportError as error:
        raise extra_error(error) from None


def preload_adapted() -> None:
    """Import what a released language model needs beside its base; see `preload`.

    Raises:
        InputError: torch, transformers or peft is not installed, or cannot be loaded.
    """
    preload()
    try:
        import peft.tuners.lora  # noqa: F401
        import transformers.pytorch_utils  # noqa: F401

        from cloister.learning.torch.language import learner  # noqa: F401
    except ImportError as error:
        raise extra_error(error) from None


def load_engine(
    files: ModelFiles,
    *,
    name: str,
    kv_tokens: int,
    threads: int,
    scratch: Path,
    adapter: AdapterArtifact | None = None,
) -> LanguageEngine:
    """Load a model.

    Args:
        files: of the model.
        name: under which clients ask for it.
        kv_tokens: room for keys and values, in tokens of all requests together.
        threads: that compute.
        scratch: a folder in memory, not on a disk; what is written there is removed before this returns.
        adapter: a released model that was trained on these files; None to serve them as they are.

    Raises:
        InputError: the files are none of a language model that can be served, or it does not fit the memory.
        IntegrityError: a file is not what it was, or not what the adapter was trained on.
    """
    found = check_language_model(files) if adapter is None else check_base(adapter, files)  # 1
    preload()
    import torch

    from cloister.inference.language.engine import Engine, Loaded
    from cloister.inference.language.tools import tool_format
    from cloister.inference.language.words import Words
    from cloister.learning.torch.language.pretrained import configuration, end_ids, pretrained, tokenizer

    torch.set_num_threads(threads)
    config = configuration(found)  # 2
    words = Words(tokenizer(files, found, scratch), _prompted(adapter, files, found, scratch))  # 3
    whole = adapter is not None and not adapter.card.adapted  # trained in float32, as a whole
    model = pretrained(files, found, config, dtype=torch.float32 if whole else None)  # 4
    if adapter is not None:
        merge(model, adapter)
    loaded = Loaded(
        name=name,
        model=model,
        words=words,
        generates=found.kind == "causal",
        context=_context(config, found, words, kv_tokens),
        vocabulary=int(model.get_input_embeddings().num_embeddings),
        ends=end_ids(files, found),
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


def _prompted(
    adapter: AdapterArtifact | None, files: ModelFiles, found: LanguageModel, scratch: Path
) -> Callable[[str], list[int]] | None:
    """Return what makes a prompt's tokens as training did, for an adapter that learnt pairs."""
    if adapter is None or adapter.card.language.format != "pairs":
        return None
    from cloister.learning.torch.language.words import Words as LearntWords

    return LearntWords(files, found, scratch).prompt


def _context(config: Any, found: LanguageModel, words: Words, kv_tokens: int) -> int:
    """Return the most tokens the model was made for; an encoder may have fewer places than it says."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or kv_tokens)
    return min(most, words.longest) if found.kind == "encoder" else most
