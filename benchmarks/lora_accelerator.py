"""A causal language model of 1.2 B parameters on a GPU, where there is one: part of `benchmarks.lora`.

    python -m benchmarks.lora_accelerator [--tiny]

A Llama of the shape of Llama 3.2 1B, with random weights made on the spot, in bfloat16; rank 16 on every
linear layer, A frozen; rows of 512 tokens, all of which count. One after another, medians:

plain     peft and transformers: forward, backward, SGD
study     `LanguageLearner.train`, as a site runs it in a round
private   a site's private step: single rows clipped by book-keeping, rounded

and the peak of the GPU's memory in each. `--tiny` runs the same code on a CPU with a model of a few thousand
parameters, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lora_private import write_tokenizer

__all__ = ["measure"]


@dataclass(frozen=True)
class Shape:
    """Of the base, of the rows, and how often each step is timed."""

    hidden: int = 2048
    inner: int = 8192
    layers: int = 16
    heads: int = 32
    keys: int = 8
    vocabulary: int = 128_256
    rank: int = 16
    rows: int = 8
    tokens: int = 512
    repeats: int = 7


TINY = Shape(32, 64, 2, 4, 2, 300, 2, 4, 16, 1)


def measure(shape: Shape | None = None, device: str = "cuda") -> dict[str, Any] | None:
    """Return ratios, seconds and bytes; None where there is no GPU and none is made do without."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return None
    shape = shape or Shape()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        _write_base(base, shape, device)
        # one model on the device at a time: the peak is its own
        found = {name: _timed(make, base, shape, device) for name, make in STEPS.items()}
    seconds = {name: each[0] for name, each in found.items()}
    peaks = {name: each[1] for name, each in found.items()}
    ratios = {f"{name}_over_plain": seconds[name] / seconds["plain"] for name in ("study", "private")}
    memory = {
        f"{name}_memory": peaks[name] / peaks["plain"] for name in ("study", "private") if peaks["plain"]
    }
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, figures mean nothing"
    return {**ratios, **memory, "seconds": seconds, "peak_bytes": peaks, "device": name, **asdict(shape)}


def _write_base(path: Path, shape: Shape, device: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tokenizer(path)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


def _timed(
    make: Callable[..., Callable[[], object]], base: Path, shape: Shape, device: str
) -> tuple[float, int]:
    """Return the median seconds of a step, and the device's peak bytes."""
    import torch

    gpu = device == "cuda"
    step, times = make(base, shape, device), []
    for turn in range(shape.repeats + 2):
        if turn == 2 and gpu:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize()
        if turn >= 2:
            times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if gpu else 0
    del step
    if gpu:
        torch.cuda.empty_cache()
    return statistics.median(times), peak


def _rows(shape: Shape) -> np.ndarray:
    return np.random.default_rng(0).integers(1, min(shape.vocabulary, 250), (shape.rows, shape.tokens))


def _plain(base: Path, shape: Shape, device: str) -> Callable[[], object]:
    """Return peft's step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device),
        LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank, target_modules="all-linear", lora_dropout=0.0),
    )
    for name, each in model.named_parameters():
        if "lora_A" in name:
            each.requires_grad_(False)
    optimiser = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    ids = torch.from_numpy(_rows(shape)).to(device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def _learner(base: Path, shape: Shape, device: str) -> tuple[Any, Any]:
    """Return the learner of a plan, and the rows."""
    from cloister.learning.language.tokenizer import tokenizer_digest
    from cloister.learning.modelfiles import PlainFolder, check_language_model
    from cloister.learning.sections import LanguageSection, ModelSection
    from cloister.learning.torch.language.examples import joined
    from cloister.learning.torch.language.learner import LanguageLearner

    files = PlainFolder(base)
    language = LanguageSection(
        base=files.digest,
        tokenizer=tokenizer_digest(files, check_language_model(files)),
        context=shape.tokens,
        rank=shape.rank,
        alpha=2.0 * shape.rank,
        precision="bfloat16",
    )
    with tempfile.TemporaryDirectory() as scratch:
        learner = LanguageLearner(
            ModelSection(kind="causal-lm"), language, files, scratch=Path(scratch), device=device
        )
    files.close()
    rows = [row.astype(np.int32) for row in _rows(shape)]
    counted = np.ones(shape.tokens, np.bool_)
    counted[0] = False  # nothing comes before it
    return learner, joined(rows, [counted] * len(rows), np.zeros(len(rows)), pad=0)


def _study(base: Path, shape: Shape, device: str) -> Callable[[], object]:
    """Return a local step as a site takes it in a round of one."""
    from cloister.learning.sections import TrainingSection

    learner, examples = _learner(base, shape, device)
    training = TrainingSection(rounds=1, batch=shape.rows, local_steps=1, learning_rate=1e-3)
    start = learner.initial(0)
    return lambda: learner.train(start, examples, training)


def _private(base: Path, shape: Shape, device: str) -> Callable[[], object]:
    """Return a site's private step on all rows."""
    from cloister.crypto import StreamRandom
    from cloister.learning.private import RowSums
    from cloister.learning.torch.language.private import LanguagePrivate
    from cloister.privacy.mechanisms import IntegerGrid

    learner, examples = _learner(base, shape, device)
    private, start = LanguagePrivate(learner, examples), learner.initial(0)
    private.hold(start)
    grid = IntegerGrid.fit(32, batch=shape.rows, noise=1.0)
    sums = RowSums(private, [private.rows], rate=1.0, microbatch=shape.rows)
    params, random = start.astype(np.float64), StreamRandom.system()
    return lambda: sums.integers(params, clip=1.0, grid=grid, random=random)


STEPS = {"plain": _plain, "study": _study, "private": _private}


if __name__ == "__main__":
    tiny = "--tiny" in sys.argv
    print(json.dumps(measure(TINY, "cpu") if tiny else measure(), indent=1))
