"""Whole studies of language models: what is averaged is exact, what goes wrong stays with who it is wrong at."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from tests.runtime.budgets import Noting
from tests.runtime.languageparties import (
    Kind,
    base,
    parties,
    party,
    plan_for,
    schema,
    table,
    unpinned,
)
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import CloisterError, InputError, IntegrityError, PlanError, StorageError
from cloister.learning import Plan, site_weights
from cloister.learning.language.adapter import named_tensors
from cloister.learning.language.card import plan_card
from cloister.learning.modelfiles import PlainFolder
from cloister.learning.torch.language import learner, pretrained
from cloister.learning.torch.language.learner import LanguageLearner
from cloister.runtime import Hub, Party, RoundDone, Study
from cloister.runtime.languageworker import LanguageWorker, preload

SIZES = [12, 15, 9]
QUIET = {"noise_multiplier": 1e-4, "delta": 1e-4, "clip": 1.0, "rate": 1.0, "microbatch": 16}
PERSON = {"unit": "person", "sites_per_unit": 1, "expected_units": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def hub() -> Identity:
    return Identity.generate("hub")


class Seen:
    """What each site trained, round by round: the model it got and what it made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        original = LanguageWorker.train

        def train(worker: LanguageWorker, params: Any, window: Any = None) -> Any:
            trained = original(worker, params, window)
            self.rounds.setdefault(worker._site, []).append((params.copy(), trained.copy()))
            return trained

        monkeypatch.setattr(LanguageWorker, "train", train)

    def mean(self, number: int, sizes: Sequence[int]) -> np.ndarray:
        """The model after a round, computed in the clear."""
        weights = site_weights(list(sizes), "rows")
        got = [self.rounds[f"site{index}"][number] for index in range(len(sizes))]
        updates = [
            w * (after.astype(np.float64) - before) for w, (before, after) in zip(weights, got, strict=True)
        ]
        mean: np.ndarray = got[0][0] + sum(updates) / sum(weights)
        return mean


def unit_of(plan: Plan) -> float:
    return plan.encoding(len(plan.sites)).unit


