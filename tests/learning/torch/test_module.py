# ruff: noqa: E402 - what follows needs torch, which may be absent
"""Start, prediction, losses, plain training of a module."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from tests.learning.torch.modules import CASES, adapted
from tests.learning.torch.reference import rows_for
from torch import nn

from cloister.crypto import StreamRandom
from cloister.errors import InputError, PlanError
from cloister.learning import Model, TrainingSection
from cloister.learning.heads import LogisticHead, SoftmaxHead, SquaredHead
from cloister.learning.private import NumpyPrivate
from cloister.learning.torch import TorchPrivate, build_module, plain_sgd


def twin(
    widths: tuple[int, ...], head: SquaredHead | LogisticHead | SoftmaxHead
) -> tuple[Model, TorchPrivate]:
    """Return a numpy model and the same as a module in double precision."""
    stack: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        stack += [nn.Linear(inputs, outputs), nn.Tanh()]
    classes = 0 if isinstance(head, SquaredHead) else 2 if isinstance(head, LogisticHead) else head.classes
    private = TorchPrivate(lambda: nn.Sequential(*stack[:-1]).double(), classes=classes, shape=widths[0])
    return Model(widths, head, "tanh"), private


def as_torch(model: Model, params: np.ndarray) -> np.ndarray:
    """Return a numpy model's parameters in the order of the module: weights turned."""
    parts = []
    for weights, biases in model._views(params[None]):
        parts += [weights[0].T.reshape(-1), biases[0, 0]]
    return np.concatenate(parts)


@pytest.mark.parametrize("head", [SquaredHead(), LogisticHead(), SoftmaxHead(2), SoftmaxHead(4)], ids=repr)
def test_a_module_does_what_the_same_numpy_model_does(head: SquaredHead | LogisticHead | SoftmaxHead) -> None:
    widths = (5, 7, head.outputs)
    model, private = twin(widths, head)
    rng = np.random.default_rng(0)
    params, X = rng.normal(size=model.size), rng.normal(size=(90, 5))
    y = rng.integers(max(getattr(head, "classes", 2), 2), size=90).astype(float)
    theirs = as_torch(model, params)
    predicted = model.predict(params, X)
    if head == SoftmaxHead(2):
        predicted = predicted[:, 1]  # two classes: the chance of class 1
    np.testing.assert_allclose(private.predict(theirs, X), predicted, atol=1e-12)
    np.testing.assert_allclose(private.losses(theirs, X, y), model.losses(params, X, y), atol=1e-12)
    gradient = model.gradient(params[None], X[None], y[None])[0]
    np.testing.assert_allclose(private.gradient(theirs, X, y), as_torch(model, gradient), atol=1e-12)
    for a, b in zip(
        private.clipped_sums(theirs, X, y, 0.4, 40),
        NumpyPrivate(model).clipped_sums(params, X, y, 0.4, 40),
        strict=True,
    ):
        np.testing.assert_allclose(a, as_torch(model, b), atol=1e-4)
    np.testing.assert_array_equal(private.penalised, as_torch(model, model.penalised) > 0)


def test_the_start_follows_from_the_seed() -> None:
    case = CASES["transformer"]
    private = TorchPrivate(case.factory, classes=3, shape=case.shape, seed=5)
    again = TorchPrivate(case.factory, classes=3, shape=case.shape)
    assert private.initial(5).tobytes() == again.initial(5).tobytes() != again.initial(6).tobytes()
    assert private.initial(0).tobytes() == again.initial(0).tobytes()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    again.initial(7)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_start_is_the_same_everywhere() -> None:
    """A stored digest: other machines and versions must draw the same bits."""

    def factory() -> nn.Module:
        module = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 2), nn.Conv1d(2, 2, 3), nn.GroupNorm(1, 2))
        module.register_buffer("picked", torch.randint(10, (3,)))
        module.register_buffer(
            "noise", torch.cat([torch.rand(2), torch.randn(2), torch.rand_like(torch.ones(2))])
        )
        return module

    module = build_module(factory, 11)
    values = [each.detach().double().flatten() for each in [*module.parameters(), *module.buffers()]]
    digest = hashlib.sha256(torch.cat(values).numpy().astype("<f8").tobytes()).hexdigest()
    assert digest == "5028bde16b9fe3505c06bba397e2baf319067a37bee3441074bb3591b813559d"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randperm(4),
        lambda: torch.bernoulli(torch.ones(2) / 2),
        lambda: torch.rand(2, generator=torch.Generator()),
        lambda: nn.functional.dropout(torch.ones(3), training=True),
    ],
)
def test_numbers_without_a_stable_answer_are_refused(draw: Callable[[], object]) -> None:
    def factory() -> nn.Module:
        draw()
        return nn.Linear(2, 1)

    with pytest.raises(InputError, match="no stable numbers"):
        build_module(factory, 0)


def test_a_factory_that_makes_no_module_is_refused() -> None:
    with pytest.raises(InputError, match="does not return a torch module"):
        build_module(lambda: 3, 0)


def test_frozen_parts_are_left_out_and_named() -> None:
    private = TorchPrivate(adapted, classes=3, shape=6)
    trained = sum(each.numel() for each in private.module.parameters() if each.requires_grad)
    assert private.size == trained < sum(each.numel() for each in private.module.parameters())
    other = TorchPrivate(adapted, classes=3, shape=6, seed=1)
    assert private.fixed_digest != other.fixed_digest
    with pytest.raises(InputError, match="another seed changes what is not trained"):
        private.initial(1)
    before = private.fixed_digest
    X, y = rows_for((6,), 3, 20, vocabulary=11)
    private.gradient(private.initial(0) + 1.0, X, y)
    assert private.fixed_digest == before


def test_a_low_rank_detour_starts_at_nothing() -> None:
    private = TorchPrivate(adapted, classes=3, shape=6)
    start = private.initial(0)
    assert (start == 0).sum() >= 2 * 8 * 2  # the zeros of both detours


def test_plain_training_fits_and_averages() -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(200, 6))
    y = (X[:, 0] > 0).astype(float)
    case = CASES["linear, two scores"]
    private = TorchPrivate(case.factory, classes=2, shape=6)
    training = TrainingSection(rounds=20, batch=20, local_steps=10, learning_rate=0.5, average_last=5)
    random = StreamRandom.from_seed(1, "test")
    found = plain_sgd(private, private.initial(0), X, y, training, insecure_test_random=random)
    assert ((private.predict(found, X) > 0.5) == (y > 0.5)).mean() > 0.95


def test_plain_training_says_when_it_cannot() -> None:
    private = TorchPrivate(lambda: nn.Linear(2, 1), classes=0, shape=2)
    X, y = np.ones((4, 2)), np.ones(4)
    one = {"rounds": 40, "batch": 4, "local_steps": 10}
    with pytest.raises(PlanError, match="diverged"):
        plain_sgd(private, private.initial(0), X, y, TrainingSection(**one, learning_rate=900.0))
    with pytest.raises(PlanError, match="SGD"):
        plain_sgd(
            private, private.initial(0), X, y, TrainingSection(**one, learning_rate=1.0, optimiser="adam")
        )
    with pytest.raises(InputError, match="no rows"):
        plain_sgd(private, private.initial(0), X[:0], y[:0], TrainingSection(**one, learning_rate=1.0))
