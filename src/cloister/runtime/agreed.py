"""What plans of studies and of queries have in common, as hubs and sites read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.learning import Plan
from cloister.runtime.queryplan import QueryPlan

__all__ = ["Agreed", "agreed_of"]


@dataclass(frozen=True)
class Agreed:
    """What plans of studies and of queries have in common, as a hub or a site reads it.

    Args:
        noun: what it is called: "plan" or "query".
        digest: 32 bytes.
        hub: fingerprint of the hub's identity.
        sites: fingerprint of each site's identity, by name.
        attempts: how many sums may be tried.
        final_roster: whether nobody joins once attempts have begun.
        reattest_seconds: how old evidence may be that the parties ask of each other; None where they ask for
            none.
        hub_field, site_field: where in a file these stand, for messages; empty where there is no file.
    """

    noun: str
    digest: bytes
    hub: str
    sites: Mapping[str, str]
    attempts: int
    final_roster: bool = False
    reattest_seconds: int | None = None
    hub_field: str = ""
    site_field: str = ""


def agreed_of(plan: Plan | QueryPlan) -> Agreed:
    """Return what a plan names."""
    study = isinstance(plan, Plan)
    return Agreed(
        noun="plan" if study else "query",
        digest=plan.digest,
        hub=plan.hub.identity,
        sites={entry.name: entry.identity for entry in plan.sites},
        attempts=plan.attempts,
        final_roster=not study,
        reattest_seconds=plan.reattest_seconds if isinstance(plan, Plan) else None,
        hub_field="[hub] identity" if study else "",
        site_field="[[sites]] " if study else "",
    )
