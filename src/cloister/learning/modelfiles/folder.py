"""Which files a language model may have, and what its configuration may ask for. Nothing here loads anything.

`check_language_model` takes these steps, and refuses what it does not know:

1. every name is known: configuration, tokenizer, safetensors, or sentence-transformers' pooling;
2. each JSON file is an object of at most 64 MiB and names no code (`auto_map` and the like), at any depth;
3. the configuration names one architecture: a causal language model, or an encoder;
4. it asks for no quantisation and no attention kernel of its own: both may load or fetch further packages;
5. the weights are one file, or exactly the files its index names;
6. there is a tokenizer, and a pooling that is known, where one is written.

A chat template is text that transformers renders in Jinja's sandbox; it is as trusted as the weights are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from cloister.errors import InputError
from cloister.learning.modelfiles.files import ModelFiles

__all__ = ["CONFIG", "LanguageModel", "Pooling", "check_language_model"]

CONFIG: Final = "config.json"

Pooling = Literal["mean", "cls", "last"]

_INDEX: Final = "model.safetensors.index.json"
_WHOLE: Final = "model.safetensors"
_POOLING: Final = "1_Pooling/config.json"
_TOKENIZER: Final = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja",
)  # fmt: skip
_OTHER: Final = (
    CONFIG, "generation_config.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", _POOLING,
)  # fmt: skip
_SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_MAX_JSON: Final = 1 << 26
_CODE: Final = frozenset(
    {"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "custom_object"}
)
_KERNELS: Final = frozenset({"quantization_config", "compression_config", "use_kernels", "kernel_config"})
_IMPLEMENTATIONS: Final = ("attn_implementation", "experts_implementation")
_POOLINGS: Final[dict[str, Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES: Final = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What was found.

    Attributes:
        config: config.json, as an object.
        kind: "causal" generates and embeds; "encoder" embeds.
        weights: the safetensors files.
        tokenizer: the files a tokenizer is loaded from.
        pooling: how token vectors become one vector.
        template: the chat template; empty where there is none.
    """

    config: dict[str, object] = field(repr=False)
    kind: Literal["causal", "encoder"]
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...]
    pooling: Pooling
    template: str = field(repr=False)


def check_language_model(files: ModelFiles) -> LanguageModel:
    """Check a model's files before anything is loaded from them.

    Raises:
        InputError: steps 1 to 6 refuse them; the message names the file and what to do.
        IntegrityError: as reading does.
    """
    names = set(files.names)
    _known(names)  # 1
    documents = {name: _document(files, name) for name in files.names if name.endswith(".json")}  # 2
    config = documents.get(CONFIG)
    if not isinstance(config, dict):
        raise InputError("the model has no config.json", fix="Give the folder of a transformers model")
    kind = _kind(config)  # 3
    _plain(config)  # 4
    weights = _weights(names, documents.get(_INDEX))  # 5
    if not names & {"tokenizer.json", "vocab.txt"} and not names >= {"vocab.json", "merges.txt"}:  # 6
        raise InputError(
            "the model has no tokenizer.json",
            fix="Save its tokenizer with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    return LanguageModel(
        config=config,
        kind=kind,
        weights=weights,
        tokenizer=tuple(sorted(names.intersection(_TOKENIZER))),
        pooling=_pooling(documents),
        template=_chat_template(files, documents),
    )


def _known(names: set[str]) -> None:
    for name in sorted(names):
        if name in (*_TOKENIZER, *_OTHER, _INDEX, _WHOLE) or _SHARD.fullmatch(name):
            continue
        raise InputError(
            "the model folder holds a file that is no part of a language model in safetensors",
            where=name,
            fix="Remove it, or copy configuration, tokenizer and model*.safetensors to a folder of their own",
        )


def _document(files: ModelFiles, name: str) -> object:
    """Return a JSON file's content: step 2."""
    if files.size(name) > _MAX_JSON:
        raise InputError(f"a JSON file of the model is larger than {_MAX_JSON} bytes", where=name)
    try:
        value = msgspec.json.decode(files.read(name))
    except (msgspec.DecodeError, RecursionError):
        raise InputError("a file of the model is not JSON", where=name, fix="Copy the model again") from None
    if name != "tokenizer.json":  # its keys are words
        _no_code(value, name)
    return value


def _no_code(value: object, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _CODE and inner:
                raise InputError(
                    f"the model asks for code of its own ({key}), which is never run",
                    where=name,
                    fix="Use a model whose architecture transformers has itself",
                )
            _no_code(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _no_code(inner, name)


def _kind(config: dict[str, object]) -> Literal["causal", "encoder"]:
    """Return what the model is, by its architecture's name: step 3."""
    architectures, model_type = config.get("architectures"), config.get("model_type")
    if isinstance(model_type, str) and isinstance(architectures, list) and len(architectures) == 1:
        architecture = str(architectures[0])
        if architecture.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
        if architecture.endswith(("Model", "ForMaskedLM")):
            return "encoder"
    raise InputError(
        "the model is neither a causal language model nor an encoder of text",
        where=CONFIG,
        fix="Use a model whose config.json names one architecture such as LlamaForCausalLM or BertModel",
    )


def _plain(config: object) -> None:
    """Refuse what may load further packages, or fetch them: step 4."""
    if isinstance(config, dict):
        for key, inner in config.items():
            if inner and (str(key) in _KERNELS or str(key).endswith(_IMPLEMENTATIONS)):
                raise InputError(
                    f"the model's configuration sets {key}, which needs packages that are not here",
                    where=CONFIG,
                    fix="Use the model in bfloat16 or float32, and without this setting",
                )
            _plain(inner)
    elif isinstance(config, list):
        for inner in config:
            _plain(inner)


def _weights(names: set[str], index: object) -> tuple[str, ...]:
    """Return the safetensors files: step 5."""
    there = {name for name in names if name.endswith(".safetensors")}
    if index is None:
        named = {_WHOLE}
    else:
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError("the index of the weights names no file", where=_INDEX)
        named = {str(name) for name in weight_map.values()}
    if there != named:
        missing = sorted(named - there)
        raise InputError(
            "weights are missing" if missing else "there are more weights than there should be",
            where=", ".join((missing or sorted(there - named))[:3]),
            fix="Give model.safetensors alone, or each file the index names and no other",
        )
    return tuple(sorted(there))


def _pooling(documents: dict[str, object]) -> Pooling:
    """Return the pooling that sentence-transformers' files ask for; the mean where there are none."""
    modules = documents.get("modules.json", [])
    known = isinstance(modules, list) and all(
        isinstance(module, dict) and str(module.get("type")).rpartition(".")[2] in _MODULES
        for module in modules
    )
    written = documents.get(_POOLING, {"pooling_mode_mean_tokens": True})
    asked = [
        key
        for key, on in (written.items() if isinstance(written, dict) else ())
        if str(key).startswith("pooling_mode_") and on is True
    ]
    if not known or len(asked) != 1 or asked[0] not in _POOLINGS:
        raise InputError(
            "the model turns tokens into one vector in a way that is not known",
            where=_POOLING,
            fix="Use a model that takes the mean, the first or the last token",
        )
    return _POOLINGS[asked[0]]


def _chat_template(files: ModelFiles, documents: dict[str, object]) -> str:
    if "chat_template.jinja" in files.names and files.size("chat_template.jinja") <= _MAX_JSON:
        return files.read("chat_template.jinja").decode(errors="replace")
    config = documents.get("tokenizer_config.json")
    template = config.get("chat_template", "") if isinstance(config, dict) else ""
    return template if isinstance(template, str) else ""
