"""Local training is what plain peft and torch do with the same rows in the same steps."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import peft  # noqa: E402
import transformers  # noqa: E402
from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.crypto import StreamRandom  # noqa: E402
from cloister.learning.language.adapter import draw_a  # noqa: E402
from cloister.learning.sampling import Batches  # noqa: E402
from cloister.learning.torch.language.examples import Examples  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402

Bases = dict[str, Path]
A, B = ".lora_A.weight", ".lora_B.weight"


def stream() -> StreamRandom:
    return StreamRandom.from_seed(11, "order of rows")


def tensors(learner: LanguageLearner, params: np.ndarray) -> dict[str, np.ndarray]:
    cuts = learner.vector.slices
    return {each.name: params[cuts[each.name]].reshape(each.shape) for each in learner.tensors}


class Plain:
    """The same model by peft's and transformers' own ways, and a training loop as anybody writes it."""

    def __init__(self, path: Path, learner: LanguageLearner, method: str) -> None:
        kind = transformers.AutoModel if learner.classes else transformers.AutoModelForCausalLM
        options = {"add_pooling_layer": False} if "bert" in path.name else {}
        base = kind.from_pretrained(path, dtype=torch.float32, local_files_only=True, **options).eval()
        self.learner, self.head = learner, None
        if learner.classes:
            self.head = torch.nn.Linear(32, learner.classes)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)
        self.model: Any = base
        if method != "full":
            config = peft.LoraConfig(
                r=4, lora_alpha=16.0, target_modules=list(learner.layers), fan_in_fan_out="gpt2" in path.name
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of peft's own making
                self.model = peft.get_peft_model(base, config).eval()
            for name, each in self.model.named_parameters():
                if ".lora_A." in name:
                    each.data = torch.from_numpy(draw_a(7, name.replace(".default", ""), tuple(each.shape)))
                    each.requires_grad_(method == "lora-alternating")

    def named(self) -> dict[str, torch.nn.Parameter]:
        found = {n.replace(".default", ""): p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.head is not None:
            found |= {f"head.{n}": p for n, p in self.head.named_parameters()}
        return found

    def loss(self, examples: Examples, index: np.ndarray) -> Any:
        ids, counted = (torch.from_numpy(each) for each in examples.padded(index))
        mask = torch.from_numpy(examples.mask(index))
        if self.head is None:
            labels = ids.masked_fill(~counted, -100)
            return self.model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        labels = torch.from_numpy(examples.labels[index].astype(np.int64))
        standing = self.learner.module
        scores = self.head((pooled - standing.centre) / standing.spread)
        return torch.nn.functional.cross_entropy(scores, labels)

    def train(self, examples: Examples, config: Any, moving: tuple[str, ...]) -> dict[str, np.ndarray]:
        named = {name: each for name, each in self.named().items() if name.endswith(moving)}
        groups = [
            {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": config.l2},
            {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.SGD
        optimiser = kind([g for g in groups if g["params"]], lr=config.learning_rate)
        order = Batches(
            np.zeros(1, np.int64),
            np.array([len(examples)]),
            batch=config.batch,
            steps=config.local_steps,
            random=stream(),
        )
        for index in order:
            optimiser.zero_grad()
            self.loss(examples, index[0].copy()).backward()
            optimiser.step()
        return {name: p.detach().numpy().copy() for name, p in self.named().items()}


@pytest.mark.parametrize(
    ("base", "classes", "method", "settings"),
    [
        ("llama", 0, "lora", {"optimiser": "sgd"}),
        ("llama", 0, "lora", {"optimiser": "adam", "learning_rate": 1e-3, "l2": 0.1}),
        ("llama", 3, "lora", {"optimiser": "adam", "learning_rate": 1e-2}),
        ("llama", 0, "full", {"optimiser": "sgd", "l2": 0.01}),
        ("untied", 0, "lora-alternating", {"optimiser": "sgd"}),
        ("bert", 3, "lora", {"optimiser": "sgd", "l2": 0.1}),
        ("bert", 2, "full", {"optimiser": "sgd", "learning_rate": 1e-2}),
        ("gpt2", 0, "lora", {"optimiser": "sgd"}),
    ],
)
def test_an_update_is_that_of_plain_peft(
    bases: Bases, base: str, classes: int, method: str, settings: dict[str, Any]
) -> None:
    learner = made.learner(bases[base], classes=classes, method=method)
    examples, config = made.rows(classes=classes), made.training(**settings)
    plain = Plain(bases[base], learner, method)
    start = learner.initial(7)
    found = tensors(
        learner,
        learner.train(start, examples, config, learner.windows[0], insecure_test_random=stream()),
    )
    moving = (B, "head.weight", "head.bias") if method != "full" else ("",)
    wanted = plain.train(examples, config, moving)
    assert found.keys() == wanted.keys()
    before = tensors(learner, start)
    moved = [np.abs(found[name] - before[name]).max() for name in found if name.endswith(moving)]
    assert max(moved) > 1e-3
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-6 + 1e-3 * max(moved), err_msg=name)


@pytest.mark.parametrize(("base", "classes"), [("llama", 0), ("bert", 3), ("gpt2", 0)])
def test_passes_and_checkpointing_change_nothing_but_rounding(bases: Bases, base: str, classes: int) -> None:
    examples, config = made.rows(classes=classes), made.training()
    whole = made.learner(bases[base], classes=classes)
    start = whole.initial(7)
    wanted = whole.train(start, examples, config, insecure_test_random=stream())
    for settings in (
        {"rows_per_pass": 2},
        {"checkpointing": True},
        {"rows_per_pass": 3, "checkpointing": True},
    ):
        other = made.learner(bases[base], classes=classes, **settings)
        found = other.train(start, examples, config, insecure_test_random=stream())
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_checkpointing_keeps_less_for_the_way_back(bases: Bases) -> None:
    held = []
    for checkpointing in (False, True):
        learner = made.learner(bases["llama"], checkpointing=checkpointing)
        learner.vector.select(learner.windows[0])
        kept = 0

        def pack(tensor: Any) -> Any:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner.passes.losses(made.rows(), np.arange(4))
        held.append(kept)
    assert held[1] < held[0] / 2


def test_under_lora_a_never_moves(bases: Bases) -> None:
    learner = made.learner(bases["llama"])
    still = {name: each for name, each in learner.module.named_parameters() if ".lora_A." in name}
    before = copy.deepcopy({name: each.detach() for name, each in still.items()})
    assert not any(A in each.name for each in learner.tensors)
    learner.train(learner.initial(7), made.rows(), made.training(optimiser="adam", l2=0.5))
    assert still
    assert all(torch.equal(each, before[name]) for name, each in still.items())
    for name, each in still.items():
        drawn = draw_a(
            7, "base_model.model." + name.removeprefix("base.").replace(".default", ""), (4, each.shape[1])
        )
        assert np.array_equal(each.detach().numpy(), drawn)


def test_alternating_moves_one_window_at_a_time(bases: Bases) -> None:
    learner = made.learner(bases["llama"], classes=3, method="lora-alternating")
    examples, config = made.rows(classes=3), made.training()
    start = learner.initial(7)
    start = learner.train(
        start, examples, config, learner.windows[0]
    )  # else B is zero, and A has no gradient
    for number, (first, stop) in enumerate(learner.windows):
        after = learner.train(start, examples, config, (first, stop))
        changed = np.flatnonzero(after != start)
        assert changed.min() >= first
        assert changed.max() < stop
        names = {n for n, w in learner.vector.slices.items() if (after[w] != start[w]).any()}
        assert {n for n in names if n.endswith((A, B))} == {
            each.name for each in learner.tensors if each.name.endswith(A if number else B)
        }
        assert {"head.weight", "head.bias"} <= names


def test_the_order_of_the_vector(bases: Bases) -> None:
    def kinds(**changes: Any) -> str:
        names = [each.name for each in made.learner(bases["llama"], classes=3, **changes).tensors]
        short = "".join("A" if n.endswith(A) else "B" if n.endswith(B) else n[0] for n in names)
        return "".join(c for i, c in enumerate(short) if i == 0 or short[i - 1] != c)

    assert kinds() == "hB"
    assert kinds(method="lora-alternating") == "AhB"
    assert kinds(method="full") == "heln"
    windows = made.learner(bases["llama"], classes=3, method="lora-alternating").windows
    (a, d), (zero, stop) = windows
    assert (zero, stop - a) == (0, 3 * 32 + 3)
    assert d == made.learner(bases["llama"], classes=3, method="lora-alternating").size
