"""Plans to audit: signed by nobody, pinned, with and without [privacy]. Not collected."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from tests.runtime.parties import plan_for, schema

from cloister.crypto import Identity
from cloister.governance.audit import AuditReport
from cloister.governance.auditrun import audit
from cloister.learning import Plan, PrivacySection

CREATED = "2026-01-31T12:00:00Z"
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
    return msgspec.structs.replace(plan, privacy=privacy)


def audit_of(plan: Plan, **options: Any) -> AuditReport:
    rows = {entry.name: 20 for entry in plan.sites}
    return audit(plan, schema(), len(plan.sites), **{"created": CREATED, "rows": rows, **options})
