"""What is computed with the parameters: losses, predictions, sums, answers; and that rows are left alone."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import msgspec  # noqa: E402
import transformers  # noqa: E402
from tests.learning import plans  # noqa: E402
from tests.learning.torch.language import bases as made  # noqa: E402

from cloister.crypto import StreamRandom  # noqa: E402
from cloister.errors import InputError  # noqa: E402
from cloister.learning.language.adapter import draw_a  # noqa: E402
from cloister.learning.modelfiles import PlainFolder  # noqa: E402
from cloister.learning.torch.language.examples import joined  # noqa: E402
from cloister.learning.torch.language.facts import language_facts  # noqa: E402
from cloister.learning.torch.language.learner import LanguageLearner  # noqa: E402

Bases = dict[str, Path]
DRAWN = "ae94f0362b5fe51f9345827429462aff35bbde89fd245bcf2b25e8e7aebd8214"
START = "f6b207cfbca8856bcb3ad77fb2fb80ba23818f75caa3eb8f8bf36e8fe02677d2"


def moved(learner: LanguageLearner) -> np.ndarray:
    """Parameters of which none is zero."""
    random = StreamRandom.from_seed(3, "moved")
    return learner.initial(7) + 0.02 * random.normal(learner.size).astype(np.float32)


def plain(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, local_files_only=True
    ).eval()


def test_a_seed_draws_the_same_a_everywhere(bases: Bases) -> None:
    """Stored digests: a plan pins its start, and every party must draw these very bits."""
    drawn = draw_a(7, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", (4, 32))
    assert drawn.dtype == np.float32
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == DRAWN
    start = made.learner(bases["llama"], method="lora-alternating", weights=False).initial(7)
    assert hashlib.sha256(start.tobytes()).hexdigest() == START
    assert 0.99 / 32**0.5 < np.abs(drawn).max() <= 1 / 32**0.5


def test_the_start_is_the_base(bases: Bases) -> None:
    """B is zero, so nothing of the base's answers is changed; nor by method "full"."""
    ids = torch.from_numpy(made.rows().padded(np.arange(3))[0])
    with torch.no_grad():
        wanted = plain(bases["llama"])(input_ids=ids).logits
        for method in ("lora", "lora-alternating", "full"):
            learner = made.learner(bases["llama"], method=method)
            learner.load(learner.initial(7))
            found = learner.module(ids, torch.ones_like(ids, dtype=torch.bool))
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_another_seed_starts_elsewhere(bases: Bases) -> None:
    one, other = (made.learner(bases["llama"], weights=False, seed=seed) for seed in (7, 8))
    assert one.fixed != other.fixed
    assert one.fixed != made.learner(bases["llama"], weights=False, alpha=8.0).fixed
    alternating = made.learner(bases["llama"], weights=False, method="lora-alternating")
    assert not np.array_equal(alternating.initial(7), alternating.initial(8))


@pytest.mark.parametrize("method", ["lora", "lora-alternating", "full"])
@pytest.mark.parametrize(("base", "classes"), [("llama", 0), ("llama", 3), ("bert", 2), ("gpt2", 0)])
def test_without_weights_everything_but_computing_is_the_same(
    bases: Bases, base: str, classes: int, method: str
) -> None:
    full = made.learner(bases[base], classes=classes, method=method)
    bare = made.learner(bases[base], classes=classes, method=method, weights=False)
    for name in ("tensors", "frozen", "windows", "size", "fixed", "layers", "kind", "inputs"):
        assert getattr(full, name) == getattr(bare, name), name
    assert np.array_equal(full.penalised, bare.penalised)
    if method != "full":
        assert np.array_equal(full.initial(7), bare.initial(7))
    with pytest.raises(InputError, match="without its numbers"):
        bare.losses(np.zeros(bare.size, np.float32), made.rows(classes=classes))


