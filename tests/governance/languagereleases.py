"""A finished study of a language model, put together by hand on a tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.governance.releases import World, identity, make_epoch
from tests.inference.adapters import text_schema
from tests.inference.language.released import language_plan, trained_vector

from cloister.governance import TrainedStudy
from cloister.learning.sections import AggregationSection, HubEntry, SiteEntry
from cloister.log import Cosigner, Log
from cloister.runtime import RoundEntry


def make_language_world(
    root: Path,
    base: Path,
    kind: str = "causal-lm",
    *,
    aggregation: dict[str, Any] | None = None,
    **language: Any,
) -> World:
    """As `releases.make_world`, of a language model that moved at random from its start."""
    hub, sites = identity("hub"), [identity(f"site{number}") for number in range(4)]
    plan = msgspec.structs.replace(
        language_plan(base, kind, **language),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(SiteEntry(name=s.name, identity=s.fingerprint, dataset="rows") for s in sites),
        aggregation=AggregationSection(**(aggregation or {})),
    )
    schema = text_schema(kind)
    changed = {
        "schema": schema,
        "schema_sha256": schema.digest().hex(),
        "purposes": (plan.study.purpose,),
    }
    epoch = make_epoch(plan, 0, sites, **changed)
    scratch = root / "scratch"
    scratch.mkdir()
    study = TrainedStudy(
        plan=plan,
        hub=hub.public,
        epochs=(epoch,),
        rounds=tuple(
            RoundEntry(round=n, attempt=n, survivors=tuple(s.name for s in sites), epoch=0)
            for n in range(plan.training.rounds)
        ),
        privacy=None,
        debits={},
        parameters=trained_vector(plan, base, scratch),
    )
    log = Log(root / "log" / "releases.log", hub.fingerprint)
    return World(root, hub, sites, study, log, [Cosigner(root / "heads" / s.name, s) for s in sites])
