"""What averaging adapters makes of the merged models: exact where A stands still, biased where both move."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import peft  # noqa: E402
import transformers  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402
from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.learning.language.adapter import draw_a  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402

Bases = dict[str, Path]


def adapter(folder: Path, learner: LanguageLearner, params: np.ndarray) -> Path:
    """Write what plain peft loads."""
    cuts = learner.vector.slices
    tensors = {each.name: params[cuts[each.name]].reshape(each.shape) for each in learner.tensors}
    tensors |= {each.name: draw_a(7, each.name, each.shape) for each in learner.frozen}
    folder.mkdir()
    save_file(
        {n: np.ascontiguousarray(t) for n, t in tensors.items() if not n.startswith("head.")},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16.0, "target_modules": list(learner.layers)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def loaded(base: Path, folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own making
        return peft.PeftModel.from_pretrained(model, folder).eval()


def merged(learner: LanguageLearner, params: np.ndarray) -> dict[str, np.ndarray]:
    """Return W + (alpha / rank) B A of every adapted layer, in float64."""
    learner.load(params)
    found = {}
    for name in learner.layers:
        layer = learner.module.base.get_submodule(name)
        a, b = (part["default"].weight.detach().double() for part in (layer.lora_A, layer.lora_B))
        found[name] = (layer.base_layer.weight.detach().double() + layer.scaling["default"] * (b @ a)).numpy()
    return found


def sites(learner: LanguageLearner, window: Any) -> list[np.ndarray]:
    start = learner.initial(7)
    config = made.training(optimiser="adam", learning_rate=5e-3, local_steps=6)
    return [learner.train(start, made.rows(seed=seed), config, window) for seed in (1, 2, 3)]


def gap(learner: LanguageLearner, trained: list[np.ndarray]) -> float:
    """How far the merged average is from the average of the merged, relative to what training changed."""
    mean = np.mean(np.array(trained, dtype=np.float64), axis=0)
    each = [merged(learner, params) for params in trained]
    of_mean, start = merged(learner, mean.astype(np.float32)), merged(learner, learner.initial(7))
    error = sum(float(np.square(of_mean[n] - np.mean([m[n] for m in each], 0)).sum()) for n in start)
    moved = sum(float(np.square(of_mean[n] - start[n]).sum()) for n in start)
    return (error / moved) ** 0.5


def test_the_merged_average_is_the_average_of_the_merged(bases: Bases) -> None:
    learner = made.learner(bases["llama"])
    assert gap(learner, sites(learner, learner.windows[0])) < 1e-6  # float32 of the mean


def test_so_it_is_in_each_round_of_alternating(bases: Bases) -> None:
    learner = made.learner(bases["llama"], method="lora-alternating")
    for window in learner.windows:
        trained = sites(learner, window)
        if window == learner.windows[1]:
            assert all(
                np.array_equal(each, learner.initial(7)) for each in trained
            )  # B is zero: nothing moves
        else:
            assert gap(learner, trained) < 1e-6


def test_where_both_are_trained_it_is_not(bases: Bases) -> None:
    """The bias for which A is frozen: averages of A and B separately are off by a good part of the update."""
    learner = made.learner(bases["llama"], method="lora-alternating")
    assert gap(learner, sites(learner, None)) > 0.02


def test_plain_peft_loads_what_was_trained(bases: Bases, tmp_path: Path) -> None:
    for base in ("llama", "gpt2"):
        learner = made.learner(bases[base])
        params = sites(learner, learner.windows[0])[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # GPT-2's Conv1D, which peft sets right by itself
            model = loaded(bases[base], adapter(tmp_path / base, learner, params))
        ids = torch.from_numpy(made.rows().padded(np.arange(1))[0])
        learner.load(params)
        with torch.no_grad():
            theirs, ours = (
                model(input_ids=ids).logits,
                learner.module(ids, torch.ones_like(ids, dtype=torch.bool)),
            )
            plain = model.merge_and_unload()(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain, theirs, rtol=1e-4, atol=1e-4)
        assert (
            theirs - transformers.AutoModelForCausalLM.from_pretrained(bases[base])(ids).logits
        ).abs().max() > 0.01
