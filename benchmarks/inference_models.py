"""Models to serve in benchmarks: a transformer of 103 million random parameters, a table model of frauds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloister.inference import ModelArtifact, ModelCard
from cloister.learning import DataSection, FeatureMap, build_model
from cloister.learning.sections import ModelSection
from cloister.vault import load_schema

FEATURES = 30
_VOCABULARY = 24_000


def make_language_model(folder: Path) -> int:
    """Write a transformer with its tokenizer; return its number of parameters, at least 100 million."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # every token is a word of its own, so that each one makes text
    words = {"<unk>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, _VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    special = {"unk_token": "<unk>", "eos_token": "<eos>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, safe_serialization=True)
    return sum(each.numel() for each in model.parameters())


def make_table_model() -> ModelArtifact:
    """Return a logistic model of fraud over 30 numbers, its parameters made up."""
    columns = "".join(f'[columns.x{n:02d}]\ntype = "number"\nbounds = [-4.0, 4.0]\n' for n in range(FEATURES))
    schema = load_schema(f'{columns}[columns.fraud]\ntype = "boolean"\nrole = "label"\n'.encode())
    model = ModelSection(kind="logistic")
    data = DataSection(
        schema=schema.digest().hex(), features=tuple(f"x{n:02d}" for n in range(FEATURES)), label="fraud"
    )
    features = FeatureMap.build(schema, data, model)
    card = ModelCard("cloister-model/1", "fraud", "0" * 64, 1, model, data.features, features)
    size = build_model(model, features.width).size
    return ModelArtifact(card, np.sin(np.arange(size, dtype=np.float64)))
