"""Small vaults with ledgers for tests of queries: real keys, real masks, real budgets. Importable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tests.runtime.parties import CHEAP, PURPOSE

from cloister.crypto import Identity
from cloister.privacy.ledger import Cap, Ledger
from cloister.privacy.statistics import Query, QueryFile
from cloister.runtime.query import QueryParty, plan_query
from cloister.runtime.queryplan import QueryPlan
from cloister.vault import LocalKeystore, Schema, Vault, load_schema

SCHEMA = b"""
[columns.age]
type = "integer"
bounds = [0, 120]
[columns.income]
type = "number"
bounds = [0.0, 10000.0]
missing = "allow"
[columns.sex]
type = "category"
categories = ["female", "male"]
[columns.ill]
type = "boolean"
role = "label"
[columns.note]
type = "text"
"""
WITH_UNIT = (
    SCHEMA
    + b"""
[columns.person]
type = "text"
role = "unit"
pseudonym = true
"""
)


def rows(count: int, seed: int, *, people: int | None = None) -> pa.Table:
    random = np.random.default_rng(seed)
    table = {
        "age": pa.array(random.integers(20, 90, count)),
        "income": pa.array(random.random(count) * 10_000, mask=random.random(count) < 0.1),
        "sex": pa.array(np.where(random.random(count) < 0.4, "female", "male")),
        "ill": pa.array(random.random(count) < 0.3),
        "note": pa.array([f"note {seed} {number}" for number in range(count)]),
    }
    if people is not None:
        table["person"] = pa.array([f"p{number}" for number in random.integers(0, people, count)])
    return pa.table(table)


def schema(text: bytes = SCHEMA) -> Schema:
    return load_schema(text)


def make_vault(root: Path, identity: Identity, table: pa.Table, *, text: bytes = SCHEMA) -> Vault:
    keys = LocalKeystore.initialise(root / "keystore.json", "x", cost=CHEAP)
    vault = Vault(root, identity, keys)
    vault.add_table(table, name="rows", schema=schema(text), purposes=[PURPOSE])
    return vault


OPEN: list[Ledger] = []
"""Ledgers that were made, to be closed by `close_ledgers` when a test ends."""


def close_ledgers() -> None:
    while OPEN:
        OPEN.pop().close()


def make_ledger(root: Path, identity: Identity, vault: Vault, cap: Cap | None = None) -> Ledger:
    ledger = Ledger.open(root / "ledger", identity)
    OPEN.append(ledger)
    ledger.declare("people", cap or Cap.of(20.0, 1e-4))
    ledger.bind("people", vault.manifest("rows").dataset_id, vault.fingerprints("rows"))
    return ledger


def make_parties(
    root: Path,
    sizes: Sequence[int],
    *,
    cap: Cap | Sequence[Cap | None] | None = None,
    text: bytes = SCHEMA,
    people: int | None = None,
) -> list[QueryParty]:
    parties = []
    for number, size in enumerate(sizes):
        identity = Identity.generate(f"site{number}")
        home = root / identity.name
        vault = make_vault(home / "vault", identity, rows(size, number, people=people), text=text)
        own = cap if isinstance(cap, Cap | None) else cap[number]
        parties.append(QueryParty(identity, vault, make_ledger(home, identity, vault, own)))
    return parties


def plan_for(
    hub: Identity, parties: Sequence[QueryParty], queries: Query | QueryFile, **fields: Any
) -> QueryPlan:
    sites = [(party.identity.public, party.vault.manifest("rows")) for party in parties]
    return plan_query(queries, hub.public, sites, purpose=PURPOSE, **fields)
