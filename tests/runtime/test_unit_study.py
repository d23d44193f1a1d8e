"""Studies whose unit is a person with many rows: sampled whole, clipped together, the clip following the norms."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from tests.runtime import parties as single
from tests.runtime.budgets import Noting
from tests.runtime.parties import CHEAP, PURPOSE, plan_for

from cloister.crypto import Identity
from cloister.errors import InputError, PlanError
from cloister.learning import Plan, PrivacySection, pin_initial
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.units import unit_rows
from cloister.runtime import Hub, LocalWorker, Party, Site
from cloister.secagg import Params
from cloister.vault import LocalKeystore, Schema, Vault, load_schema

SCHEMA = (
    single.SCHEMA
    + b"""
[columns.person]
type = "text"
role = "unit"
pseudonym = true
"""
)
UNIT = PrivacySection(
    unit="person",
    sites_per_unit=1,
    expected_units=9,
    noise_multiplier=0.01,
    delta=1e-3,
    clip=1.0,
    rate=1.0,
)


def schema() -> Schema:
    return load_schema(SCHEMA)


def people(rows: int, seed: int) -> pa.Table:
    names = pa.array([f"person-{seed}-{row % 4}" for row in range(rows)])
    return single.table(rows, seed).append_column("person", names)


def members(root: Path) -> list[Party]:
    out = []
    for seed, name in enumerate(("site0", "site1", "site2")):
        identity = Identity.generate(name)
        keys = LocalKeystore.initialise(root / name / "keystore.json", "x", cost=CHEAP)
        vault = Vault(root / name, identity, keys)
        vault.add_table(people(24, seed), name="train", schema=schema(), purposes=[PURPOSE])
        out.append(Party(identity, vault))
    return out


def unit_plan(
    hub: Identity, parties: list[Party], privacy: PrivacySection = UNIT, **training: object
) -> Plan:
    plan = plan_for(hub, parties, training={"batch": 8, "local_steps": 4, "rounds": 6, **training})
    own = schema()
    data = msgspec.structs.replace(plan.data, schema=own.digest().hex(), public_rows=False)
    model = msgspec.structs.replace(plan.model, initial="")
    return pin_initial(msgspec.structs.replace(plan, data=data, model=model, privacy=privacy), own)


def run(hub: Identity, parties: list[Party], plan: Plan) -> dict[str, Site]:
    """Carry the messages of a whole study; return its sites."""
    public = {each.identity.name: each.identity.public for each in parties}
    trusted = {each.fingerprint: each for each in public.values()}
    machine = Hub(plan, hub, public, schema())
    sites = {}
    for each in parties:
        dataset = each.vault.open("train", purpose=PURPOSE)
        worker = LocalWorker(plan, dataset.schema, dataset.table)
        sites[each.identity.name] = Site(
            plan,
            each.identity,
            hub.public,
            trusted=trusted,
            manifest=dataset.envelope,
            rows=dataset.rows,
            worker=worker,
            budget=Noting(each.identity),
        )
    queue = list(machine.resume(0.0).outgoing)
    for name, site in sites.items():
        queue += machine.handle(name, site.join(), 0.0).outgoing
    while queue:
        receiver, message = queue.pop(0)
        for reply in sites[receiver].handle(message):
            queue += machine.handle(receiver, reply, 0.0).outgoing
    assert machine.finished, machine.stopped
    return sites


def test_people_are_trained_whole_and_learn_something(tmp_path: Path) -> None:
    hub, parties = Identity.generate("hub"), members(tmp_path)
    sites = run(hub, parties, unit_plan(hub, parties))
    models = {site.model.released().tobytes() for site in sites.values()}
    assert len(models) == 1
    found = np.frombuffer(models.pop())
    assert found[0] > 0  # the rows say yes where a is large
    assert all(site._worker._open().train.clients == 4 for site in sites.values())


def test_an_adaptive_clip_moves_alike_everywhere(tmp_path: Path) -> None:
    hub, parties = Identity.generate("hub"), members(tmp_path)
    adaptive = msgspec.structs.replace(UNIT, adaptive_quantile=0.5, clip=64.0)
    sites = run(hub, parties, unit_plan(hub, parties, adaptive))
    clips = {site.model.clip for site in sites.values()}
    assert len(clips) == 1
    assert clips.pop() < 64.0  # nobody's update was so long


def test_the_bit_and_several_sites_are_in_the_account(tmp_path: Path) -> None:
    hub, parties = Identity.generate("hub"), members(tmp_path)
    params = Params.derive(3)

    def terms(**changes: object) -> PrivacyTerms:
        plan = unit_plan(hub, parties, msgspec.structs.replace(UNIT, **changes))
        from cloister.learning import plan_model

        return PrivacyTerms.of(plan, params, private_model(plan_model(plan, schema())[1]))

    plain, adaptive = terms(), terms(adaptive_quantile=0.5)
    assert adaptive.coordinates == plain.coordinates + 1
    assert adaptive.sensitivity > plain.sensitivity
    several = terms(sites_per_unit=2)
    (event,) = several.events_hub
    assert getattr(event.mechanism, "sites", None) == 2
    with pytest.raises(PlanError, match="sites_per_unit"):
        terms(sites_per_unit=4)


def test_a_row_without_a_unit_is_refused() -> None:
    with pytest.raises(InputError, match="have no unit"):
        unit_rows(pa.chunked_array([["a", None, "b"]]), "person")


def test_rows_are_grouped_by_unit_in_their_order() -> None:
    groups = unit_rows(pa.chunked_array([["b", "a"], ["b", "c", "a"]]), "person")
    assert [group.tolist() for group in groups] == [[0, 2], [1, 4], [3]]


def test_the_unit_must_be_declared_as_one(tmp_path: Path) -> None:
    hub, parties = Identity.generate("hub"), members(tmp_path)
    with pytest.raises(PlanError, match="no unit column 'somebody'"):
        unit_plan(hub, parties, msgspec.structs.replace(UNIT, unit="somebody"))
