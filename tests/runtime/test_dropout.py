"""Sites that fall silent, at every step of a study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.parties import parties, plan_for
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.runtime import Burnt, RosterAgreed, RoundDone, Stalled, Stopped


def world(tmp_path: Path, sizes: list[int], **changes: dict[str, object]) -> World:
    hub = Identity.generate("hub")
    members = parties(tmp_path, sizes)
    return World(plan_for(hub, members, **changes), hub, members)


def rounds(world: World) -> list[RoundDone]:
    return [event for event in world.events if isinstance(event, RoundDone)]


def all_agree(world: World, names: list[str]) -> None:
    models = [world.sites[name].model.released() for name in names]
    for model in models[1:]:
        np.testing.assert_array_equal(model, models[0])


def test_an_undisturbed_study(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20])
    study.start()
    study.run()
    assert study.hub.finished
    assert [done.survivors for done in rounds(study)] == [("site0", "site1", "site2")] * 3
    all_agree(study, list(study.sites))
    assert study.hub.model is not None
    np.testing.assert_array_equal(study.hub.model.released(), study.sites["site0"].model.released())


@pytest.mark.parametrize("hub_view", ["sum", "none"])
def test_a_site_that_dies_before_its_upload_is_left_out_and_the_study_goes_on(
    tmp_path: Path, hub_view: str
) -> None:
    study = world(tmp_path, [20, 20, 20, 20], aggregation={"hub_view": hub_view})
    study.start()
    study.run(until=lambda: len(rounds(study)) == 1)
    study.lost.add("site2")
    study.run()
    assert study.hub.finished
    assert [done.survivors for done in rounds(study)[1:]] == [("site0", "site1", "site3")] * 2
    all_agree(study, ["site0", "site1", "site3"])


def test_a_site_that_dies_after_its_upload_stays_in_the_sum(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20, 20])
    study.start()
    study.run(until=lambda: bool(rounds(study)))
    study.run(until=lambda: len(study.hub.epochs[-1].secure_sum.uploaded) == 4)
    study.lost.add("site1")
    study.run()
    assert study.hub.finished
    assert rounds(study)[1].survivors == ("site0", "site1", "site2", "site3")
    all_agree(study, ["site0", "site2", "site3"])


def test_a_slow_site_is_left_out_of_one_round_and_back_in_the_next(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20, 20])
    study.start()
    study.run(until=lambda: bool(rounds(study)))
    study.slow.add("site3")
    study.run(until=lambda: len(rounds(study)) == 2)
    study.hurry()
    study.run()
    assert study.hub.finished
    assert "site3" not in rounds(study)[1].survivors
    assert "site3" in rounds(study)[2].survivors
    all_agree(study, list(study.sites))


def test_with_three_sites_a_lost_one_stalls_the_study_until_it_returns_or_patience_ends(
    tmp_path: Path,
) -> None:
    study = world(tmp_path, [20, 20, 20])
    study.start()
    study.run(until=lambda: bool(rounds(study)))
    study.lost.add("site2")
    study.run()
    assert not study.hub.finished
    stalls = [event for event in study.events if isinstance(event, Stalled)]
    assert stalls
    assert all(stall.missing == ("site2",) for stall in stalls)
    stopped = [event for event in study.events if isinstance(event, Stopped)]
    assert len(stopped) == 1
    assert "site2" in stopped[0].reason
    assert study.sites["site0"].stopped == stopped[0].reason


def test_too_few_answers_burn_the_attempt_and_a_fresh_one_finishes_the_study(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20, 20])
    study.start()
    study.run(until=lambda: len(rounds(study)) == 1 and study.hub._phase == "answer")
    # two of four answer too late: fewer than t = 3 did in time
    study.slow |= {"site2", "site3"}
    study.run(until=lambda: any(isinstance(event, Burnt) for event in study.events))
    study.hurry()
    study.run()
    burnt = [event for event in study.events if isinstance(event, Burnt)]
    assert [(event.round, event.attempt) for event in burnt] == [(1, 1)]
    assert study.hub.finished
    assert [(done.round, done.attempt) for done in rounds(study)] == [(0, 0), (1, 2), (2, 3)]
    assert rounds(study)[1].survivors == ("site0", "site1", "site2", "site3")
    all_agree(study, list(study.sites))


def test_a_site_missing_in_the_setup_means_a_new_epoch_with_a_smaller_roster(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20, 20])
    study.start()
    study.run(until=lambda: study.hub._phase == "announce")
    study.lost.add("site1")
    study.run()
    agreed = [event for event in study.events if isinstance(event, RosterAgreed)]
    assert [(event.epoch, event.members) for event in agreed] == [
        (0, ("site0", "site1", "site2", "site3")),
        (1, ("site0", "site2", "site3")),
    ]
    assert study.hub.finished
    all_agree(study, ["site0", "site2", "site3"])


def test_a_site_that_never_joins_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20, 20])
    study.lost.add("site0")
    study.start()
    study.run()
    assert study.hub.finished
    assert study.hub.epochs[-1].terms.roster.names == ("site1", "site2", "site3")


def test_fewer_sites_than_the_plan_asks_for_stop_the_study(tmp_path: Path) -> None:
    study = world(tmp_path, [20, 20, 20])
    study.lost.add("site0")
    study.start()
    study.run()
    assert study.hub.stopped == "2 sites take part, the plan asks for 3"
