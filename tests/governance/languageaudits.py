"""Plans of language models to audit: signed by nobody, on a tiny base with random weights. Not collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.runtime.languageparties import Kind, schema, unpinned

from cloister.crypto import Identity
from cloister.governance.audit import AuditReport
from cloister.governance.auditlanguage import Planting, rehearse
from cloister.learning import Plan
from cloister.learning.start import with_pin
from cloister.runtime.worker import model_facts

CREATED = "2026-01-31T12:00:00Z"
SURE = 0.999  # a model that knows nothing must not fail a test by bad luck
PRIVACY = {"epsilon": 8.0, "delta": 1e-4, "clip": 0.5, "rate": 0.2}


class _Named:
    """What `unpinned` asks of a party."""

    def __init__(self, name: str) -> None:
        self.identity = Identity.generate(name)


def language_plan(
    kind: Kind, folder: Path, *, sites: int = 5, privacy: dict[str, Any] | None = None, **changes: Any
) -> Plan:
    """Return a pinned plan of banks; with privacy it says epsilon 8."""
    language = {"context": 96, "rank": 8, "alpha": 16.0} | changes.pop("language", {})
    if privacy is None:
        training = {"batch": 8, "local_steps": 4, "optimiser": "adam", "learning_rate": 0.005}
    else:
        language["overlong"] = "truncate"
        training = {"batch": 60, "algorithm": "fedadam", "learning_rate": 0.5, "server_learning_rate": 0.01}
    changes["training"] = training | changes.get("training", {})
    members = [_Named(f"bank{i}") for i in range(sites)]
    hub = Identity.generate("hub")
    plan = unpinned(hub, members, kind, folder, privacy=privacy, language=language, **changes)  # type: ignore[arg-type]
    own = schema(kind, persons=plan.privacy is not None and not plan.privacy.by_record)
    return with_pin(plan, model_facts(plan, own, base=folder).pin)


def audit_of(plan: Plan, kind: Kind, folder: Path, planting: Planting, *, rows: int = 60) -> AuditReport:
    own = schema(kind, persons=plan.privacy is not None and not plan.privacy.by_record)
    counts = {site.name: rows for site in plan.sites}
    return rehearse(
        plan, own, folder, created=CREATED, rows=counts, planting=planting, confidence=SURE, device="cpu"
    )
