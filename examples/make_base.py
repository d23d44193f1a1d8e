"""Pre-train a small language model on public text, so that the examples run offline and on a laptop.

    python -m examples.make_base --data DIR --out DIR --leave-out banking77 [--seconds 1200]

A real study starts from a base that somebody else trained on the texts of the world; this makes one that
knows a few megabytes, with a tokenizer of its own: byte-level BPE of 4,096 tokens in lower case, and a
Llama of 3.7 million parameters. It learns for 20 minutes and no longer, on as many cores as there are, in
bfloat16 where that is the faster. Files whose name begins with a name that is left out are not read: a
study's rows are no part of its base.

Its folder is named by the digest of the texts and of how it is trained, and is made once: where it is there
already, nothing is done. Two makings are not alike, bit by bit, since time decides where one stops.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Recipe", "find", "make_base", "texts_under"]

TEXT_COLUMNS = ("text", "prompt", "question", "answer", "message")
SPECIAL = ("<pad>", "<s>", "</s>")
PAD, OPEN, END = range(3)

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What is made of the texts.

    Attributes:
        seconds: of training, at most.
        epochs: through all texts, at most.
        vocabulary: tokens of the tokenizer, where the texts have so many.
        hidden, inner, layers, heads: of the model.
        length: tokens of a row in training.
        batch: rows of a step.
        rate: of AdamW at its height.
        seed: of the weights' start and the order of rows.
    """

    seconds: float = 1200.0
    epochs: int = 8
    vocabulary: int = 4096
    hidden: int = 256
    inner: int = 512
    layers: int = 4
    heads: int = 4
    length: int = 128
    batch: int = 32
    rate: float = 3e-3
    seed: int = 0


def find(data: Path, name: str) -> Path:
    """Return the file of that name in a folder, or in its folder "text"."""
    for place in (data / name, data / "text" / name):
        if place.is_file():
            return place
    raise SystemExit(f"there is no {name} in {data} or {data / 'text'}; see the README for where it is from")


def texts_under(folder: Path, leave_out: Sequence[str]) -> list[str]:
    """Return all texts in a folder's files, but of those whose name begins with a name that is left out."""
    texts = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(tuple(leave_out)):
            texts += [text for text in _texts_of(path) if text.strip()]
    return texts


def make_base(
    texts: Sequence[str], cache: Path, recipe: Recipe | None = None, on_progress: OnProgress = print
) -> Path:
    """Return the folder of a base that was trained on these texts; made now, or before.

    Args:
        texts: public ones; none of a study's rows.
        cache: the folder in which bases lie.
        recipe: how it is made.
        on_progress: called with a line now and then.
    """
    recipe = recipe or Recipe()
    place = cache / f"base-{_digest(texts, recipe)[:16]}"
    if place.is_dir():
        on_progress(f"base: {place} is there already")
        return place
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
    try:
        told = _make(texts, unfinished, recipe, on_progress)
        (unfinished / "README.md").write_text(
            f"A small base made by examples/make_base.py from {len(texts)} texts.\n\n{recipe}\n\n{told}\n"
        )
        unfinished.chmod(0o755)
        if not place.is_dir():  # somebody else may have made it meanwhile
            unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _digest(texts: Sequence[str], recipe: Recipe) -> str:
    whole = hashlib.sha256(repr(sorted(asdict(recipe).items())).encode())
    for text in texts:
        whole.update(hashlib.sha256(text.encode()).digest())
    return whole.hexdigest()


