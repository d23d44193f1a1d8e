"""A study whose model is a torch module in a file: run where it is allowed, under the plan's hash, privately."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.runtime.budgets import Noting
from tests.runtime.parties import parties, plan_for, schema
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.learning import Plan, PrivacySection, pin_initial
from cloister.runtime import LocalWorker, Party

torch = pytest.importorskip("torch", reason="needs the extra torch")

CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))

def batch_norm():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(CODE)
    return path


def torch_plan(hub: Identity, members: list[Party], code: Path, factory: str = "build") -> Plan:
    plan = plan_for(hub, members, training={"batch": 48, "local_steps": 1, "rounds": 4, "learning_rate": 0.5})
    digest = hashlib.sha256(code.read_bytes()).hexdigest()
    model = msgspec.structs.replace(
        plan.model, kind="torch", classes=2, code=digest, factory=factory, initial=""
    )
    privacy = PrivacySection(noise_multiplier=0.3, delta=1e-4, clip=1.0, rate=1.0)
    return msgspec.structs.replace(plan, model=model, privacy=privacy)


def test_a_module_is_trained_privately(tmp_path: Path, code: Path) -> None:
    hub = Identity.generate("hub")
    members = parties(tmp_path, [40, 25, 30])
    plan = pin_initial(torch_plan(hub, members, code), schema(), user_code=code)
    budgets = {each.identity.name: Noting(each.identity) for each in members}
    machines = World(plan, hub, members, budgets=budgets, user_code=code)
    machines.start()
    machines.run()
    assert machines.hub.finished
    assert machines.hub.final_metrics is not None
    assert 0.0 <= machines.hub.final_metrics[0]["accuracy"] <= 1.0
    models = {each.model.released().tobytes() for each in machines.sites.values()}
    assert len(models) == 1
    found = np.frombuffer(models.pop())
    assert found.shape == (2 * 4 + 4 + 4 * 2 + 2,)
    assert not np.array_equal(found, machines.sites["site0"]._worker.initial)


def test_code_that_nobody_allowed_does_not_run(tmp_path: Path, code: Path) -> None:
    hub, members = Identity.generate("hub"), parties(tmp_path, [40, 25, 30])
    plan = torch_plan(hub, members, code)
    with pytest.raises(PolicyRefused, match="allow-user-code"):
        pin_initial(plan, schema())
    with pytest.raises(PolicyRefused, match="allow-user-code"):
        LocalWorker(plan, schema(), lambda: None)  # type: ignore[arg-type,return-value]


def test_other_code_than_the_plans_does_not_run(tmp_path: Path, code: Path) -> None:
    hub, members = Identity.generate("hub"), parties(tmp_path, [40, 25, 30])
    plan = torch_plan(hub, members, code)
    mark = tmp_path / "ran"
    code.write_text(CODE + f"\nopen({str(mark)!r}, 'w').close()\n")
    with pytest.raises(IntegrityError, match="SHA-256"):
        pin_initial(plan, schema(), user_code=code)
    assert not mark.exists()


def test_layers_that_mix_examples_are_refused(tmp_path: Path, code: Path) -> None:
    hub, members = Identity.generate("hub"), parties(tmp_path, [40, 25, 30])
    with pytest.raises(InputError, match="BatchNorm"):
        pin_initial(torch_plan(hub, members, code, "batch_norm"), schema(), user_code=code)