def test_losses_are_those_of_transformers(bases: Bases) -> None:
    learner, examples = made.learner(bases["untied"]), made.rows()
    model = plain(bases["untied"])
    found = learner.losses(learner.initial(7), examples)
    for row in range(len(examples)):
        ids, counted = (torch.from_numpy(each) for each in examples.padded(np.array([row])))
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids.masked_fill(~counted, -100)).loss
        assert found[row] == pytest.approx(float(mean) * int(counted.sum()), rel=1e-5)
    rows, tokens, nats = learner.evaluation_sums(learner.initial(7), examples)
    assert (rows, tokens) == (len(examples), examples.counted.sum())
    assert nats == pytest.approx(found.sum(), rel=1e-6)


@pytest.mark.parametrize(("base", "classes"), [("llama", 3), ("bert", 3), ("llama", 0), ("gpt2", 0)])
def test_no_row_changes_another(bases: Bases, base: str, classes: int) -> None:
    """Alone, among others, before longer rows, with other tokens beside it: the same to rounding."""
    learner, examples = made.learner(bases[base], classes=classes), made.rows(classes=classes)
    params = moved(learner)
    together = learner.losses(params, examples)
    alone = [learner.losses(params, examples.select(np.array([row])))[0] for row in range(len(examples))]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    inside = np.arange(len(examples.ids)) < examples.starts[1]
    others = replace(examples, ids=np.where(inside, examples.ids, 299 - examples.ids % 200).astype(np.int32))
    changed = learner.losses(params, others)
    assert changed[0] == pytest.approx(together[0], rel=1e-4)
    assert np.abs(changed[1:] - together[1:]).max() > 1e-3


