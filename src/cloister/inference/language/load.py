"""A model's files into an engine. Nothing is fetched, nothing unpickled, and no code of the model's is run.

1. `check_language_model`: the files are those of a language model, and ask for nothing of their own.
2. The configuration becomes an object of a class that transformers has itself.
3. The tokenizer's files are written to a scratch folder, for its loader reads files, and removed again.
4. The weights become tensors one by one; every parameter of the model is among them, and no more.
5. Memory for keys and values is taken now, and two prompts of our own are answered at once: what does not
   fit, or cannot be batched, fails here and not at a client's request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.errors import InputError
from cloister.inference.application import LanguageEngine
from cloister.learning.modelfiles.files import ModelFiles
from cloister.learning.modelfiles.folder import LanguageModel, check_language_model

if TYPE_CHECKING:
    from cloister.inference.language.words import Words

__all__ = ["load_engine", "preload"]


def preload() -> None:
    """Import what loading and generating need, where `.py` files can still be read; it takes seconds.

    Raises:
        InputError: torch or transformers is not installed.
    """
    try:
        from cloister.learning.torch.language.pretrained import quiet_transformers

        quiet_transformers()
        from cloister.inference.language import engine  # noqa: F401
    except ImportError:
        raise InputError("language models need torch and transformers", fix="Install cloister[llm]") from None


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
    from cloister.learning.torch.language.pretrained import configuration, end_ids, pretrained, tokenizer

    torch.set_num_threads(threads)
    config = configuration(found)  # 2
    words = Words(tokenizer(files, found, scratch))  # 3
    model = pretrained(files, found, config)  # 4
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


def _context(config: Any, found: LanguageModel, words: Words, kv_tokens: int) -> int:
    """Return the most tokens the model was made for; an encoder may have fewer places than it says."""
    most = int(getattr(config.get_text_config(), "max_position_embeddings", None) or kv_tokens)
    return min(most, words.longest) if found.kind == "encoder" else most
