"""Small real studies for tests: synthetic rows, real vaults, real keys. Importable, not collected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from cloister.crypto import Identity, ScryptCost, StreamRandom
from cloister.learning import Plan, pin_initial
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    EnclaveSection,
    HubEntry,
    ModelSection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.runtime import Party
from cloister.vault import LocalKeystore, Schema, Vault, load_schema

PURPOSE = "testing"
CHEAP = ScryptCost(n=2**14)
SCHEMA = b"""
[columns.a]
type = "number"
bounds = [-3.0, 3.0]
[columns.b]
type = "number"
bounds = [-3.0, 3.0]
[columns.y]
type = "category"
role = "label"
categories = ["no", "yes"]
"""


def schema() -> Schema:
    return load_schema(SCHEMA)


def table(rows: int, seed: int) -> pa.Table:
    random = StreamRandom.from_seed(seed, "test rows")
    X = random.uniform((rows, 2)) * 6 - 3
    yes = X[:, 0] + 0.5 * X[:, 1] > 0
    return pa.table({"a": X[:, 0], "b": X[:, 1], "y": np.where(yes, "yes", "no")})


def party(root: Path, name: str, rows: int, seed: int) -> Party:
    identity = Identity.generate(name)
    vault = Vault(
        root / name, identity, LocalKeystore.initialise(root / name / "keystore.json", "x", cost=CHEAP)
    )
    vault.add_table(table(rows, seed), name="train", schema=schema(), purposes=[PURPOSE])
    vault.add_table(table(20, seed + 100), name="test", schema=schema(), purposes=[PURPOSE])
    return Party(identity, vault, held_out="test")


def parties(root: Path, sizes: Sequence[int]) -> list[Party]:
    return [party(root, f"site{index}", rows, index) for index, rows in enumerate(sizes)]


def plan_for(hub: Identity, members: Sequence[Party], **changes: Any) -> Plan:
    """Return a pinned plan; `changes` maps section name to field changes, as in training={"rounds": 2};
    `enclave` is a whole section."""
    enclave = changes.pop("enclave", None)
    own = schema()
    plan = Plan(
        study=StudySection(name="test", purpose=PURPOSE, deadline_seconds=10.0),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(
            SiteEntry(name=each.identity.name, identity=each.identity.fingerprint, dataset="train")
            for each in members
        ),
        data=DataSection(schema=own.digest().hex(), features=own.features, label="y", public_rows=True),
        model=ModelSection(kind="logistic"),
        training=TrainingSection(rounds=3, batch=8, local_steps=5, learning_rate=0.5),
        aggregation=AggregationSection(),
        enclave=None if enclave is None else EnclaveSection(**enclave),
    )
    sections = {
        name: msgspec.structs.replace(getattr(plan, name), **fields) for name, fields in changes.items()
    }
    return pin_initial(msgspec.structs.replace(plan, **sections), own)
