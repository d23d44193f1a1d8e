"""What a language model's folder may hold, and what its configuration may ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import InputError
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.modelfiles.folder import check_language_model

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 2}


def model(path: Path, **files: object) -> Path:
    content: dict[str, object] = {
        "config.json": CONFIG,
        "tokenizer.json": {"model": {"vocab": {"auto_map": 1, "quantization_config": 2}}},
        "tokenizer_config.json": {"chat_template": "{% if tools %}<tool_call>{% endif %}"},
        "model.safetensors": b"",
    } | files
    for name, data in content.items():
        if data is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def check(path: Path) -> Any:
    files = PlainFolder(path)
    try:
        return check_language_model(files)
    finally:
        files.close()


def test_a_causal_model(tmp_path: Path) -> None:
    found = check(model(tmp_path))
    assert (found.kind, found.weights, found.pooling, found.template) == (
        "causal",
        ("model.safetensors",),
        "mean",
        "{% if tools %}<tool_call>{% endif %}",
    )
    assert found.tokenizer == ("tokenizer.json", "tokenizer_config.json")


def test_an_encoder_and_its_pooling(tmp_path: Path) -> None:
    found = check(
        model(
            tmp_path,
            **{
                "config.json": {"model_type": "bert", "architectures": ["BertModel"]},
                "modules.json": [{"type": "sentence_transformers.models.Transformer"}, {"type": "x.Pooling"}],
                "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            },
        )
    )
    assert (found.kind, found.pooling) == ("encoder", "cls")


def test_shards(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shards: dict[str, object] = dict.fromkeys(names, b"") | {"model.safetensors": None}
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    found = check(model(tmp_path, **shards, **{"model.safetensors.index.json": index}))
    assert found.weights == tuple(names)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": None}, "no config.json"),
        ({"config.json": CONFIG | {"auto_map": {"AutoModel": "x.Y"}}}, "code of its own"),
        ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["x.Y", None]}}}, "code of its own"),
        ({"generation_config.json": {"custom_generate": "x/y"}}, "code of its own"),
        ({"config.json": CONFIG | {"text_config": {"sub": [{"auto_map": {"a": "b"}}]}}}, "code of its own"),
        ({"config.json": CONFIG | {"quantization_config": {"quant_method": "gptq"}}}, "packages"),
        ({"config.json": CONFIG | {"attn_implementation": "kernels-community/x"}}, "packages"),
        ({"config.json": CONFIG | {"text_config": {"_attn_implementation": "x/y"}}}, "packages"),
        ({"config.json": {"model_type": "llama"}}, "neither"),
        ({"config.json": CONFIG | {"architectures": ["LlavaForConditionalGeneration"]}}, "neither"),
        ({"config.json": CONFIG | {"architectures": ["A", "B"]}}, "neither"),
        ({"config.json": [1]}, "no config.json"),
        ({"config.json": b"{"}, "not JSON"),
        ({"config.json": b"[" * 100_000}, "not JSON"),
        ({"model.safetensors": None}, "weights"),
        ({"model-00001-of-00001.safetensors": b""}, "weights"),
        ({"model.safetensors.index.json": {"weight_map": {"a": "../x.safetensors"}}}, "weights"),
        ({"model.safetensors.index.json": {}}, "names no file"),
        ({"tokenizer.json": None}, "tokenizer"),
        ({"params.json": {}}, "no part"),
        ({"model.gguf": b""}, "no part"),
        ({"other.safetensors": b""}, "no part"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "one vector"),
        ({"1_Pooling/config.json": []}, "one vector"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "one vector"),
        ({"modules.json": {}}, "one vector"),
    ],
)
def test_refused(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(model(tmp_path, **files))


def test_documents_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.learning.modelfiles.folder._MAX_JSON", 10)
    with pytest.raises(InputError, match="larger"):
        check(model(tmp_path))