@pytest.mark.parametrize("kind", ["text-classifier", "causal-lm"])
def test_a_round_is_the_mean_that_the_clear_gives_and_so_is_the_merged_model(
    tmp_path: Path, hub: Identity, folder: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    members = parties(tmp_path, kind, SIZES, folder)
    plan = plan_for(hub, members, kind, folder, training={"rounds": 2})
    result = Study(plan, hub, members).run()
    models = [seen.rounds["site0"][1][0], result.model]
    rounding = 2.0 * unit_of(plan) + 2.0**-23
    for number, model in enumerate(models):
        assert model.dtype == np.float32
        np.testing.assert_allclose(model, seen.mean(number, SIZES), atol=rounding, rtol=1e-6)
    assert np.abs(models[1]).max() > 0.005  # it moved
    # B A with one A for all is linear in B: merging the mean is the mean of what each would have merged
    merged = merges(plan, folder, models[1])
    weights = site_weights(SIZES, "rows")
    ends = [merges(plan, folder, seen.rounds[f"site{index}"][1][1]) for index in range(3)]
    for name, product in merged.items():
        clear = sum(w * each[name] for w, each in zip(weights, ends, strict=True)) / sum(weights)
        np.testing.assert_allclose(product, clear, atol=64 * rounding)
        assert np.abs(clear).max() > 1e-4
    assert result.final_metrics is not None
    expected = (
        {"accuracy", "log_loss", "brier"} if kind == "text-classifier" else {"perplexity", "token_loss"}
    )
    assert set(result.final_metrics[0]) == expected


def merges(plan: Plan, folder: Path, params: np.ndarray) -> dict[str, np.ndarray]:
    """Return B A of every layer, as merging adds it to the base but for the scale."""
    assert plan.language is not None
    empty = LanguageLearner(
        plan.model, plan.language, PlainFolder(folder), scratch=folder.parent, weights=False
    )
    kind: Kind = "text-classifier" if plan.model.classes else "causal-lm"
    named = named_tensors(plan_card(plan, schema(kind)), empty.tensors, empty.frozen, params)
    return {
        name: named[name].astype(np.float64) @ named[name.replace("lora_B", "lora_A")].astype(np.float64)
        for name in named
        if ".lora_B." in name
    }


def test_alternating_rounds_move_one_half_each_and_are_exact_in_it(
    tmp_path: Path, hub: Identity, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    method = {"method": "lora-alternating"}
    plan = plan_for(hub, members, "text-classifier", folder, language=method, training={"rounds": 3})
    study = Study(plan, hub, members)
    facts = study.sites["site0"].shape
    result = study.run()
    models = [each[0] for each in seen.rounds["site0"]] + [result.model]
    assert len(facts.windows) == 2
    for number in range(3):
        start, stop = facts.windows[number % 2]
        moved = np.flatnonzero(models[number + 1] != models[number])
        assert start <= moved.min() <= moved.max() < stop
        np.testing.assert_allclose(
            models[number + 1], seen.mean(number, SIZES), atol=2.0 * unit_of(plan) + 2.0**-23, rtol=1e-6
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"language": {"method": "full", "rank": 0}, "training": {"learning_rate": 0.001}},
        {"aggregation": {"hub_view": "none", "bits": 8, "value_range": 0.0625}},
        pytest.param({"aggregation": {"bits": 16, "value_range": 0.0625}}, marks=pytest.mark.slow),
        pytest.param(
            {"training": {"algorithm": "fedadam", "server_learning_rate": 0.01, "average_last": 2}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"language": {"rows_per_pass": 2, "checkpointing": True, "precision": "bfloat16"}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "none-8", "16", "fedadam", "passes"],
)
def test_every_way_of_a_plan_ends_with_one_model(
    tmp_path: Path, hub: Identity, folder: Path, changes: dict[str, Any]
) -> None:
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    plan = plan_for(hub, members, "text-classifier", folder, **changes)
    study = Study(plan, hub, members)
    result = study.run()
    models = {site.model.released().tobytes() for site in study.sites.values()}
    assert len(models) == 1
    assert np.frombuffer(models.pop(), np.float32).tobytes() == result.model.tobytes()
    assert np.isfinite(result.model).all()
    assert not np.array_equal(result.model, study.sites["site0"].worker.initial)


# --- privacy ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "local"},
        PERSON,
        PERSON | {"adaptive_quantile": 0.5},
    ],
    ids=["distributed", "local", "person", "adaptive"],
)
@pytest.mark.parametrize("method", ["lora", "lora-alternating"])
def test_a_private_study_of_texts(
    tmp_path: Path, hub: Identity, folder: Path, changes: dict[str, Any], method: str
) -> None:
    persons = "unit" in changes
    members = parties(tmp_path, "text-classifier", SIZES, folder, persons=persons)
    plan = plan_for(
        hub,
        members,
        "text-classifier",
        folder,
        privacy={**QUIET, **changes},
        language={"method": method},
        training={"rounds": 2, "local_steps": 2 if changes else 1},
    )
    budgets = {each.identity.name: Noting(each.identity) for each in members}
    world = World(plan, hub, members, budgets=budgets)
    world.start()
    world.run()
    assert world.hub.finished, world.hub.stopped
    models = {site.model.released().tobytes() for site in world.sites.values()}
    assert len(models) == 1
    found, start = np.frombuffer(models.pop(), np.float32), world.sites["site0"].worker.initial
    assert np.isfinite(found).all()
    assert np.abs(found - start).max() > 1e-3
    assert all(each.asked[0] == "admit" for each in budgets.values())


# --- what is wrong ----------------------------------------------------------------------------------------


def world_of(tmp_path: Path, hub: Identity, folder: Path, members: Sequence[Party], **changes: Any) -> World:
    kind: Kind = changes.pop("kind", "text-classifier")
    plan = plan_for(hub, members, kind, folder, **changes)
    return World(plan, hub, members, refusing_leave=True)


