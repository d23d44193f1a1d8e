"""What a study must have come to: its rounds computed again from who was in each of them.

The hub's journal says whose vectors each sum has; the sites' seeds say what these were. So the model follows,
whatever was killed, lost or burnt on the way; and if it is not the one that hub and sites ended with, somebody
was counted twice, left out, or trained from another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.faults.homes import Homes, seeded

from cloister.runtime import Hub, RoundDone, Site
from cloister.runtime.hubjournal import FileJournal, open_hub_log
from cloister.runtime.party import site_of

__all__ = ["journalled", "replayed", "undisturbed"]


def journalled(homes: Homes, number: int) -> Hub:
    """Return a hub as it would go on from the journal; no process may have it open."""
    plan, identity = homes.plan(number), homes.identity("hub")
    public = homes.public()
    log = open_hub_log(homes.home("hub") / "journal", plan.digest, identity)
    try:
        named = {site.name: public[site.name] for site in plan.sites}
        hub = Hub(plan, identity, named, homes.schema, journal=FileJournal(log))
        hub.resume(0.0)
    finally:
        log.close()
    return hub


def replayed(homes: Homes, number: int, seed: int, updates: Mapping[str, float] | None = None) -> Any:
    """Return the model that the journal's rounds lead to."""
    hub = journalled(homes, number)
    terms = {epoch.terms.number: epoch.terms for epoch in hub.epochs}
    return _computed(homes, number, seed, [(terms[done.epoch], done) for done in hub.rounds], updates)


def undisturbed(homes: Homes, number: int, seed: int) -> Any:
    """Return the model of the study with everybody in every round, by the terms of its first epoch."""
    terms = journalled(homes, number).epochs[0].terms
    rounds = homes.plan(number).training.rounds
    everybody = [(terms, RoundDone(0, 0, terms.roster.names, 0.0))] * rounds
    return _computed(homes, number, seed, everybody, None)


def _computed(
    homes: Homes,
    number: int,
    seed: int,
    rounds: Sequence[tuple[Any, RoundDone]],
    updates: Mapping[str, float] | None,
) -> NDArray[np.float64]:
    plan = homes.plan(number)
    with ExitStack() as ledgers:
        sites = {
            party.identity.name: seeded(site_of(plan, homes.public()["hub"], party), seed, update=updates)
            for party in homes.parties(number, ledgers)
        }
        model = next(iter(sites.values())).model
        for terms, done in rounds:
            params = model.params
            total = sum(_vector(sites[name], terms, params) for name in done.survivors)
            model.apply(total, done.survivors, terms)
        return model.released()


def _vector(site: Site, terms: Any, params: NDArray[np.float64]) -> Any:
    return site._vector(terms, params)
