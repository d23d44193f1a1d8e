# ruff: noqa: E402 - what follows needs torch, which may be absent
"""What a module may not be: each refusal names the layer and the reason. And that the tests behind them bite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from tests.learning.torch.modules import CASES
from tests.learning.torch.reference import clipped_sum, example_gradients, moved, rows_for
from torch import Tensor, nn
from torch.nn import functional

from cloister.errors import InputError
from cloister.learning.torch import TorchPrivate, layers
from cloister.learning.torch.arena import Arena
from cloister.learning.torch.layout import Layout
from cloister.learning.torch.terms import Dense, Term

Shape = tuple[int, ...]


class Rule(nn.Module):
    """Two linear layers, and a rule between them."""

    def __init__(self, rule: Callable[[Rule, Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(features, 4), nn.Linear(4, 2)
        self.free = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(4))
        self.rule = rule

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.rule(self, rows))


def by(rule: Callable[[Rule, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Rule(rule)


class Positions(nn.Module):
    """Embedded tokens and embedded positions."""

    def __init__(self, *, expanded: bool) -> None:
        super().__init__()
        self.token, self.position, self.out = nn.Embedding(4, 3), nn.Embedding(4, 3), nn.Linear(12, 2)
        self.expanded = expanded

    def forward(self, rows: Tensor) -> Tensor:
        at = torch.arange(4)
        if self.expanded:
            at = at.expand(len(rows), 4)
        return self.out((self.token(rows.long()) + self.position(at)).flatten(1))


class Loose(nn.Module):
    """A parameter outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.shift = nn.Linear(4, 2), nn.Parameter(torch.zeros(4))

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(rows + self.shift)


class Squeeze(nn.Module):
    """Forgets that there may be one row only."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.squeeze()


class TimeFolded(nn.Module):
    """Time before the batch, folded into one axis: the axis is not cut into examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(16, 2)

    def forward(self, rows: Tensor) -> Tensor:
        b, t, f = rows.shape
        x = self.inner(rows.transpose(0, 1).reshape(b * t, f))
        return self.out(x.view(t, b, 4).transpose(0, 1).flatten(1))