def _texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file, by its kind; none where it is of no kind that holds texts."""
    kind = path.name.removesuffix(".gz").lower()
    opened: Any = gzip.open if path.name.endswith(".gz") else open
    if kind.endswith(".csv"):
        with opened(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield "\n".join(row[name] for name in TEXT_COLUMNS if row.get(name))
    elif kind.endswith(".txt"):
        yield from path.read_text(encoding="utf-8").split("\n\n")
    elif kind == "smsspamcollection":
        for line in path.read_text(encoding="utf-8").splitlines():
            yield line.partition("\t")[2]


def _make(texts: Sequence[str], place: Path, recipe: Recipe, on_progress: OnProgress) -> str:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    tokenizer = _tokenizer(texts, recipe)
    ids = np.concatenate(
        [np.array([*one.ids, END]) for one in tokenizer.encode_batch(list(texts))] or [np.zeros(0, np.int64)]
    )
    rows = len(ids) // recipe.length
    if rows < 2:
        raise SystemExit("there is too little text to learn from; check --data and --leave-out")
    blocks = torch.from_numpy(ids[: rows * recipe.length].reshape(rows, recipe.length))
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=max(512, recipe.length),
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=OPEN,
        eos_token_id=END,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    on_progress(f"base: {len(ids):,} tokens in {len(texts):,} texts, {size:,} parameters")
    told = _train(model, blocks, recipe, on_progress)
    logging.disable_progress_bar()
    model.save_pretrained(place)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    )
    wrapped.save_pretrained(place)
    return told


def _tokenizer(texts: Sequence[str], recipe: Recipe) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[OPEN]} $A", special_tokens=[(SPECIAL[OPEN], OPEN)]
    )
    return tokenizer


def _train(model: Any, blocks: Any, recipe: Recipe, on_progress: OnProgress) -> str:
    """Train the model in place; return how it went as a sentence. Time begins here."""
    import torch

    began = said = time.monotonic()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05, betas=(0.9, 0.98))
    half = _half_is_faster(model, blocks[: recipe.batch])
    batches = _batches(len(blocks), recipe)
    steps, smooth, loss = 0, math.nan, math.nan
    last = recipe.epochs * max(1, len(blocks) // recipe.batch)
    while steps < last and (spent := time.monotonic() - began) < recipe.seconds:
        done = max(spent / recipe.seconds, steps / last)
        for group in optimiser.param_groups:
            warm = min(1.0, (steps + 1) / 100, (done * 10) + 0.01)
            group["lr"] = recipe.rate * warm * (0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * done)))
        rows = blocks[next(batches)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            found = model(input_ids=rows, labels=rows).loss
        optimiser.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps, loss = steps + 1, found.item()
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        if time.monotonic() - said > 15.0:
            said = time.monotonic()
            on_progress(
                f"base: {said - began:.0f} of {recipe.seconds:.0f} s, step {steps}, loss {smooth:.2f}"
            )
    tokens = steps * recipe.batch * recipe.length
    told = f"{steps} steps, {tokens:,} tokens, {time.monotonic() - began:.0f} s, loss {smooth:.3f}"
    on_progress(f"base: {told}")
    return told


def _batches(rows: int, recipe: Recipe) -> Iterator[Any]:
    import torch

    random = torch.Generator().manual_seed(recipe.seed)
    while True:
        order = torch.randperm(rows, generator=random)
        yield from order.split(recipe.batch)


def _half_is_faster(model: Any, rows: Any) -> bool:
    """Tell whether a pass in bfloat16 takes less time here than one in float32; of two each, the faster."""
    import torch

    times = {True: math.inf, False: math.inf}
    for half in (True, False, True, False):
        began = time.monotonic()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        model.zero_grad()
        times[half] = min(times[half], time.monotonic() - began)
    return times[True] < times[False]


def main() -> None:
    """Make a base, as the command line says, and print its folder."""
    parser = argparse.ArgumentParser(description="Pre-train a small language model on public text.")
    parser.add_argument("--data", type=Path, required=True, help="folder of texts: .csv, .csv.gz, .txt")
    parser.add_argument("--out", type=Path, required=True, help="folder in which bases lie")
    parser.add_argument("--leave-out", nargs="*", default=[], help="beginnings of names of files not to read")
    parser.add_argument("--seconds", type=float, default=Recipe.seconds, help="of training, at most")
    parser.add_argument("--length", type=int, default=Recipe.length, help="tokens of a row")
    given = parser.parse_args()
    folder = given.data / "text" if (given.data / "text").is_dir() else given.data
    recipe = Recipe(seconds=given.seconds, length=given.length)
    texts = texts_under(folder, given.leave_out)
    print(make_base(texts, given.out, recipe, lambda line: print(line, file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main()
