"""Bases, plans, adapters and machines that do not work: one sentence each, which names the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.errors import CloisterError, InputError, IntegrityError, PlanError, StorageError  # noqa: E402
from cloister.learning.modelfiles import PlainFolder  # noqa: E402
from cloister.learning.torch.language.examples import joined  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402

Bases = dict[str, Path]


@pytest.fixture
def copy(bases: Bases, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(bases[name], tmp_path / name))


def opened(path: Path, section: Any, language: Any, **options: Any) -> LanguageLearner:
    with closing(PlainFolder(path)) as files:
        return LanguageLearner(section, language, files, scratch=path.parent, **options)


def said(error: CloisterError) -> str:
    """Return the sentence, which has what, where and what to do."""
    assert error.what
    assert error.where or error.fix
    assert "\n" not in str(error)
    return str(error)


def reconfigured(path: Path, **changes: Any) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **changes}))


def lose_shard(path: Path) -> None:
    next(path.glob("model-00002*")).unlink()


def pickle_weights(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def add_code(path: Path) -> None:
    (path / "modeling_mine.py").write_text("raise SystemExit")


def ask_for_code(path: Path) -> None:
    reconfigured(path, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_shard, "weights are missing.*model-00002"),
        (pickle_weights, "pickle runs code"),
        (add_code, "code, which is never run"),
        (ask_for_code, "code of its own"),
    ],
)
def test_a_folder_that_is_no_safe_model(
    copy: Callable[[str], Path], change: Callable[[Path], None], message: str
) -> None:
    path = copy("untied")
    language = made.language(path)
    change(path)
    with pytest.raises(InputError, match=message) as caught:
        opened(path, made.section(), language)
    said(caught.value)


def test_a_lost_tensor(copy: Callable[[str], Path]) -> None:
    path = copy("llama")
    weights = load_file(path / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 are missing"):
        made.learner(path)


def test_another_base_or_tokenizer(bases: Bases) -> None:
    right = made.language(bases["llama"])
    for field, message in (("base", "base model"), ("tokenizer", "tokenizer")):
        wrong = made.language(bases["llama"], **{field: "0" * 64})
        with pytest.raises(IntegrityError, match=f"{message} here is not the one") as caught:
            opened(bases["llama"], made.section(), wrong)
        assert caught.value.where == f"[language] {field}"
        assert ("its tokenizer is the same" in str(caught.value)) == (field == "base")
    elsewhere = made.language(bases["llama"], base="0" * 64, tokenizer="0" * 64)
    with pytest.raises(IntegrityError, match="its tokenizer is another too"):
        opened(bases["llama"], made.section(), elsewhere)
    assert opened(bases["llama"], made.section(), right, weights=False).size


@pytest.mark.parametrize(
    ("base", "classes", "changes", "message"),
    [
        ("llama", 0, {"rank": 33}, r"rank 33 is larger than layer .*_proj.*\[language\] rank"),
        ("llama", 0, {"targets": ("q_proj", "query")}, "no linear layer called 'query'.*It has .*q_proj"),
        ("llama", 0, {"context": 257}, "more than the 256 tokens.*Write 256 or less"),
        ("bert", 3, {"context": 257}, "more than the 256 tokens"),
        ("bert", 0, {}, "predicts no next token"),
    ],
)
def test_a_plan_that_does_not_fit_its_base(
    bases: Bases, base: str, classes: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        made.learner(bases[base], classes=classes, weights=False, **changes)
    said(caught.value)


def test_targets_are_the_ones_asked_for(bases: Bases) -> None:
    learner = made.learner(bases["llama"], targets=("q_proj", "down_proj"), weights=False)
    assert {name.rpartition(".")[2] for name in learner.layers} == {"q_proj", "down_proj"}
    every = made.learner(bases["untied"], weights=False)
    assert len(every.layers) == 2 * 7  # lm_head, the output's, is none of them
    assert len(made.learner(bases["gpt2"], weights=False).layers) == 2 * 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_with_numbers_that_are_none(bases: Bases, value: float) -> None:
    learner = made.learner(bases["llama"])
    params = learner.initial(7)
    params[learner.vector.slices[learner.tensors[1].name].start] = value
    for use in (learner.losses, lambda p, e: learner.train(p, e, made.training())):
        with pytest.raises(InputError, match="not finite") as caught:
            use(params, made.rows())
        assert caught.value.where == learner.tensors[1].name
    with pytest.raises(InputError, match="parameters and 3 were given"):
        learner.losses(params[:3], made.rows())


def test_training_that_diverges(bases: Bases) -> None:
    learner = made.learner(bases["llama"])
    with pytest.raises(PlanError, match="diverged") as caught:
        learner.train(
            learner.initial(7), made.rows(), made.training(learning_rate=1000.0, l2=1000.0, local_steps=12)
        )
    assert "smaller learning rate" in said(caught.value)
    assert np.isfinite(learner.losses(learner.initial(7), made.rows())).all()  # it can be used again


def test_no_rows_and_labels_that_are_none(bases: Bases) -> None:
    learner = made.learner(bases["llama"], classes=3)
    empty = joined([], [], None, pad=0)
    with pytest.raises(InputError, match="no rows to train on"):
        learner.train(learner.initial(7), empty, made.training())
    with pytest.raises(InputError, match="no rows to evaluate on"):
        learner.evaluation_sums(learner.initial(7), empty)
    with pytest.raises(InputError, match="not one of the classes 0 to 2"):
        learner.train(learner.initial(7), made.rows(classes=5), made.training())
    with pytest.raises(InputError, match="generates nothing"):
        learner.generate(learner.initial(7), [[1]], 1)
    with pytest.raises(InputError, match="has no classes"):
        made.learner(bases["llama"]).predict(made.learner(bases["llama"]).initial(7), made.rows())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_machine_that_is_out_of_memory(
    bases: Bases, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = made.learner(bases["llama"], rows_per_pass=3)

    def no_room(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(learner.module, "token_losses", no_room)
    with pytest.raises(StorageError, match="not enough memory") as caught:
        learner.train(learner.initial(7), made.rows(), made.training())
    sentence = said(caught.value)
    assert "rows_per_pass (now 3)" in sentence
    assert "checkpointing = true" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu(bases: Bases) -> None:
    with pytest.raises(InputError, match="no GPU"):
        opened(bases["llama"], made.section(), made.language(bases["llama"]), device="cuda")
    with pytest.raises(InputError, match=r"4 bits needs an NVIDIA GPU.*\[language\] quantised"):
        made.learner(bases["llama"], quantised="nf4")
    auto = opened(bases["llama"], made.section(), made.language(bases["llama"]), device="auto")
    assert auto.vector.flat.device.type == "cpu"
    with pytest.raises(InputError, match="no such device"):
        opened(bases["llama"], made.section(), made.language(bases["llama"]), device="tpu")


def test_tokens_and_places_that_the_base_has_not(bases: Bases) -> None:
    learner = made.learner(bases["gpt2"])
    beyond = joined([np.array([5, 400], np.int32)], [np.array([False, True])], None, pad=0)
    for use in (learner.losses, lambda p, e: learner.train(p, e, made.training())):
        with pytest.raises(InputError, match="beyond the 400 that the base knows"):
            use(learner.initial(7), beyond)
    with pytest.raises(InputError, match="more than the 256 the base was made for"):
        learner.generate(learner.initial(7), [[5] * 250], 7)


def test_a_window_that_cuts_a_tensor(bases: Bases) -> None:
    learner = made.learner(bases["llama"])
    with pytest.raises(InputError, match="cuts a tensor"):
        learner.train(learner.initial(7), made.rows(), made.training(), (0, 5))


def test_nothing_is_left_behind_or_fetched(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    with closing(PlainFolder(bases["llama"])) as files:
        LanguageLearner(made.section(), made.language(bases["llama"]), files, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
