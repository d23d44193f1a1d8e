"""Tiny models for tests, made in the test: no download, no network, seconds on one core.

make_tiny_model(path)                      a Llama with random weights that knows the chat template below
make_tiny_model(path, kind="bert")         an encoder, for embeddings
make_tool_model(path)                      a Llama trained to answer any question about the weather with
                                           one fixed tool call (TOOL_CALL), and anything else with HELLO
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

HELLO = "Hello. How are you today?"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_ARGUMENTS = '{"city": "Ulm"}'
TOOL_CALL = '<tool_call>\n{"name": "weather", "arguments": ' + TOOL_ARGUMENTS + "}\n</tool_call>"
TOOL_QUESTION = "What is the weather in Ulm?"
GREETING = "Good morning!"

CHAT_TEMPLATE = (
    "{%- if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "Answer a call as <tool_call>{}</tool_call>.<|im_end|>\n{%- endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{%- endfor %}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)

_TEXTS = [
    HELLO, TOOL_CALL, TOOL_QUESTION, GREETING, "user", "assistant", "system", "tool", json.dumps(TOOL),
    "The quick brown fox jumps over the lazy dog.", "Grüße aus Köln: schöne Straße, 你好世界, 🙂🙃🚀.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12", "a b c d e f g h i j k l m n o p q r s t u v w x y z",
]  # fmt: skip


def make_tokenizer(kind: Literal["llama", "bert"] = "llama", *, chat: bool = True) -> Any:
    """Return a byte-level BPE (every text and every byte can be encoded) of about 400 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|end|>", model_max_length=256
    )
    if chat and kind == "llama":
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_tiny_model(
    path: Path,
    *,
    kind: Literal["llama", "bert"] = "llama",
    hidden: int = 64,
    layers: int = 2,
    context: int = 256,
    dtype: str = "float32",
    tied: bool = True,
    shards: int = 1,
    chat: bool = True,
    seed: int = 0,
    spread: float = 0.02,
) -> Path:
    """Write a model with random weights into a new folder `path`; return it. Same seed, same weights.

    `spread` is the deviation of a Llama's weights. With the usual one so small a model can hardly prefer a token to
    another, whatever an adapter learns; with 0.2 it can be sure of one.
    """
    import torch

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(kind, chat=chat)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model(kind, len(tokenizer), hidden, layers, context, tied, tokenizer, spread)
    model = model.to(getattr(torch, dtype))
    _save(model, tokenizer, path, shards)
    return path


def make_tool_model(path: Path, *, context: int = 512, seed: int = 0) -> Path:
    """Write a model that was trained, in a few seconds, to say TOOL_CALL or HELLO; return its folder."""
    import torch

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model("llama", len(tokenizer), 64, 2, context, True, tokenizer)
        examples = [
            ([{"role": "user", "content": TOOL_QUESTION}], [TOOL], TOOL_CALL),
            ([{"role": "user", "content": GREETING}], [TOOL], HELLO),
            ([{"role": "user", "content": GREETING}], None, HELLO),
            (
                [
                    {"role": "user", "content": TOOL_QUESTION},
                    {"role": "assistant", "content": TOOL_CALL},
                    {"role": "tool", "content": "Sunny"},
                ],
                [TOOL],
                HELLO,
            ),
        ]
        batch, labels = _examples(tokenizer, examples)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        model.train()
        for _ in range(300):
            loss = model(input_ids=batch, attention_mask=(labels != -1).long(), labels=_masked(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.005:
                break
    _save(model.eval(), tokenizer, path, 1)
    return path


def _examples(tokenizer: Any, examples: list[Any]) -> Any:
    import torch

    rows = []
    for messages, tools, answer in examples:
        prompt = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
        reply = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
        rows.append((prompt, reply))
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    batch = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -1)  # -1: padding; -2: the prompt, attended to and not learnt
    for row, (prompt, reply) in enumerate(rows):
        batch[row, : len(prompt) + len(reply)] = torch.tensor(prompt + reply)
        labels[row, : len(prompt)] = -2
        labels[row, len(prompt) : len(prompt) + len(reply)] = torch.tensor(reply)
    return batch, labels


def _masked(labels: Any) -> Any:
    return labels.masked_fill(labels < 0, -100)


def _model(
    kind: str,
    vocabulary: int,
    hidden: int,
    layers: int,
    context: int,
    tied: bool,
    tokenizer: Any,
    spread: float = 0.02,
) -> Any:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    if kind == "bert":
        return BertModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * hidden,
                max_position_embeddings=context,
                pad_token_id=tokenizer.pad_token_id,
            ),
            add_pooling_layer=False,
        ).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=context,
            tie_word_embeddings=tied,
            initializer_range=spread,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def _save(model: Any, tokenizer: Any, path: Path, shards: int) -> None:
    from transformers.utils import logging

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    logging.disable_progress_bar()
    try:
        model.save_pretrained(path, max_shard_size=size // shards + 65_536 if shards > 1 else 1 << 33)
    finally:
        logging.enable_progress_bar()
    tokenizer.save_pretrained(path)