def without_gradient(self: Rule, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.inner(x)


def overwritten(self: Rule, x: Tensor) -> Tensor:
    hidden = torch.tanh(self.free(x))
    found = self.inner(hidden)
    hidden.mul_(2.0)
    return found + hidden


def no_way_back(self: Rule, x: Tensor) -> Tensor:
    found = torch.sigmoid(self.inner(x))
    kept = found * 1.0
    found.add_(1.0)
    return kept + found


def running(self: Rule, x: Tensor) -> Tensor:
    self.seen.add_(x.mean(0))
    return self.inner(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Shape, str]] = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)),
        (4,),
        r"BatchNorm mixes.*layer 1, BatchNorm1d.*GroupNorm",
    ),
    "batch norm without parameters": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)),
        (4,),
        "BatchNorm mixes",
    ),
    "instance norm with memory": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 2), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(6, 2)
        ),
        (1, 4),
        "running statistics",
    ),
    "lstm": (lambda: nn.Sequential(nn.LSTM(4, 2)), (4,), "not known.*layer 0, LSTM.*DPLSTM"),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, batch_first=True), nn.Flatten(), nn.Linear(24, 2)
        ),
        (4, 6),
        "not known.*self_attn.*DPMultiheadAttention",
    ),
    "bag": (lambda: nn.Sequential(nn.EmbeddingBag(4, 2)), (4,), "not known.*Embedding and a mean"),
    "loose parameter": (Loose, (4,), "not known.*the module itself, Loose"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
        (4,),
        "not known.*ParametrizationList",
    ),
    "renormalised embedding": (
        lambda: nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)),
        (4,),
        "max_norm",
    ),
    "one input for all": (
        lambda: Positions(expanded=False),
        (4,),
        "one input for each example|along one axis",
    ),
    "mean over the batch": (
        by(lambda s, x: s.inner(x - x.mean(0))),
        (4,),
        "one example changes.*layer inner",
    ),
    "attention over the batch": (
        by(lambda s, x: torch.softmax(s.inner(x) @ s.inner(x).T, 1) @ x),
        (4,),
        "one example changes",
    ),
    "order of folded axes": (TimeFolded, (4, 3), "one example changes.*layer inner"),
    "weight used behind the layer's back": (
        by(lambda s, x: functional.linear(s.inner(x), s.inner.weight)),
        (4,),
        "not what autograd finds.*inner.weight",
    ),
    "random": (by(lambda s, x: s.inner(functional.dropout(x, 0.5, True))), (4,), "not what autograd finds"),
    "values kept": (by(running), (4,), "a buffer changes"),
    "input overwritten": (by(overwritten), (4,), "overwritten in place.*layer inner"),
    "no way back": (by(no_way_back), (4,), "cannot go back"),
    "no gradient": (by(without_gradient), (4,), "used without gradients.*layer inner"),
    "scores squeezed": (
        lambda: nn.Sequential(nn.Linear(4, 2), Squeeze()),
        (4,),
        "another number of scores",
    ),
    "calls that depend on the batch": (
        by(lambda s, x: s.inner(s.inner(x)) if len(x) > 3 else s.inner(x)),
        (4,),
        "number of rows decides",
    ),
    "features": (lambda: nn.Linear(5, 2), (4,), "failed with RuntimeError: mat1"),
    "outputs": (lambda: nn.Linear(4, 3), (4,), "returns 3 scores.*1 or 2"),
    "no batch": (by(lambda s, x: s.inner(x).mean(0)), (4,), "one row of scores"),
    "nothing to train": (
        lambda: nn.Linear(4, 2).requires_grad_(False),
        (4,),
        "trainable parameters must be there",
    ),
    "half precision": (lambda: nn.Linear(4, 2).bfloat16(), (4,), "float32"),
    "two types": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2).double()), (4,), "float32"),
    "no numbers": (by(lambda s, x: s.inner(x) / torch.zeros(1)), (4,), "no finite gradient"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    factory, shape, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        TorchPrivate(factory, classes=2, shape=shape)


def test_a_module_that_calls_other_layers_for_other_rows_is_stopped() -> None:
    private = TorchPrivate(
        by(lambda s, x: s.inner(s.inner(x)) if x.max() > 10 else s.inner(x)), classes=2, shape=4
    )
    X = np.full((3, 4), 20.0)
    with pytest.raises(InputError, match="the same way for every batch"):
        list(private.clipped_sums(private.initial(0), X, np.zeros(3), 1.0, 3))


def test_what_a_module_says_of_real_rows_is_not_repeated() -> None:
    def rule(module: Rule, x: Tensor) -> Tensor:
        if x.max() > 10:
            raise ValueError(f"cannot take {x.max()}")
        return module.inner(x)

    private = TorchPrivate(by(rule), classes=2, shape=4)
    with pytest.raises(InputError, match="failed with ValueError") as caught:
        list(private.clipped_sums(private.initial(0), np.full((1, 4), 77.0), np.zeros(1), 1.0, 1))
    assert "77" not in str(caught.value)


def test_dropout_does_nothing() -> None:
    private = TorchPrivate(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)), classes=2, shape=4
    )
    X, y = rows_for((4,), 2, 5)
    a, b = (next(private.clipped_sums(private.initial(0), X, y, 1.0, 5)) for _ in range(2))
    assert a.tobytes() == b.tobytes()


