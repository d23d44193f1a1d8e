"""Studies whose workers are walled-off processes: the same bits, the same refusals, clear ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.budgets import Noting
from tests.runtime.parties import PURPOSE, parties, plan_for
from tests.runtime.workers.twins import kill, worker_of
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import Identity, Keystream
from cloister.errors import CloisterError, PlanError, ProtocolError
from cloister.learning import Plan, PrivacySection
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime import LocalWorker, Party, Study
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.proxy import SandboxedWorker
from cloister.types import RandomBytes

HUB = Identity.generate("hub")


@pytest.fixture(autouse=True)
def walls() -> None:
    needs_walls()


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Party]:
    return parties(tmp_path_factory.mktemp("members"), [40, 25, 30])


def seeded(seed: int) -> RandomBytes:
    """Return bytes of a stream that is always the same."""
    stream, at = Keystream(bytes([seed]) * 32), 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return stream.bytes(count, at - count)

    return take


def ran(plan: Plan, members: Sequence[Party], *, sandboxed: bool) -> tuple[bytes, Any]:
    study = Study(plan, HUB, members, sandboxed=sandboxed, insecure_test_random=seeded(7))
    result = study.run()
    return result.model.tobytes(), result.final_metrics


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"kind": "mlp", "hidden": (8,), "classes": 2}, "training": {"optimiser": "adam"}},
        {"data": {"scaling": "local"}, "aggregation": {"hub_view": "none"}},
    ],
    ids=["logistic", "mlp", "local scaling"],
)
def test_the_same_bits_with_walls_and_without(members: list[Party], changes: dict[str, Any]) -> None:
    plan = plan_for(HUB, members, **changes)
    assert ran(plan, members, sandboxed=True) == ran(plan, members, sandboxed=False)


def worker_for(members: list[Party], plan: Plan, **options: Any) -> SandboxedWorker:
    handed = members[0].vault.hand_over("train", purpose=PURPOSE)
    return SandboxedWorker(
        plan, members[0].identity, sandbox(), handed, insecure_test_seed=bytes(32), **options
    )


def test_clipped_sums_are_the_same_bits_and_come_without_noise(members: list[Party]) -> None:
    from cloister.crypto import StreamRandom

    plan = msgspec.structs.replace(
        plan_for(HUB, members, training={"batch": 48, "local_steps": 1}),
        privacy=PrivacySection(noise_multiplier=1.0, delta=1e-4, clip=1.0, rate=0.5),
    )
    worker = worker_for(members, plan)
    with members[0].vault.open("train", purpose=PURPOSE) as rows:
        local = LocalWorker(plan, rows.schema, rows.table, insecure_test_random=StreamRandom(bytes(32)))
        terms = PrivacyTerms.of(plan, plan.params(3), worker.bounded)
        assert terms == PrivacyTerms.of(plan, plan.params(3), local.bounded)
        for params in (worker.initial, np.array([0.5, -1.0, 2.0])):
            found = worker.private_sum(params, 1.0, terms)
            assert found.dtype == np.int64
            assert np.array_equal(found, local.private_sum(params, 1.0, terms))
    worker.close()


def test_local_steps_carry_their_noise_inside(members: list[Party]) -> None:
    plan = msgspec.structs.replace(
        plan_for(HUB, members, training={"batch": 48, "local_steps": 2}),
        privacy=PrivacySection(mode="local", noise_multiplier=1.0, delta=1e-4, clip=1.0, rate=0.5),
    )
    worker = worker_for(members, plan)
    terms = PrivacyTerms.of(plan, plan.params(3), worker.bounded)
    found = [worker.train_privately(worker.initial, terms) for _ in range(2)]
    assert not np.array_equal(*found)
    worker.close()


def test_walls_are_named(members: list[Party]) -> None:
    worker = worker_for(members, plan_for(HUB, members))
    for wall in ("network namespace", "Landlock", "seccomp", "no new privileges", "not dumpable"):
        assert worker.walls[wall] is True
    assert worker.identity.name == "worker"
    worker.close()


def test_the_process_is_gone_when_it_is_closed_or_forgotten(members: list[Party]) -> None:
    for forget in (False, True):
        worker = worker_for(members, plan_for(HUB, members))
        inner = worker_of(worker._session._running._child.pid)  # type: ignore[attr-defined]
        assert Path(f"/proc/{inner}").exists()
        if forget:
            del worker
        else:
            worker.close()
        assert not Path(f"/proc/{inner}").exists()


def test_a_killed_worker_ends_its_site_with_one_sentence(members: list[Party]) -> None:
    study = Study(plan_for(HUB, members), HUB, members, sandboxed=True)
    first = study.sites["site0"]._worker
    assert isinstance(first, SandboxedWorker)
    kill(first._session._running._child.pid)  # type: ignore[attr-defined]
    with pytest.raises(ProtocolError, match=r"the worker ended before its work was done.*SIGKILL"):
        study.run()
    for site in study.sites.values():
        with pytest.raises(ProtocolError):
            site._worker.train(site._worker.initial)


def test_what_fails_inside_is_the_same_error(members: list[Party]) -> None:
    plan = plan_for(HUB, members, training={"learning_rate": 1000.0, "l2": 1.0, "local_steps": 200})
    with pytest.raises(PlanError) as outside:
        Study(plan, HUB, members).run()
    with pytest.raises(PlanError) as inside:
        Study(plan, HUB, members, sandboxed=True).run()
    assert str(inside.value) == str(outside.value)


def test_nonsense_from_the_site_does_not_bring_it_down(members: list[Party]) -> None:
    plan = msgspec.structs.replace(
        plan_for(HUB, members, training={"batch": 48, "local_steps": 1}),
        privacy=PrivacySection(noise_multiplier=1.0, delta=1e-4, clip=1.0, rate=0.5),
    )
    worker = worker_for(members, plan)
    terms = PrivacyTerms.of(plan, plan.params(3), worker.bounded)
    for params, clip in ((np.ones(2), 1.0), (worker.initial, float("nan")), (np.empty(0), 1.0)):
        with pytest.raises(CloisterError):
            worker.private_sum(params, clip, terms)
    assert len(worker.private_sum(worker.initial, 1.0, terms)) == 3
    worker.close()


def test_private_study_runs_behind_walls(members: list[Party]) -> None:
    plan = msgspec.structs.replace(
        plan_for(HUB, members, training={"batch": 48, "local_steps": 1}, data={"public_rows": False}),
        privacy=PrivacySection(noise_multiplier=1.0, delta=1e-4, clip=1.0, rate=0.5),
    )
    study = Study(plan, HUB, members, sandboxed=True)
    for name, site in study.sites.items():
        site._budget = site._closing = Noting(members[int(name[-1])].identity)
    assert study.run().model.shape == (3,)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left(members: list[Party]) -> None:
    plan = plan_for(HUB, members)
    worker_for(members, plan).close()
    before = open_files()
    for _ in range(2):
        worker_for(members, plan).close()
    assert open_files() == before
