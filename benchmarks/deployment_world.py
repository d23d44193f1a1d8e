"""What a deployed study of the benchmark consists of on disk: identities, vaults, a plan, network folders.

The model is an MLP of exactly so many parameters. Its rows are never opened: sites "train" by adding a
constant, as the peer's app does, so a round costs what deployment costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from cloister.crypto import Identity, PublicIdentity, ScryptCost, StreamRandom
from cloister.learning import Plan, parse_plan, pin_initial
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    HubEntry,
    ModelSection,
    PrivacySection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.vault import Schema, Vault, load_schema

__all__ = ["PASSPHRASE", "Case", "World", "shape_of"]

PASSPHRASE = "benchmark"  # noqa: S105  # of keys that live as long as the benchmark
_PURPOSE = "benchmark"
_CHEAP = ScryptCost(n=1024)
_ROWS = 250  # of each site, where steps are private
_WIDEST = 65_536  # what a plan allows


@dataclass(frozen=True)
class Case:
    """One study to time.

    Attributes:
        parameters: of the model.
        rounds: to run.
        sites: how many.
        hub_view: whether the hub sees the sum.
        bits: of the secure sum's ring.
        private: whether each round is a step of distributed DP-SGD on real rows, debited to a ledger; the
            model is a logistic regression then.
    """

    parameters: int
    rounds: int
    sites: int = 3
    hub_view: Literal["sum", "none"] = "sum"
    bits: Literal[16, 32] = 32
    private: bool = False

    @property
    def vector_bytes(self) -> int:
        """Bytes of one masked update."""
        return self.parameters * self.bits // 8


def shape_of(parameters: int) -> tuple[int, int]:
    """Return features and hidden units of an MLP with one output and exactly so many parameters.

    It has (features + 1) * hidden + hidden + 1 of them. Raises ValueError where no shape is allowed.
    """
    for inner in range(3, 4096):
        hidden, rest = divmod(parameters - 1, inner)
        if rest == 0 and 1 <= hidden <= _WIDEST:
            return inner - 2, hidden
    raise ValueError(f"no model has exactly {parameters} parameters; choose 1 more or less")


class World:
    """The folder of one case; made by `prepare`, read by every party's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def prepare(cls, folder: Path, case: Case) -> World:
        """Make keys, vaults and plan."""
        world = cls(folder)
        features, hidden = (case.parameters - 1, 0) if case.private else shape_of(case.parameters)
        schema = load_schema(_schema_text(features, binary=case.private))
        hub = Identity.generate("hub")
        hub.save(folder / "hub.json", PASSPHRASE, cost=_CHEAP)
        table = _table(features, rows=_ROWS if case.private else 8, binary=case.private)
        entries = []
        for number in range(case.sites):
            identity = Identity.generate(f"site-{number}")
            identity.save(folder / f"{identity.name}.json", PASSPHRASE, cost=_CHEAP)
            vault = Vault.unlock(folder / "vaults" / identity.name, identity, PASSPHRASE, cost=_CHEAP)
            vault.add_table(table, name="rows", schema=schema, purposes=[_PURPOSE])
            entries.append(SiteEntry(name=identity.name, identity=identity.fingerprint, dataset="rows"))
        plan = Plan(
            study=StudySection(name="deployed", purpose=_PURPOSE, minimum_sites=case.sites),
            hub=HubEntry(name=hub.name, identity=hub.fingerprint),
            sites=tuple(entries),
            data=DataSection(schema=schema.digest().hex(), features=schema.features, label="y"),
            model=ModelSection(kind="logistic")
            if case.private
            else ModelSection(kind="mlp", hidden=(hidden,)),
            training=TrainingSection(
                rounds=case.rounds,
                batch=case.sites * _ROWS // 2 if case.private else 1,
                local_steps=1,
                learning_rate=0.1,
            ),
            aggregation=AggregationSection(hub_view=case.hub_view, bits=case.bits),
            privacy=PrivacySection(epsilon=3.0, delta=1e-5, clip=1.0, rate=0.5) if case.private else None,
        )
        (folder / "schema.toml").write_bytes(_schema_text(features, binary=case.private))
        text = pin_initial(plan, schema).to_toml()
        (folder / "plan.toml").write_text(text, encoding="utf-8")
        return world

    @property
    def plan(self) -> Plan:
        return parse_plan((self.folder / "plan.toml").read_bytes())

    @property
    def schema(self) -> Schema:
        return load_schema((self.folder / "schema.toml").read_bytes())

    def identity(self, name: str) -> Identity:
        return Identity.load(self.folder / f"{name}.json", PASSPHRASE)

    def public(self, name: str) -> PublicIdentity:
        return Identity.read_public(self.folder / f"{name}.json")

    def everybody(self, plan: Plan) -> tuple[PublicIdentity, ...]:
        return tuple(self.public(name) for name in [plan.hub.name, *(site.name for site in plan.sites)])

    def vault(self, identity: Identity) -> Vault:
        return Vault.unlock(self.folder / "vaults" / identity.name, identity, PASSPHRASE)

    def private(self, name: str) -> Path:
        """A folder that only this party reads: its journal."""
        path = self.folder / "private" / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path


def _schema_text(features: int, *, binary: bool) -> bytes:
    columns = "".join(
        f'[columns.x{number}]\ntype = "number"\nbounds = [0.0, 1.0]\n' for number in range(features)
    )
    kind = (
        'type = "category"\ncategories = ["no", "yes"]' if binary else 'type = "number"\nbounds = [0.0, 1.0]'
    )
    return f'{columns}[columns.y]\nrole = "label"\n{kind}\n'.encode()


def _table(features: int, *, rows: int, binary: bool) -> pa.Table:
    random = StreamRandom.system()
    columns: dict[str, object] = {f"x{number}": random.uniform(rows) for number in range(features)}
    yes = random.uniform(rows) < 0.5
    return pa.table(columns | {"y": np.where(yes, "yes", "no") if binary else yes.astype(np.float64)})