def opacus_modules() -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    opacus = pytest.importorskip("opacus.layers", reason="needs the extra torch")

    class Recurrent(nn.Module):
        def __init__(self, kind: type[nn.Module], batch_first: bool, **options: object) -> None:
            super().__init__()
            self.inner = kind(3, 5, batch_first=batch_first, **options)
            self.out = nn.Linear(10 if options else 5, 2)
            self.time = 1 if batch_first else 0

        def forward(self, rows: Tensor) -> Tensor:
            found, _ = self.inner(rows if self.time else rows.transpose(0, 1))
            return self.out(found.mean(self.time))

    class Attention(nn.Module):
        def __init__(self, batch_first: bool, **options: object) -> None:
            super().__init__()
            self.inner = opacus.DPMultiheadAttention(6, 2, batch_first=batch_first, **options)
            self.out = nn.Linear(6, 2)
            self.time = 1 if batch_first else 0

        def forward(self, rows: Tensor) -> Tensor:
            x = rows if self.time else rows.transpose(0, 1)
            return self.out(self.inner(x, x, x)[0].mean(self.time))

    def normed(norm: nn.Module) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(64, 2))

    return {
        "rms norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2)), (4,)),
        "instance norm": (normed(nn.InstanceNorm2d(4, affine=True)), (1, 6, 6)),
        "lstm": (lambda: Recurrent(opacus.DPLSTM, True), (4, 3)),
        "lstm, time first": (lambda: Recurrent(opacus.DPLSTM, False), (4, 3)),
        "gru, both ways": (lambda: Recurrent(opacus.DPGRU, True, bidirectional=True), (4, 3)),
        "attention": (lambda: Attention(True), (4, 6)),
        "attention, time first, with biases": (lambda: Attention(False, add_bias_kv=True), (4, 6)),
    }


@pytest.mark.filterwarnings("ignore")  # of Opacus's and torch.func's own
def test_layers_that_opacus_knows_agree_with_vmap() -> None:
    for name, (factory, shape) in opacus_modules().items():
        private = TorchPrivate(factory, classes=2, shape=shape)
        X, y = rows_for(shape, 2, 7)
        params = moved(private)
        private.predict(params, X)
        found = example_gradients(private.module, torch.tensor(X, dtype=torch.float32), torch.tensor(y), 2)
        clip = float(found.norm(dim=1).median())
        (ours,) = private.clipped_sums(params, X, y, clip, 7)
        np.testing.assert_allclose(ours, clipped_sum(found, clip), atol=2e-4 * clip, err_msg=name)


def wrong(kind: type[nn.Module], change: Callable[[dict[str, Term], Tensor], None]) -> layers.Sampler:
    right = layers._KNOWN[kind]

    def sample(
        layer: nn.Module, inputs: Tensor, residuals: Tensor, layout: Layout, arena: Arena
    ) -> dict[str, Term]:
        terms = right(layer, inputs, residuals, layout, arena)
        change(terms, residuals)
        return terms

    return sample


def no_bias(terms: dict[str, Term], _: Tensor) -> None:
    terms.pop("bias", None)


def halved(terms: dict[str, Term], _: Tensor) -> None:
    terms["bias"] = Dense(terms["bias"].dense() / 2)


def mean_instead_of_sum(terms: dict[str, Term], residuals: Tensor) -> None:
    terms["bias"] = Dense(terms["bias"].dense() / len(residuals))


def batch_sum(terms: dict[str, Term], _: Tensor) -> None:
    each = terms["bias"].dense()
    terms["bias"] = Dense(each.mean(0, keepdim=True).expand_as(each).contiguous())


@pytest.mark.parametrize("change", [no_bias, halved, mean_instead_of_sum, batch_sum])
@pytest.mark.parametrize(
    ("kind", "case"), [(nn.Linear, "transformer"), (nn.Conv2d, "conv2d"), (nn.GroupNorm, "group norm")]
)
def test_a_wrong_formula_for_a_layer_is_found_before_rows_are(
    kind: type[nn.Module], case: str, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layers._KNOWN, kind, wrong(kind, change))
    chosen = CASES[case]
    with pytest.raises(InputError, match="not what autograd finds"):
        TorchPrivate(chosen.factory, classes=chosen.classes, shape=chosen.shape)


def test_a_norm_that_comes_out_too_small_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dense, "squares", lambda self: self.gradients.double().square().sum(1) / 2)
    with pytest.raises(InputError, match="too small"):
        TorchPrivate(CASES["conv2d"].factory, classes=3, shape=CASES["conv2d"].shape)
