"""Homes of a hub and its sites on disk, as organisations have them, and the studies between them.

    ROOT/homes/NAME     identity, vault, ledger, journal, logs, studies: what this party alone reads
    ROOT/public         everybody's public identity
    ROOT/plans/N.toml   the studies, by number
    ROOT/distrusted-by-NAME  whom this party trusts no more, one a line
    ROOT/said/NAME      what its processes report, a JSON object a line
    ROOT/witness/NAME   a byte for every vector this site has computed from its rows

Training draws from a seed, the site's name and the model it starts from, so a site's update in a round is a
function of these, whatever process computes it and however often.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tests.runtime.parties import CHEAP, PURPOSE, plan_for, schema, table

from cloister.crypto import Identity, PublicIdentity, StreamRandom, sha256
from cloister.learning import Plan, PrivacySection, parse_plan
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Party, Site
from cloister.vault import Schema, Vault

__all__ = ["CAP", "PASSPHRASE", "Homes", "seeded"]

PASSPHRASE = "only for this test"
CAP = Cap.of(20.0, 1e-3)
_SIZES = (40, 25, 30, 35, 20)


@dataclass(frozen=True)
class Homes:
    """The folder of all homes."""

    root: Path

    @classmethod
    def prepare(cls, root: Path, sites: int, *, budgets: bool = False) -> Homes:
        """Make identities and vaults, and with `budgets` ledgers that bind every row."""
        homes = cls(root)
        for folder in ("public", "plans", "said", "witness", "private"):
            (root / folder).mkdir(parents=True)
        homes._identity("hub")
        for seed in range(sites):
            identity = homes._identity(f"site{seed}")
            home = homes.home(identity.name)
            vault = Vault.unlock(home / "vault", identity, PASSPHRASE, cost=CHEAP)
            rows = table(_SIZES[seed % len(_SIZES)], seed)
            vault.add_table(rows, name="train", schema=schema(), purposes=[PURPOSE])
            if budgets:
                with Ledger.open(home / "ledger", identity) as ledger:
                    ledger.declare("people", CAP)
                    ledger.bind("people", vault.manifest("train").dataset_id, vault.fingerprints("train"))
        return homes

    def _identity(self, name: str) -> Identity:
        self.home(name).mkdir(parents=True, mode=0o700)
        identity = Identity.generate(name)
        identity.save(self.home(name) / "identity.json", PASSPHRASE, cost=CHEAP)
        (self.root / "public" / name).write_bytes(identity.public.to_json())
        return identity

    def home(self, name: str) -> Path:
        return self.root / "homes" / name

    def identity(self, name: str) -> Identity:
        return Identity.load(self.home(name) / "identity.json", PASSPHRASE)

    def vault(self, identity: Identity) -> Vault:
        return Vault.unlock(self.home(identity.name) / "vault", identity, PASSPHRASE)

    @property
    def schema(self) -> Schema:
        return schema()

    def public(self) -> dict[str, PublicIdentity]:
        """Return everybody by name."""
        return {
            path.name: PublicIdentity.from_json(path.read_bytes())
            for path in sorted((self.root / "public").iterdir())
        }

    @property
    def sites(self) -> list[str]:
        return [name for name in self.public() if name != "hub"]

    def distrust(self, name: str, by: Sequence[str] | None = None) -> None:
        """Let these, or everybody, take an identity out of what they trust, now."""
        for party in by or self.public():
            fresh = self.root / f"distrusted-by-{party}.new"
            fresh.write_text("\n".join([*self._distrusted(party), name]))
            fresh.rename(self.root / f"distrusted-by-{party}")

    def _distrusted(self, party: str) -> list[str]:
        path = self.root / f"distrusted-by-{party}"
        return path.read_text().split() if path.exists() else []

    def trusted(self, party: str) -> dict[str, PublicIdentity]:
        """Return whom a party trusts now, by fingerprint."""
        out = set(self._distrusted(party))
        return {each.fingerprint: each for name, each in self.public().items() if name not in out}

    # --- studies ------------------------------------------------------------------------------------

    def add_study(
        self, number: int, *, private: bool = False, sites: Sequence[str] | None = None, **changes: Any
    ) -> Plan:
        """Write the plan of a study over all sites, or those; `changes` as `plan_for` takes them."""
        public = self.public()
        study = {"name": f"study-{number}", "deadline_seconds": 1.5, "patience": 60}
        sections: dict[str, dict[str, Any]] = {
            "study": study,
            "data": {"public_rows": False},
            "training": {"rounds": 10, "batch": 8, "local_steps": 2},
        }
        for name, fields in changes.items():
            sections[name] = sections.get(name, {}) | fields
        members = [_Named(each) for name, each in public.items() if name in (sites or self.sites)]
        plan = plan_for(public["hub"], members, **sections)  # type: ignore[arg-type]  # names and prints alone
        if private:
            privacy = PrivacySection(noise_multiplier=60.0, delta=1e-4, clip=1.0, rate=0.5, block_attempts=4)
            training = msgspec.structs.replace(plan.training, batch=48, local_steps=1)
            plan = msgspec.structs.replace(plan, privacy=privacy, training=training)
        (self.root / "plans" / f"{number}.toml").write_text(plan.to_toml())
        return plan

    def plan(self, number: int) -> Plan:
        return parse_plan((self.root / "plans" / f"{number}.toml").read_bytes())

    def party(self, name: str, ledger: Ledger | None = None) -> Party:
        """Return a site and what it brings, as its process has it."""
        identity = self.identity(name)
        return Party(identity, self.vault(identity), trusted=tuple(self.public().values()), ledger=ledger)

    def parties(self, number: int, stack: ExitStack) -> list[Party]:
        """Return the sites of a study; their ledgers are open until the stack closes."""
        found = []
        for name in (site.name for site in self.plan(number).sites):
            ledger = None
            if (self.home(name) / "ledger").exists():
                ledger = stack.enter_context(self.ledger(name))
            found.append(self.party(name, ledger))
        return found

    def ledger(self, name: str) -> Ledger:
        return Ledger.open(self.home(name) / "ledger", self.identity(name))

    def witnessed(self, name: str) -> int:
        path = self.root / "witness" / name
        return path.stat().st_size if path.exists() else 0

    def witness(self, name: str) -> None:
        """Note, before it can leave, that a vector was computed from rows."""
        file = os.open(self.root / "witness" / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, b".")
        finally:
            os.close(file)


@dataclass(frozen=True)
class _Named:
    """What a plan says of a site."""

    identity: PublicIdentity


def seeded(
    site: Site,
    seed: int,
    *,
    before: Callable[[], None] = lambda: None,
    update: Mapping[str, float] | None = None,
) -> Site:
    """Let a site draw batches, samples and noise from a seed and the model it was given; keys and masks stay
    the operating system's.

    Args:
        site: the machine.
        seed: of all sites.
        before: is called whenever a vector is about to be computed.
        update: what the site adds to every parameter, by its name, in the place of training.
    """
    compute, worker = site._vector, site._worker

    def vector(terms: Any, params: Any) -> Any:
        before()
        drawn = sha256(seed.to_bytes(8, "big"), site.name.encode(), np.asarray(params, "<f8").tobytes())
        worker._random = StreamRandom(sha256(drawn, b"rows"))
        noise = StreamRandom(sha256(drawn, b"noise"))
        site._random = lambda count: noise.words(-(-count // 8)).astype("<u8").tobytes()[:count]
        try:
            return compute(terms, params)
        finally:
            site._random = None

    site._vector = vector  # type: ignore[method-assign]
    if update is not None:
        added = update[site.name]
        worker.train = lambda params, window: params + added  # type: ignore[method-assign]
    return site
