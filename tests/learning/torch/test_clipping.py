# ruff: noqa: E402 - what follows needs torch, which may be absent
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from tests.learning.torch.modules import CASES, Case
from tests.learning.torch.reference import clipped_sum, example_gradients, moved, rows_for

from cloister.learning.torch import TorchPrivate

ROWS = 11


def setting(
    case: Case, dtype: torch.dtype
) -> tuple[TorchPrivate, np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    private = TorchPrivate(lambda: case.factory().to(dtype), classes=case.classes, shape=case.shape)
    X, y = rows_for(case.shape, case.classes, ROWS, vocabulary=case.vocabulary)
    params = moved(private)
    private.predict(params, X)  # sets the parameters
    found = example_gradients(private.module, torch.tensor(X, dtype=dtype), torch.tensor(y), case.classes)
    return private, params, X, y, found


@pytest.mark.parametrize("name", CASES)
def test_summed_clipped_gradient_is_that_of_vmap(name: str) -> None:
    private, params, X, y, found = setting(CASES[name], torch.float64)
    norms = found.norm(dim=1)
    for clip in (float(norms.min()) / 2, float(norms.median()), float(norms.max()) * 2):
        expected = clipped_sum(found, clip)
        (ours,) = private.clipped_sums(params, X, y, clip, ROWS)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6 * ROWS * clip)
        parts = list(private.clipped_sums(params, X, y, clip, 4))
        assert [part.shape for part in parts] == [(private.size,)] * 3
        np.testing.assert_allclose(sum(parts), ours, rtol=0, atol=1e-12 * ROWS * clip)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_agrees_and_no_row_exceeds_the_clip(name: str) -> None:
    private, params, X, y, found = setting(CASES[name], torch.float32)
    clip = float(found.norm(dim=1).min()) * 0.7
    each = np.array(list(private.clipped_sums(params, X, y, clip, 1)))
    expected = (found * (clip / found.norm(dim=1, keepdim=True)).clamp(max=1.0)).numpy()
    np.testing.assert_allclose(each, expected, rtol=0, atol=2e-4 * clip)
    norms = np.linalg.norm(each, axis=1)
    assert (norms <= clip).all()
    assert (norms >= clip * (1 - 2e-4)).all()
