"""Small tokenizers with the chat templates of several families, made in the test and loaded as a base's are."""

from __future__ import annotations

from pathlib import Path

from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.modelfiles.folder import check_language_model
from cloister.learning.torch.language.words import Words

_ASK = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
_TURN = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
CHATML = "{%- for message in messages %}" + _TURN + "{%- endfor %}" + _ASK
LLAMA = (
    "{{ bos_token }}{%- for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
    + CHATML
)
MISTRAL = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
    "{%- else %}{{ raise_exception('no ' + message.content) }}{%- endif %}{%- endfor %}"
)
THINKING = (  # writes an answer's (empty) thoughts only where it is the last turn
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{ message.content + '<|im_end|>\n' }}{%- endfor %}" + _ASK
)
ENDLESS = (  # no control token ends a turn
    "{%- for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}assistant:{%- endif %}"
)

_SPECIAL = [
    "<|end|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]",
]  # fmt: skip
_TEXTS = [
    "What is the answer to my question?",
    "Hello, how are you today",
    "user assistant system",
    "Grüße 你好 🙂",
]


def make_words(
    path: Path,
    template: str = "",
    *,
    opening: bool = True,
    end: str | None = "</s>",
    texts: tuple[str, ...] = (),
) -> Words:
    """Return a byte-level tokenizer of about 400 tokens, saved to `path` with `template` and loaded again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_TEXTS, *texts], trainer)
    if opening:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|end|>",
        bos_token="<s>",
        additional_special_tokens=_SPECIAL[3:],
    )
    if end:
        wrapped.eos_token = end
    if template:
        wrapped.chat_template = template
    path.mkdir(parents=True)
    wrapped.save_pretrained(path)
    (path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (path / "model.safetensors").write_bytes(b"")
    return open_words(path)


def open_words(path: Path) -> Words:
    """Return the tokenizer of a folder."""
    files = PlainFolder(path)
    try:
        return Words(files, check_language_model(files), path.parent)
    finally:
        files.close()
