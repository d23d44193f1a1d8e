# ruff: noqa: E402 - what follows needs torch, which may be absent
"""The benchmarks of torch modules measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")

from benchmarks import dpsgd_torch, mnist_dp

from cloister.learning.privacy import PrivacyTerms
from cloister.learning.torch import TorchPrivate

ROOT = Path(__file__).resolve().parents[3]


def test_wavelets_see_edges_and_no_brightness() -> None:
    for scale in (0, 1):
        for angle in (0.0, 1.0):
            assert abs(mnist_dp.wavelet(scale, angle).sum()) < 1e-12
    flat = mnist_dp.scattering(np.full((1, 28, 28), 0.5, np.float32))
    assert flat.shape == (1, 81, 7, 7)
    np.testing.assert_allclose(flat[:, 0], 0.5, rtol=1e-5)
    assert flat[:, 1:].max() < 1e-5


def test_the_fixed_layers_see_one_image_at_a_time() -> None:
    images = np.random.default_rng(0).random((5, 28, 28), dtype=np.float32)
    together = mnist_dp.scattering(images)
    for at in range(5):
        np.testing.assert_allclose(
            mnist_dp.scattering(images[at : at + 1])[0], together[at], rtol=1e-5, atol=1e-7
        )


def test_sites_and_test_rows_do_not_overlap() -> None:
    parts, (X, _) = mnist_dp.split(np.arange(10_000), np.zeros(10_000))
    assert [len(rows) for rows, _ in parts] == [800] * 10
    assert len(set(np.concatenate([*(rows for rows, _ in parts), X]).tolist())) == 10_000


def test_the_plan_keeps_its_epsilon() -> None:
    plan, private = mnist_dp.private_plan(), mnist_dp.model()
    terms = PrivacyTerms.of(plan, plan.params(mnist_dp.SITES), private)
    assert private.size == 18_378
    assert 0.99 * mnist_dp.EPSILON < terms.facts.epsilon_hub <= mnist_dp.EPSILON
    assert terms.share_variance * mnist_dp.SITES == pytest.approx(
        (terms.noise_multiplier * terms.sensitivity) ** 2, rel=1e-6
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_lora_trains_the_detours_and_the_last_layer(frozen: bool) -> None:
    module = dpsgd_torch.adapted(first_frozen=frozen)
    names = {
        name.rpartition(".")[0].split(".")[-1] for name, p in module.named_parameters() if p.requires_grad
    }
    assert names == ({"b", "out"} if frozen else {"a", "b", "out"})


def test_both_kinds_of_step_move_the_parameters_alike() -> None:
    """Without noise and with a clip that nothing reaches a private step is a plain one."""
    X, y = torch.rand((12, 784)), torch.randint(10, (12,))
    private = TorchPrivate(dpsgd_torch.mnist_cnn, classes=10, shape=784)
    start = private.initial(0)
    plain = private.gradient(start, X.numpy(), y.numpy())
    (clipped,) = private.clipped_sums(start, X.numpy(), y.numpy(), 1e6, 12)
    np.testing.assert_allclose(clipped / 12, plain, atol=1e-6)


def test_figures_without_data_are_null_with_a_reason() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CLOISTER_TEST_DATA"}
    command = [sys.executable, "-m", "benchmarks.mnist_dp", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["accuracy"] is None
    assert printed["central"] is None
    assert "no data" in printed["reasons"]["data"]
