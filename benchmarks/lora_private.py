"""What a private step of a language model costs over a plain one of peft: part of `benchmarks.lora`.

The plain step is peft's: `get_peft_model` over transformers' Llama, A frozen, mean of the tokens and a head,
forward, backward, SGD. The private step is a site's: sampled rows, gradients of single rows by book-keeping,
clipped, rounded to integers, and one site's share of noise. Same base, same rows, one thread; both are timed
in turn, and medians compared.

    python -m benchmarks.lora_private
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, LAYERS, VOCABULARY, CLASSES, RANK = 256, 4, 4096, 77, 8
ROWS, TOKENS = 64, 32
CLIP, NOISE = 1.0, 1.0

_END = "<end>"


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of bytes into a folder, made where it is not there."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([_END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"eos_token": _END, "pad_token": _END}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


def write_base(path: Path) -> None:
    """Write a Llama with random weights and a tokenizer of bytes into a new folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                intermediate_size=2 * HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=512,
                pad_token_id=0,
            )
        )
    model.save_pretrained(path)


def plain_step(path: Path, ids: Any, labels: Any, precision: str) -> Callable[[], object]:
    """Return peft's step of SGD on these rows."""
    import contextlib

    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional
    from transformers import LlamaModel

    model = get_peft_model(
        LlamaModel.from_pretrained(path, dtype=getattr(torch, precision)),
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0),
    )
    for name, each in model.named_parameters():
        if "lora_A" in name:
            each.requires_grad_(False)
    head = torch.nn.Linear(HIDDEN, CLASSES)
    trained = [each for each in [*head.parameters(), *model.parameters()] if each.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-3)
    mask = torch.ones_like(ids)
    narrow = precision == "bfloat16"

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16) if narrow else contextlib.nullcontext():
            states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = functional.cross_entropy(head(pooled), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def private_step(path: Path, ids: Any, labels: Any, precision: Any) -> Callable[[], object]:
    """Return a site's private step on these rows: every one of them is sampled."""
    from cloister.crypto import StreamRandom
    from cloister.learning.language.tokenizer import tokenizer_digest
    from cloister.learning.modelfiles.files import PlainFolder
    from cloister.learning.modelfiles.folder import check_language_model
    from cloister.learning.private import RowSums
    from cloister.learning.sections import LanguageSection, ModelSection
    from cloister.learning.torch.language.examples import joined
    from cloister.learning.torch.language.learner import LanguageLearner
    from cloister.learning.torch.language.private import LanguagePrivate
    from cloister.privacy.mechanisms import DiscreteGaussian, IntegerGrid

    files = PlainFolder(path)
    language = LanguageSection(
        base=files.digest,
        tokenizer=tokenizer_digest(files, check_language_model(files)),
        context=TOKENS,
        rank=RANK,
        alpha=2.0 * RANK,
        precision=precision,
    )
    section = ModelSection(kind="text-classifier", classes=CLASSES)
    with tempfile.TemporaryDirectory() as scratch:
        learner = LanguageLearner(section, language, files, scratch=Path(scratch))
    rows = [row.astype(np.int32) for row in ids.numpy()]
    examples = joined(rows, [np.zeros(TOKENS, np.bool_)] * len(rows), labels.numpy().astype(float), pad=0)
    private = LanguagePrivate(learner, examples)
    start = learner.initial(0)
    private.hold(start)
    params = start.astype(np.float64)
    grid = IntegerGrid.fit(32, batch=len(rows), noise=NOISE)
    sensitivity = grid.sensitivity(private.size, private.float_bound(len(rows)))
    noise = DiscreteGaussian((NOISE * sensitivity) ** 2)
    sums = RowSums(private, [private.rows], rate=1.0, microbatch=len(rows))

    def step() -> None:
        integers = sums.integers(params, clip=CLIP, grid=grid, random=StreamRandom.system())
        noise.add_into(integers)

    return step


def measure(repeats: int = 15, *, precision: str = "float32") -> dict[str, Any]:
    """Return the step_ratio and its conditions; about a second for each repeat.

    Args:
        repeats: of both steps, in turn; the first of each does not count.
        precision: of the base, "float32" or "bfloat16", in both steps.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "base"
            write_base(path)
            rng = np.random.default_rng(0)
            ids = torch.from_numpy(rng.integers(1, VOCABULARY, (ROWS, TOKENS)))
            labels = torch.from_numpy(rng.integers(0, CLASSES, ROWS))
            steps = {
                "plain": plain_step(path, ids, labels, precision),
                "private": private_step(path, ids, labels, precision),
            }
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for step in steps.values():
                step()
            for _ in range(repeats):
                for name, step in steps.items():
                    begin = time.perf_counter()
                    step()
                    seconds[name].append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "step_ratio": medians["private"] / medians["plain"],
        "seconds": medians,
        "conditions": f"Llama {HIDDEN} x {LAYERS}, {precision}, rank {RANK}, {ROWS} rows of {TOKENS} tokens, "
        f"{CLASSES} classes, one thread, {repeats} repeats in turn; with rounding and one site's noise",
    }


if __name__ == "__main__":
    print(json.dumps([measure(), measure(precision="bfloat16")], indent=1))
