"""Plans to audit: signed by nobody, pinned, with and without [privacy]. Not collected."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tests.runtime.parties import SCHEMA, plan_for, schema

from cloister.crypto import Identity
from cloister.governance.audit import AuditReport
from cloister.governance.auditmechanism import as_the_study_runs_it
from cloister.governance.auditrun import _epoch, audit
from cloister.learning import Model, Plan, PrivacySection, initial_model, plan_model
from cloister.learning.attacks import Mechanism, mechanism_of
from cloister.vault import Schema, load_schema

SURE = 0.999999  # a sound mechanism must not fail a test by bad luck
CREATED = "2026-01-31T12:00:00Z"
WITH_UNITS = load_schema(SCHEMA + b'[columns.person]\ntype = "text"\nrole = "unit"\n')
PRIVACY = PrivacySection(epsilon=2.0, delta=1e-4, clip=1.0, rate=0.2)


class _Named:
    """What `plan_for` asks of a party."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity


@cache
def _members(count: int) -> tuple[Identity, list[_Named]]:
    return Identity.generate("hub"), [_Named(Identity.generate(f"site{i}")) for i in range(count)]


def plan_to_audit(privacy: PrivacySection | None = PRIVACY, *, sites: int = 4, **changes: Any) -> Plan:
    hub, members = _members(sites)
    training = {"rounds": 12, "batch": 40, "local_steps": 1, "learning_rate": 0.5}
    changes["training"] = {**training, **changes.get("training", {})}
    plan = plan_for(hub, members, **changes)  # type: ignore[arg-type]
    if privacy is not None and not privacy.by_record:
        plan = msgspec.structs.replace(
            plan, data=msgspec.structs.replace(plan.data, schema=WITH_UNITS.digest().hex())
        )
    return msgspec.structs.replace(plan, privacy=privacy)


def schema_of(plan: Plan) -> Schema:
    """The schema of its rows: with a person's name where persons are protected."""
    return schema() if plan.privacy is None or plan.privacy.by_record else WITH_UNITS


def rows_of(plan: Plan, rows: int = 20) -> dict[str, int]:
    """The rows of each site."""
    return {entry.name: rows for entry in plan.sites}


def audit_of(plan: Plan, **options: Any) -> AuditReport:
    fixed = {"created": CREATED, "rows": rows_of(plan), "confidence": SURE}
    return audit(plan, schema_of(plan), len(plan.sites), **{**fixed, **options})


def mechanism_to_audit(plan: Plan) -> tuple[Mechanism, NDArray[np.float64]]:
    """The mechanism that an audit attacks, and the model it starts from."""
    _, model = plan_model(plan, schema_of(plan))
    assert isinstance(model, Model)
    epoch = _epoch(plan, rows_of(plan), model)
    assert epoch.privacy is not None
    made = as_the_study_runs_it(mechanism_of(plan, epoch.privacy, model), plan, epoch)
    return made, initial_model(plan, schema_of(plan))