def rounds(world: World) -> list[RoundDone]:
    return [event for event in world.events if isinstance(event, RoundDone)]


def test_a_site_out_of_memory_leaves_and_the_others_finish(
    tmp_path: Path, hub: Identity, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trained one round; in the second its memory is gone. The round is done without it."""
    seen, steps = Seen(monkeypatch), learner.local_steps
    world = world_of(tmp_path, hub, folder, parties(tmp_path, "text-classifier", [12, 15, 9, 10], folder))

    def short(vector: Any, passes: Any, examples: Any, *rest: Any, **options: Any) -> None:
        if len(examples) == 15 and len(rounds(world)) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        steps(vector, passes, examples, *rest, **options)

    monkeypatch.setattr(learner, "local_steps", short)
    world.start()
    world.run()
    assert world.hub.finished, world.hub.stopped
    assert "site1" in world.refusals["site1"]
    assert "memory" in world.refusals["site1"]
    assert "rows_per_pass" in world.refusals["site1"]
    assert "CUDA" not in world.refusals["site1"]
    assert [done.survivors for done in rounds(world)] == [
        ("site0", "site1", "site2", "site3"),
        ("site0", "site2", "site3"),
    ]
    # nothing of the last good round is lost, at the one that left either
    np.testing.assert_array_equal(world.sites["site1"].model.params, seen.rounds["site0"][1][0])
    assert world.sites["site1"].rounds == 1
    others = {world.sites[name].model.released().tobytes() for name in ("site0", "site2", "site3")}
    assert len(others) == 1


@pytest.mark.parametrize(
    ("bad", "cause"),
    [("empty", "empty answer"), ("long", "longer than the context")],
)
def test_rows_that_cannot_be_learnt_are_counted_and_not_shown(
    tmp_path: Path, hub: Identity, folder: Path, bad: str, cause: str
) -> None:
    """The site says so when it reads them, and leaves; four sites of the others go on."""
    rows = table("causal-lm", 10, 7)
    answers = rows.column("answer").to_pylist()
    answers[3] = {"empty": " \n", "long": "zebra " * 200}[bad]
    broken = pa.table({"question": rows.column("question"), "answer": answers})
    members = parties(tmp_path, "causal-lm", [12, 15, 9], folder)
    members.append(party(tmp_path, "causal-lm", "site3", broken, folder))
    world = world_of(tmp_path, hub, folder, members, kind="causal-lm")
    world.start()
    world.run()
    assert world.hub.finished, world.hub.stopped
    told = world.refusals["site3"]
    assert "site3" in told
    assert "1 row" in told
    assert "answer" in told
    assert cause in told
    assert "zebra" not in told
    assert all(done.survivors == ("site0", "site1", "site2") for done in rounds(world))


def test_training_that_diverges_is_said_by_its_site(
    tmp_path: Path, hub: Identity, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = parties(tmp_path, "text-classifier", [12, 15, 9, 10], folder)
    world, steps = world_of(tmp_path, hub, folder, members), learner.local_steps

    def diverging(vector: Any, passes: Any, examples: Any, *rest: Any, **options: Any) -> None:
        if len(examples) == 9:
            with torch.no_grad():
                next(iter(vector.names.values())).fill_(torch.nan)
        steps(vector, passes, examples, *rest, **options)

    monkeypatch.setattr(learner, "local_steps", diverging)
    world.start()
    world.run()
    assert world.hub.finished, world.hub.stopped
    assert "site2" in world.refusals["site2"]
    assert "diverged" in world.refusals["site2"]
    assert all(done.survivors == ("site0", "site1", "site3") for done in rounds(world))
    assert np.isfinite(world.sites["site0"].model.released()).all()


def worker(plan: Plan, kind: Kind, folder: Path | None) -> LanguageWorker:
    return LanguageWorker(plan, schema(kind), lambda: table(kind, 8, 0), folder, site="north")


def test_memory_that_ends_where_rows_are_read_names_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, folder = Identity.generate("hub"), base(tmp_path)
    members = parties(tmp_path, "causal-lm", [6, 6, 6], folder)
    held = worker(plan_for(hub, members, "causal-lm", folder), "causal-lm", folder)

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LanguageLearner, "load", full)
    with pytest.raises(StorageError, match=r"not enough memory.*north.*checkpointing"):
        held.train(np.zeros(held.facts.size, dtype=np.float32))


def test_a_sites_name_that_is_a_word_of_the_error_is_still_named(tmp_path: Path) -> None:
    hub, folder = Identity.generate("hub"), base(tmp_path)
    members = parties(tmp_path, "causal-lm", [6, 6, 6], folder)
    plan, own = plan_for(hub, members, "causal-lm", folder), schema("causal-lm")
    for name in ("a", "start", "st"):  # of letters that stand in words of it
        with pytest.raises(InputError, match="is not given") as raised:
            LanguageWorker(plan, own, lambda: table("causal-lm", 8, 0), None, site=name)
        assert raised.value.where.startswith(f"{name}, "), name


def test_a_torch_that_is_there_and_cannot_be_loaded_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> None:
        raise ImportError("failed to map segment from shared object")

    monkeypatch.setattr(pretrained, "quiet_transformers", full)
    with pytest.raises(InputError, match="installed, and cannot be loaded"):
        preload()


def broken_base(folder: Path, tmp_path: Path, what: str) -> Path:
    copy = tmp_path / what
    shutil.copytree(folder, copy)
    if what == "shard":
        (copy / "model.safetensors").unlink()
    elif what == "pickle":
        (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    elif what == "code":
        config = (copy / "config.json").read_text()
        (copy / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}, ' + config.lstrip()[1:])
    elif what == "tokenizer":
        text = (copy / "tokenizer_config.json").read_text()
        (copy / "tokenizer_config.json").write_text(text.replace("256", "255"))
    return copy


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("shard", "weights|safetensors|base model"),
        ("pickle", "pickle"),
        ("code", "code|base model"),
        ("tokenizer", "base model here is not the one"),
        ("none", "--base DIR"),
    ],
)
def test_a_base_that_is_not_the_plans_is_refused_before_a_row_is_read(
    tmp_path: Path, hub: Identity, folder: Path, what: str, cause: str
) -> None:
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    plan = plan_for(hub, members, "text-classifier", folder)
    given = None if what == "none" else broken_base(folder, tmp_path, what)
    with pytest.raises((InputError, IntegrityError), match=cause) as raised:
        worker(plan, "text-classifier", given)
    assert "north" in str(raised.value)


@pytest.mark.parametrize(
    ("language", "cause"),
    [
        ({"rank": 999}, "rank"),
        ({"context": 100_000}, "context"),
        ({"targets": ("no_such_layer",)}, "no_such_layer|target"),
        ({"base": "a" * 64}, "base model here is not the one"),
        ({"tokenizer": "a" * 64}, "tokenizer here is not the one"),
    ],
)
def test_a_plan_that_the_base_cannot_keep_is_refused(
    tmp_path: Path, hub: Identity, folder: Path, language: dict[str, Any], cause: str
) -> None:
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    plan = unpinned(hub, members, "text-classifier", folder, language=language)
    with pytest.raises(CloisterError, match=cause) as raised:
        worker(plan, "text-classifier", folder)
    assert "north" in str(raised.value)


def test_several_processes_are_refused_behind_walls(tmp_path: Path, hub: Identity, folder: Path) -> None:
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    plan = plan_for(hub, members, "text-classifier", folder)
    with pytest.raises(InputError, match="--worker inside"):
        Study(plan, hub, [replace(each, ranks=2) for each in members], sandboxed=True)


def test_a_hub_needs_to_be_told_of_the_base(tmp_path: Path, hub: Identity, folder: Path) -> None:
    members = parties(tmp_path, "text-classifier", SIZES, folder)
    plan = plan_for(hub, members, "text-classifier", folder)
    public = {each.identity.name: each.identity.public for each in members}
    with pytest.raises(PlanError, match="--base DIR"):
        Hub(plan, hub, public, schema("text-classifier"))
