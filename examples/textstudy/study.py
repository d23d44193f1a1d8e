"""A study of a language model in one process: real vaults, real masks, each site's rows in its own vault.

A plan comes from the example's plan.toml, which holds what the sites agree on; identities, the schema's
digest, those of base and tokenizer, and the start that the seed gives are filled in here, as `cloister
study init` does it. With an epsilon, steps become those of differential privacy and every site declares a
budget first.
"""

from __future__ import annotations

import secrets
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloister.crypto import Identity, ScryptCost
from cloister.learning import Plan
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles import PlainFolder, check_language_model
from cloister.learning.start import with_pin
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Event, Party, RoundDone, Study, StudyResult
from cloister.runtime.workers.models import known_model
from cloister.vault import Schema, Vault, load_schema

__all__ = ["Changes", "Outcome", "Task", "agreed", "run_study"]

DATASET = "rows"
COST = ScryptCost(n=2**14)  # of guessing a passphrase that nobody keeps

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What an example prepared.

    Attributes:
        name: of the study.
        template: plan.toml of the example.
        schema: schema.toml of all sites.
        sites: each site's rows to learn from.
        tests: rows that nobody learns from.
        leave_out: beginnings of names of files that a base must not have read.
    """

    name: str
    template: Path
    schema: Path
    sites: dict[str, Path]
    tests: tuple[Path, ...]
    leave_out: tuple[str, ...]

    def load_schema(self) -> Schema:
        """Return the schema."""
        return load_schema(self.schema)


@dataclass(frozen=True)
class Changes:
    """What of the template is another this time; None where nothing is.

    Attributes:
        rounds: of the study.
        local_steps: of a round at a site.
        bits: of a value that travels.
        epsilon: claimed for each row, at a delta of a tenth of one over all rows.
    """

    rounds: int | None = None
    local_steps: int | None = None
    bits: int | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A study that has run: what it left, and how long it took, in seconds."""

    result: StudyResult
    seconds: float


def agreed(
    task: Task, base: Path, hub: Identity, sites: list[Identity], rows: int, changes: Changes
) -> tuple[Plan, Plan]:
    """Return the plan to run, and the same without privacy, for comparison.

    Args:
        task: the example.
        base: folder of the base.
        hub: who carries messages and adds the sums.
        sites: in the order of the task's.
        rows: of all sites together.
        changes: to the template.
    """
    schema = task.load_schema()
    document = _document(task, base, hub, sites, schema, changes)
    plain = _pinned(document, schema, base)
    if changes.epsilon is None:
        return plain, plain
    return _pinned(_private(document, rows, changes), schema, base), plain


