"""Studies under differential privacy: the mechanism without its network, what is debited when, who refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.budgets import Noting
from tests.runtime.parties import PURPOSE, parties, plan_for, schema
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import PlanError, PolicyRefused, ProtocolError
from cloister.learning import Plan, PrivacySection, initial_model, plan_model
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.private import PrivateSettings, simulate
from cloister.runtime import Hub, Party
from cloister.runtime.messages import Message, RosterOffer, RoundStart

QUIET = PrivacySection(noise_multiplier=1e-5, delta=1e-4, clip=1.0, rate=1.0)


@pytest.fixture
def hub() -> Identity:
    return Identity.generate("hub")


def private_plan(
    hub: Identity, members: Sequence[Party], privacy: PrivacySection = QUIET, **changes: Any
) -> Plan:
    training = {"batch": 48, "local_steps": 1, "rounds": 6, **changes.pop("training", {})}
    plan = plan_for(hub, members, training=training, **changes)
    return msgspec.structs.replace(plan, privacy=privacy)


def world_of(plan: Plan, hub: Identity, members: Sequence[Party]) -> tuple[World, dict[str, Noting]]:
    budgets = {each.identity.name: Noting(each.identity) for each in members}
    world = World(plan, hub, members, budgets=budgets)
    world.start()
    return world, budgets


def simulated(plan: Plan, members: Sequence[Party]) -> np.ndarray:
    """The mechanism in one process, without noise."""
    features, model = plan_model(plan, schema())
    parts = [features.transform(each.vault.open("train", purpose=PURPOSE).table()) for each in members]
    terms = PrivacyTerms.of(plan, plan.params(len(members)), private_model(model))
    settings = PrivateSettings(plan.training, 1.0, 1.0, terms.grid, terms.section.microbatch, 0.0, 3)
    return simulate(private_model(model), initial_model(plan, schema()), parts, settings)


@pytest.mark.parametrize("hub_view", ["sum", "none"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam"])
def test_the_model_is_that_of_the_mechanism_without_masks(
    tmp_path: Path, hub: Identity, hub_view: str, bits: int, algorithm: str
) -> None:
    members = parties(tmp_path, [40, 25, 30])
    # everybody is sampled and the noise is next to nothing, so both runs train alike
    noise = 1e-5 if bits == 32 else 0.02
    plan = private_plan(
        hub,
        members,
        msgspec.structs.replace(QUIET, noise_multiplier=noise),
        aggregation={"hub_view": hub_view, "bits": bits},
        # a smaller divisor leaves a clip more units in the narrow ring
        training={"algorithm": algorithm, "l2": 0.01, "average_last": 3, "batch": 48 if bits == 32 else 24},
    )
    world, _ = world_of(plan, hub, members)
    world.run()
    assert world.hub.finished
    models = {site.model.released().tobytes() for site in world.sites.values()}
    assert len(models) == 1
    found = np.frombuffer(models.pop())
    clear = simulated(plan, members)
    assert not np.array_equal(found, clear)  # there is noise
    if algorithm == "fedavg":
        np.testing.assert_allclose(found, clear, atol=12 * noise * 2 / 48 * 0.5 * 6)
    elif bits == 32:
        np.testing.assert_allclose(found, clear, atol=1e-3)


def test_the_ledger_is_asked_before_rows_are_read(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [40, 25, 30])
    world, budgets = world_of(private_plan(hub, members), hub, members)
    world.run(until=lambda: all(noting.asked for noting in budgets.values()))
    assert all(noting.asked == ["admit"] for noting in budgets.values())
    assert all("closed" in repr(site._worker) for site in world.sites.values())
    world.run()
    assert all(noting.asked == ["admit", 0, 1, 2, 3, 4, 5, "close"] for noting in budgets.values())
    assert set(world.hub.debits) == {"site0", "site1", "site2"}


def test_a_site_without_a_ledger_refuses(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [40, 25, 30])
    world = World(private_plan(hub, members), hub, members)
    world.start()
    with pytest.raises(PolicyRefused, match="no ledger"):
        world.run()


def test_a_refusing_ledger_stops_the_site_before_its_first_byte(tmp_path: Path, hub: Identity) -> None:
    class Spent(Noting):
        def enter(self, attempt: int) -> None:
            raise PolicyRefused("the budget is spent")

    members = parties(tmp_path, [40, 25, 30])
    plan = private_plan(hub, members)
    world = World(plan, hub, members, budgets={each.identity.name: Spent(each.identity) for each in members})
    world.start()
    with pytest.raises(PolicyRefused, match="spent"):
        world.run()
    assert all("closed" in repr(site._worker) for site in world.sites.values())


def test_a_delta_that_allows_publishing_a_row_is_refused(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [40, 25, 30])
    plan = private_plan(hub, members, msgspec.structs.replace(QUIET, delta=0.011))
    world, budgets = world_of(plan, hub, members)
    world.run()
    assert world.hub.stopped
    assert "whole row" in world.hub.stopped
    assert not any(noting.asked for noting in budgets.values())


def test_what_a_hub_sees_of_a_site_is_masked_and_noised(tmp_path: Path, hub: Identity) -> None:
    """The integers that one site masks differ from its clipped sum by noise of the variance that is stated."""
    members = parties(tmp_path, [40, 25, 30])
    plan = private_plan(hub, members, msgspec.structs.replace(QUIET, noise_multiplier=5.0))
    world, _ = world_of(plan, hub, members)
    world.run(until=lambda: bool(world.hub.rounds))
    site = world.sites["site0"]
    terms = site._current().terms
    privacy = terms.distributed_noise
    assert privacy is not None
    params = site.model.params
    clean = site._worker.private_sum(params, 1.0, privacy)
    drawn = np.concatenate([privacy.grid.from_ring(site._vector(terms, params)) - clean for _ in range(3000)])
    assert drawn.var() / privacy.share_variance == pytest.approx(1.0, abs=0.09)


@pytest.mark.parametrize("optimiser", ["sgd"])
def test_local_mode_noises_every_step_at_the_site(tmp_path: Path, hub: Identity, optimiser: str) -> None:
    members = parties(tmp_path, [40, 25, 30])
    privacy = PrivacySection(mode="local", noise_multiplier=2.0, delta=1e-4, clip=1.0, rate=0.5)
    plan = private_plan(
        hub, members, privacy, training={"local_steps": 3, "batch": 16, "optimiser": optimiser}
    )
    world, budgets = world_of(plan, hub, members)
    world.run()
    assert world.hub.finished
    terms = world.sites["site0"]._current().terms.privacy
    assert terms is not None
    assert terms.events_hub == terms.events_colluders
    assert terms.events_hub[0].count == plan.attempts * 3
    assert budgets["site0"].asked[0] == "admit"


def test_an_epsilon_that_the_written_noise_does_not_keep_is_refused(tmp_path: Path, hub: Identity) -> None:
    members = parties(tmp_path, [40, 25, 30])
    plan = private_plan(hub, members, msgspec.structs.replace(QUIET, noise_multiplier=1.0, epsilon=1.0))
    with pytest.raises(PlanError, match=r"1 is claimed.*calibrated"):
        PrivacyTerms.of(plan, plan.params(3), private_model(plan_model(plan, schema())[1]))


class Regroup(Hub):
    """A hub that goes on with fewer sites once noise was counted for more."""

    def _send(self, name: str, message: Message) -> None:
        if isinstance(message, RoundStart) and message.attempt == 1:
            terms = self.epochs[-1].terms
            kept = terms.roster.members[:3]
            message = RosterOffer(
                terms.number + 1,
                [member.to_json() for member in kept],
                [terms.manifests[member.name] for member in kept],
                [terms.rows[member.name] for member in kept],
            )
        super()._send(name, message)


def test_a_private_study_has_one_roster_from_its_first_attempt_on(tmp_path: Path, hub: Identity) -> None:
    """The certificate's events, and so its epsilons, are those of one number of noise shares."""
    members = parties(tmp_path, [40, 25, 30, 35])
    budgets = {each.identity.name: Noting(each.identity) for each in members}
    world = World(private_plan(hub, members), hub, members, hub_type=Regroup, budgets=budgets)
    world.start()
    with pytest.raises(ProtocolError, match="roster"):
        world.run()
    assert [noting.asked for noting in budgets.values()] == [["admit", 0]] * 4