def test_padding_is_never_read(bases: Bases) -> None:
    for base, classes in (("llama", 3), ("bert", 3), ("llama", 0)):
        learner, examples = made.learner(bases[base], classes=classes), made.rows(classes=classes)
        params = moved(learner)
        wanted = learner.losses(params, examples)
        np.testing.assert_allclose(
            learner.losses(params, replace(examples, pad=250)), wanted, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_packed_texts_do_not_see_each_other(bases: Bases, base: str) -> None:
    learner, examples = made.learner(bases[base]), made.rows(6, longest=10)
    params = moved(learner)
    places = np.concatenate([np.arange(n) for n in examples.lengths]).astype(np.int32)
    packed = replace(examples, starts=examples.starts[[0, 3, 6]], labels=np.zeros(2), places=places)
    wanted = learner.losses(params, examples).reshape(2, 3).sum(1)
    np.testing.assert_allclose(learner.losses(params, packed), wanted, rtol=1e-4)
    joined_up = learner.losses(params, replace(packed, places=None))
    assert np.abs(joined_up - wanted).max() > 1e-2


def test_predictions_and_sums_of_a_classifier(bases: Bases) -> None:
    learner, examples = made.learner(bases["bert"], classes=3), made.rows(30, classes=3)
    flat = learner.predict(learner.initial(7), examples)
    np.testing.assert_allclose(flat, 1 / 3, rtol=1e-6)
    params = moved(learner)
    found, labels = learner.predict(params, examples), examples.labels.astype(int)
    np.testing.assert_allclose(found.sum(1), 1.0)
    own = found[np.arange(30), labels]
    np.testing.assert_allclose(-np.log(own), learner.losses(params, examples), rtol=1e-4)
    truth = np.eye(3)[labels]
    sums = learner.evaluation_sums(params, examples)
    wanted = [30, (found.argmax(1) == labels).sum(), -np.log(own).sum(), np.square(found - truth).sum()]
    np.testing.assert_allclose(sums, wanted, rtol=1e-6)
    half = [learner.evaluation_sums(params, examples.select(np.arange(a, a + 15))) for a in (0, 15)]
    np.testing.assert_allclose(half[0] + half[1], sums, rtol=1e-6)


def test_it_learns(bases: Bases) -> None:
    learner, examples = made.learner(bases["llama"], classes=2), made.rows(40, classes=2)
    marked = joined(
        [
            np.concatenate([row, np.full(4, 10 + 10 * int(label), np.int32)])
            for row, label in zip(np.split(examples.ids, examples.starts[1:-1]), examples.labels, strict=True)
        ],
        [np.zeros(n + 4, bool) for n in examples.lengths],
        examples.labels,
        pad=0,
    )
    config = made.training(optimiser="adam", learning_rate=0.02, batch=16, local_steps=120)
    order = StreamRandom.from_seed(1, "order")
    trained = learner.train(learner.initial(7), marked, config, insecure_test_random=order)
    before, after = (learner.evaluation_sums(params, marked)[1] for params in (learner.initial(7), trained))
    assert before <= 0.6 * len(marked)
    assert after >= 0.95 * len(marked)


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_answers_are_those_of_transformers(bases: Bases, base: str) -> None:
    learner, model = made.learner(bases[base]), plain(bases[base])
    prompts = [ids.tolist() for ids in np.split(made.rows().ids, made.rows().starts[1:-1])]
    found = learner.generate(learner.initial(7), prompts, 8)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        ends = [at for at, token in enumerate(wanted) if token in learner._ends]
        assert answer == wanted[: ends[0] if ends else 8]


def test_answers_end_and_are_drawn_by_chance(bases: Bases) -> None:
    learner = made.learner(bases["llama"])
    prompt = [[5, 6, 7]]
    first = learner.generate(learner.initial(7), prompt, 4)[0]
    learner._ends = frozenset({first[0]})
    assert learner.generate(learner.initial(7), prompt, 4) == [[]]
    learner._ends = frozenset()
    drawn = [
        learner.generate(
            learner.initial(7),
            prompt,
            6,
            temperature=5.0,
            insecure_test_random=StreamRandom.from_seed(s, "t"),
        )
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    for wrong in ([[]], [[1], []]):
        with pytest.raises(InputError, match="prompt is empty"):
            learner.generate(learner.initial(7), wrong, 4)


def test_tied_weights_are_one_tensor(bases: Bases) -> None:
    tied, untied = (made.learner(bases[name], method="full") for name in ("llama", "untied"))
    names = [{each.name for each in learner.tensors} for learner in (tied, untied)]
    assert names[1] - names[0] == {"lm_head.weight"}
    trained = tied.train(tied.initial(7), made.rows(), made.training())
    tied.load(trained)
    base = tied.module.base
    assert base.lm_head.weight is base.model.embed_tokens.weight
    cut = tied.vector.slices["model.embed_tokens.weight"]
    assert np.array_equal(base.lm_head.weight.detach().numpy().reshape(-1), trained[cut])
    assert not np.array_equal(trained[cut], tied.initial(7)[cut])


def test_bfloat16_computes_so_and_trains_in_float32(bases: Bases) -> None:
    examples, config = made.rows(classes=3), made.training()
    exact, rough = (made.learner(bases["llama"], classes=3, precision=p) for p in ("float32", "bfloat16"))
    kinds = {
        str(each.dtype) for n, each in rough.module.named_parameters() if "lora" not in n and "head" not in n
    }
    assert kinds == {"torch.bfloat16"}
    assert {each.dtype for each in rough.vector.names.values()} == {torch.float32}
    random = [StreamRandom.from_seed(1, "order") for _ in range(2)]
    start = exact.initial(7)
    one, two = (
        learner.train(start, examples, config, insecure_test_random=stream)
        for learner, stream in zip((exact, rough), random, strict=True)
    )
    a, b = (learner.losses(p, examples) for learner, p in ((exact, one), (rough, two)))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=0.25, atol=0.25)


def test_facts_are_those_of_the_learner(bases: Bases, tmp_path: Path) -> None:
    for method, classes in (("lora", 3), ("lora-alternating", 0), ("full", 3)):
        learner = made.learner(bases["llama"], classes=classes, method=method)
        kind = "text" if classes else "pairs"
        plan = msgspec.structs.replace(
            plans.make_plan(),
            model=made.section(classes),
            language=made.language(bases["llama"], method=method, format=kind),
        )
        with closing(PlainFolder(bases["llama"])) as files:
            facts = language_facts(plan, files, tmp_path)
        for name in ("tensors", "windows", "size", "fixed", "single", "inputs"):
            assert getattr(facts, name) == getattr(learner, name), name
        assert np.array_equal(facts.initial, learner.initial(7))
        assert facts.initial.dtype == np.float32
        assert np.array_equal(facts.penalised, learner.penalised)
        assert facts.loss == ("softmax" if classes else "tokens")
        assert (facts.start == b"") == (method == "lora")
