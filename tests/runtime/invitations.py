"""Plans and identities for tests of what a site takes part in. Importable, not collected."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from tests.runtime.parties import PURPOSE, schema

from cloister.crypto import Identity, PublicIdentity
from cloister.learning import (
    AggregationSection,
    DataSection,
    HubEntry,
    ModelSection,
    Plan,
    PrivacySection,
    SiteEntry,
    StudySection,
    TrainingSection,
    pin_initial,
)

NAMES = ("north", "south", "west", "hub", "eve")
CODE = "c" * 64


@functools.cache
def people() -> dict[str, Identity]:
    return {name: Identity.generate(name) for name in NAMES}


def known(*names: str) -> dict[str, PublicIdentity]:
    """Identities by fingerprint; of everybody but eve where none are named."""
    return {people()[name].fingerprint: people()[name].public for name in names or NAMES[:-1]}


def own() -> str:
    return people()["north"].fingerprint


def hub() -> PublicIdentity:
    return people()["hub"].public


def plan_of(**changes: Any) -> Plan:
    """A pinned plan of hub, north, south and west; `changes` maps section name to field changes."""
    rows = schema()
    plan = Plan(
        study=StudySection(name="loans-1", purpose=PURPOSE),
        hub=HubEntry(name="hub", identity=hub().fingerprint),
        sites=tuple(
            SiteEntry(name=name, identity=people()[name].fingerprint, dataset="rows") for name in NAMES[:3]
        ),
        data=DataSection(schema=rows.digest().hex(), features=rows.features, label="y"),
        model=ModelSection(kind="logistic"),
        training=TrainingSection(rounds=3, batch=8, local_steps=1, learning_rate=0.5),
        aggregation=AggregationSection(),
    )
    if "privacy" in changes:
        claimed = {"epsilon": 1.0, "delta": 1e-5, "clip": 1.0, "rate": 0.5} | changes.pop("privacy")
        plan = msgspec.structs.replace(plan, privacy=PrivacySection(**claimed))
    sections = {
        name: value if isinstance(value, tuple) else msgspec.structs.replace(getattr(plan, name), **value)
        for name, value in changes.items()
    }
    plan = msgspec.structs.replace(plan, **sections)
    return plan if plan.model.kind == "torch" else pin_initial(plan, rows)