def run_study(
    task: Task,
    base: Path,
    folder: Path,
    changes: Changes,
    on_progress: OnProgress,
    *,
    sandboxed: bool = False,
) -> tuple[Plan, Outcome]:
    """Put rows into vaults and run the study; return its plan without privacy, and the outcome.

    Args:
        task: the example.
        base: folder of the base.
        folder: in which vaults, ledgers and plan.toml come to lie; none of them may be there yet.
        changes: to the template.
        on_progress: called with a line a round.
        sandboxed: whether each site trains in a walled process of its own.
    """
    schema = task.load_schema()
    hub = Identity.generate("hub")
    identities = [Identity.generate(name) for name in task.sites]
    purpose = tomllib.loads(task.template.read_text(encoding="utf-8"))["study"]["purpose"]
    with ExitStack() as opened:
        vaults = [_vault(folder, one, task.sites[one.name], schema, purpose) for one in identities]
        rows = sum(vault.manifest(DATASET).rows for vault in vaults)
        plan, plain = agreed(task, base, hub, identities, rows, changes)
        (folder / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
        ledgers = [_ledger(opened, folder, plan, *each) for each in zip(identities, vaults, strict=True)]
        parties = [
            Party(identity, vault, ledger=ledger, base=base)
            for identity, vault, ledger in zip(identities, vaults, ledgers, strict=True)
        ]
        began = time.monotonic()
        study = Study(plan, hub, parties, sandboxed=sandboxed)

        def told(event: Event) -> None:
            if isinstance(event, RoundDone):
                spent = time.monotonic() - began
                on_progress(f"study: round {event.round + 1} of {plan.training.rounds}, {spent:.0f} s")

        return plain, Outcome(study.run(told), time.monotonic() - began)


def _document(
    task: Task, base: Path, hub: Identity, sites: list[Identity], schema: Schema, changes: Changes
) -> dict[str, Any]:
    """Return the template with what the run knows."""
    document = tomllib.loads(task.template.read_text(encoding="utf-8"))
    with closing(PlainFolder(base)) as files:
        found = check_language_model(files)
        document["language"] |= {"base": files.digest, "tokenizer": tokenizer_digest(files, found)}
    document["data"]["schema"] = schema.digest().hex()
    if document["model"]["kind"] == "text-classifier":
        document["model"]["classes"] = len(schema.columns[document["data"]["label"]].categories or ())
    document["hub"] = {"name": hub.name, "identity": hub.public.fingerprint}
    document["sites"] = [
        {"name": site.name, "identity": site.public.fingerprint, "dataset": DATASET} for site in sites
    ]
    for table, field, value in (
        ("training", "rounds", changes.rounds),
        ("training", "local_steps", changes.local_steps),
        ("aggregation", "bits", changes.bits),
    ):
        if value is not None:
            document[table][field] = value
    if document["aggregation"]["bits"] == 32:  # it has room for every value; the ranges are those of 8 bits
        document["aggregation"].pop("ranges", None)
    training = document["training"]
    training["average_last"] = min(training.get("average_last", 0), training["rounds"] // 2)
    return document


def _private(document: dict[str, Any], rows: int, changes: Changes) -> dict[str, Any]:
    """Return the document with record-level privacy: many noisy steps on a twentieth of the rows each.

    Noise moves every element alike, so the adapters' scale is small: what they add stays below what the head
    says, unless rows keep pulling them one way.
    """
    rate, rounds = 0.05, changes.rounds or 200
    training = {
        "rounds": rounds,
        "batch": max(1, round(rate * rows)),
        "local_steps": 1,
        "learning_rate": 8.0 if document["model"]["kind"] == "text-classifier" else 1.0,
        "average_last": rounds // 4,
    }
    delta = float(f"{0.1 / rows:.0e}")
    return document | {
        "training": training,
        "privacy": {"epsilon": changes.epsilon, "delta": delta, "clip": 1.0, "rate": rate},
        "aggregation": {"bits": 32},
        # a refusal of a long row would tell of it
        "language": document["language"] | {"overlong": "truncate", "alpha": 4.0},
    }


def _pinned(document: dict[str, Any], schema: Schema, base: Path) -> Plan:
    plan = msgspec.convert(document, Plan)
    return with_pin(plan, known_model(plan, schema, base=base, sandboxed=False).pin)


def _vault(folder: Path, owner: Identity, rows: Path, schema: Schema, purpose: str) -> Vault:
    vault = Vault.unlock(folder / "vaults" / owner.name, owner, secrets.token_hex(32), cost=COST)
    vault.add(rows, name=DATASET, schema=schema, purposes=[purpose])
    return vault


def _ledger(opened: ExitStack, folder: Path, plan: Plan, owner: Identity, vault: Vault) -> Ledger | None:
    """Return a site's ledger with a budget for the study, colluding sites included; None without privacy."""
    if plan.privacy is None or plan.privacy.epsilon is None:
        return None
    ledger = opened.enter_context(Ledger.open(folder / "ledgers" / owner.name, owner))
    ledger.declare("customers", Cap.of(2.0 * plan.privacy.epsilon, 2.0 * plan.privacy.delta))
    ledger.bind("customers", vault.manifest(DATASET).dataset_id, vault.fingerprints(DATASET))
    return ledger
