"""Studies in the ring of 8 bits: the model is the one in the clear to the ring's rounding, and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.learning.test_tensor_ranges import entry, language_plan
from tests.runtime.parties import PURPOSE, parties, plan_for, schema

from cloister.crypto import Identity
from cloister.errors import PlanError
from cloister.learning import ClientRows, federated_in_clear, initial_model, plan_model
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Tensor, window_of
from cloister.runtime import Study
from cloister.runtime.epoch import terms_of
from cloister.runtime.site import Site
from cloister.secagg import Encoding

SIZES = (40, 25, 30)


@pytest.fixture
def hub() -> Identity:
    return Identity.generate("hub")


def study(tmp_path: Path, hub: Identity, **changes: Any) -> tuple[Study, np.ndarray]:
    """A study with one batch of all rows a step, and the model of the same in the clear."""
    members = parties(tmp_path, SIZES)
    aggregation = {"bits": 8, "value_range": 1.25} | changes.pop("aggregation", {})
    training = {"batch": max(SIZES), "rounds": 1} | changes.pop("training", {})
    plan = plan_for(hub, members, training=training, aggregation=aggregation, **changes)
    features, model = plan_model(plan, schema())
    rows = ClientRows.stack(
        [features.transform(member.vault.open("train", purpose=PURPOSE).table()) for member in members]
    )
    clear = federated_in_clear(model, initial_model(plan, schema()), rows, plan.training)
    return Study(plan, hub, members), clear


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_one_round_is_that_in_the_clear_to_the_rounding(tmp_path: Path, hub: Identity, hub_view: str) -> None:
    world, clear = study(tmp_path, hub, aggregation={"hub_view": hub_view})
    result = world.run()
    unit = Encoding(8, 3, 1.25).unit
    assert unit == 1 / 32
    # each site is off by less than a unit, and the sum is divided by the weights: rows over the largest rows
    bound = 3 * unit / (sum(SIZES) / max(SIZES))
    assert np.max(np.abs(result.model - clear)) < bound
    assert not any(site.clamped for site in world.sites.values())
    assert np.max(np.abs(clear)) > 3 * bound, "the round moved less than its rounding"


def test_many_rounds_end_near_the_one_in_the_clear(tmp_path: Path, hub: Identity) -> None:
    """Roundings are independent and of mean zero, so they do not add up as their bounds do."""
    world, clear = study(tmp_path, hub, training={"rounds": 20, "average_last": 5})
    result = world.run()
    assert np.max(np.abs(result.model - clear)) < 4 * Encoding(8, 3, 1.25).unit
    assert result.final_metrics is not None
    assert result.final_metrics[0]["accuracy"] > 0.8


def test_the_merged_model_is_the_start_and_the_mean_of_what_was_rounded(
    tmp_path: Path, hub: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[np.ndarray] = []
    encode = Encoding.encode

    def note(self: Encoding, *args: Any, **options: Any) -> np.ndarray:
        made = encode(self, *args, **options)
        sent.append(made.view(np.int8) * self.unit)
        return made

    monkeypatch.setattr(Encoding, "encode", note)
    world, _ = study(tmp_path, hub)
    result = world.run()
    assert len(sent) == 3
    merged = initial_model(world.plan, schema()) + sum(sent) / (sum(SIZES) / max(SIZES))
    np.testing.assert_allclose(result.model, merged, rtol=0, atol=1e-15)


def test_a_site_sends_at_most_1_05_bytes_a_parameter(tmp_path: Path, hub: Identity) -> None:
    """Everything that leaves it counts: hellos, manifest, set-up, signatures, shares, all rounds."""
    model = {"kind": "mlp", "hidden": (25_000,), "classes": 2}
    rounds = 10
    members = parties(tmp_path, SIZES)
    plan = plan_for(
        hub,
        members,
        model=model,
        training={"rounds": rounds, "local_steps": 1, "learning_rate": 0.01},
        aggregation={"bits": 8},
        study={"spare_rounds": 0},
    )
    world = Study(plan, hub, members)
    size = world.run().model.size
    assert size >= 100_000
    sent = {name: world._network.carried[name, "hub"] for name in world.sites}
    assert max(sent.values()) <= 1.05 * rounds * size, {name: n / rounds / size for name, n in sent.items()}
    assert min(sent.values()) > rounds * size


def test_an_upload_that_is_asked_for_again_is_the_same_bytes(
    tmp_path: Path, hub: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second rounding under the same masks would show the difference of the two."""
    again: list[bool] = []
    started = Site._on_round_start

    def twice(self: Site, start: Any) -> Any:
        first = started(self, start)
        if start.outcome is None:
            (upload,), (other,) = first, started(self, start)
            again.append(bytes(upload.body) == bytes(other.body))
        return first

    monkeypatch.setattr(Site, "_on_round_start", twice)
    study(tmp_path, hub)[0].run()
    assert again == [True] * 3


TENSORS = (Tensor("a", (3,)), Tensor("b", (4, 2)), Tensor("c", (5,)))


def test_the_terms_of_an_epoch_know_windows_and_ranges() -> None:
    facts = ModelFacts(
        size=16,
        inputs=1,
        loss="tokens",
        classes=0,
        weights=bytes(2),
        start=bytes(64),
        fixed="",
        microbatch=0,
        error=0.0,
        tensors=TENSORS,
        windows=((3, 16), (0, 11)),
        single=True,
    )
    plan = language_plan(entry("b", 0.5) + entry("c", 0.25))
    identities = [Identity.generate(site.name).public for site in plan.sites]
    rows = {site.name: 10 for site in plan.sites}
    manifests = dict.fromkeys(rows, bytes(32))
    terms = terms_of(plan, 0, identities, rows, manifests, facts, facts)
    assert terms.context.bits == 8
    assert terms.vector_size(16) == 13
    assert [window_of(terms.windows, round) for round in range(3)] == [(3, 16), (0, 11), (3, 16)]
    stretches = [
        [(end, grid.value_range) for _, end, grid in terms.encoding_of(round).pieces(0, 13)]
        for round in range(2)
    ]
    assert stretches == [[(8, 0.5), (13, 0.25)], [(3, 8.0), (11, 0.5), (13, 8.0)]]
    assert terms.encoding is terms.encoding_of(0) is terms.encoding_of(2)
    with pytest.raises(PlanError, match="depend on its model"):
        terms_of(plan, 0, identities, rows, manifests)
