"""A site and what it brings: from an owner's identity, vault and ledger to a site machine.

Before anything is promised it is checked that the rows may be used: the purpose is one of the dataset's, a
budget that the rows have is not gone around, and what they are evaluated on is not charged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cloister.crypto import Identity, PublicIdentity, StreamRandom
from cloister.errors import InputError, IntegrityError, PlanError, PolicyRefused
from cloister.learning import Plan
from cloister.privacy.ledger import Ledger
from cloister.runtime.budget import LedgerBudget, populations_of
from cloister.runtime.journal import KeepsSite
from cloister.runtime.site import Site
from cloister.runtime.worker import Worker, columns_of, make_worker
from cloister.runtime.workers.brokered import BrokerAccess
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.proxy import SandboxedWorker
from cloister.types import RandomBytes
from cloister.vault import Manifest, Vault
from cloister.vault.handover import Handover

__all__ = ["Party", "dataset_of", "site_of"]


@dataclass(frozen=True)
class Party:
    """A site and what it brings.

    Attributes:
        identity: the site's keys; its name is the name in the plan.
        vault: where its rows are; the plan names the dataset.
        held_out: dataset of rows to evaluate on, or None.
        trusted: the identities its owner trusts; None where one owner runs everybody and trusts all of them.
        ledger: what its owner has spent and may spend; needed where the plan claims privacy. Where the plan
            claims none, rows that have a budget in it are refused.
        broker: of datasets whose keys a broker keeps; only a sandboxed worker opens those.
        base: folder of the base that the plan's language model starts from.
        ranks: processes of this machine that train a language model together; not behind walls.
        shard: whether each of them holds only a part of the base.
        device: what a language model trains on: "cpu", "cuda", or "auto" for what is there; behind walls
            nothing but the CPU is.
    """

    identity: Identity
    vault: Vault
    held_out: str | None = None
    trusted: tuple[PublicIdentity, ...] | None = None
    ledger: Ledger | None = None
    broker: BrokerAccess | None = None
    base: Path | None = None
    ranks: int = 1
    shard: bool = False
    device: str = "auto"


def dataset_of(plan: Plan, name: str) -> str:
    """Return the dataset that a plan asks of a site. Raises PlanError where it does not name it."""
    for entry in plan.sites:
        if entry.name == name:
            return entry.dataset
    raise PlanError("the plan does not name this site", where=name, fix="Add it to [[sites]]")


def site_of(
    plan: Plan,
    hub: PublicIdentity,
    party: Party,
    everybody: tuple[PublicIdentity, ...] = (),
    *,
    user_code: Path | None = None,
    journal: KeepsSite | None = None,
    sandboxed: bool = False,
    insecure_test_random: RandomBytes | None = None,
) -> Site:
    """Return the machine of a site.

    Args:
        plan: the study's plan.
        hub: the hub the plan names.
        party: the site and what it brings.
        everybody: whom it trusts where `party.trusted` is None.
        user_code: the Python file of a module of the user's own, which its owner allows.
        journal: keeps what must survive the process.
        sandboxed: whether rows are read and trained on in a walled process of their own, or in this one.
        insecure_test_random: replaces the operating system's randomness, in tests alone.

    Raises:
        PolicyRefused: rows, budget or evaluation do not allow it.
        PlanError: the plan does not name this site, or is not complete.
    """
    trusted = everybody if party.trusted is None else (party.identity.public, *party.trusted)
    rows = party.vault.hand_over(dataset_of(plan, party.identity.name), purpose=plan.study.purpose)
    manifest = rows.manifest
    budget = _budget(plan, party, manifest)
    _check_evaluation(plan, party)
    seed = None if insecure_test_random is None else insecure_test_random(32)
    make = _sandboxed if sandboxed else _inside
    worker = make(plan, party, rows, user_code, seed)
    try:
        return Site(
            plan,
            party.identity,
            hub,
            trusted={identity.fingerprint: identity for identity in trusted},
            manifest=rows.envelope,
            rows=manifest.rows,
            worker=worker,
            budget=budget,
            journal=journal,
            insecure_test_random=insecure_test_random,
        )
    except BaseException:
        worker.close()
        raise


def _inside(plan: Plan, party: Party, rows: Handover, user_code: Path | None, seed: bytes | None) -> Worker:
    """Return a worker in this process."""
    return make_worker(
        plan,
        rows.manifest.schema,
        _reader(plan, party.vault, rows.manifest.name, rows.envelope),
        user_code=user_code,
        base=party.base,
        site=party.identity.name,
        ranks=party.ranks,
        shard=party.shard,
        device=party.device,
        evaluation=None if party.held_out is None else _reader(plan, party.vault, party.held_out, None),
        insecure_test_random=None if seed is None else StreamRandom(seed),
    )


def _sandboxed(
    plan: Plan, party: Party, rows: Handover, user_code: Path | None, seed: bytes | None
) -> Worker:
    """Return a worker in a process of its own."""
    held_out = party.held_out
    if party.ranks > 1 or party.shard:
        raise InputError(
            "behind its walls a worker is one process, and several were asked for to train together",
            where=party.identity.name,
            fix="Leave --ranks out; or, if you accept that rows share your process: --worker inside",
        )
    if party.device == "cuda":
        raise InputError(
            "behind its walls a worker has no GPU, and one was asked for",
            where=party.identity.name,
            fix="Leave --device out; or, if you accept that rows share your process: --worker inside",
        )
    return SandboxedWorker(
        plan,
        party.identity,
        sandbox(),
        rows,
        held_out=None if held_out is None else party.vault.hand_over(held_out, purpose=plan.study.purpose),
        broker=party.broker,
        user_code=user_code,
        base=party.base,
        insecure_test_seed=seed,
    )


def _budget(plan: Plan, party: Party, manifest: Manifest) -> LedgerBudget | None:
    """Return the site's budget: bound to the population whose rows the dataset holds.

    A budget is about everything that is ever released from its rows. So where they have one, a plan without
    `[privacy]` does not train on them: who writes a plan may not go around what their owner promised.
    """
    ledger, where = party.ledger, f"dataset {manifest.name!r} of {party.identity.name}"
    if ledger is None:
        return None
    if plan.privacy is None:
        populations = ledger.bound(manifest.dataset_id) or ledger.overlap(
            party.vault.fingerprints(manifest.name)
        )
        if populations:
            raise PolicyRefused(
                f"these rows have a budget ({', '.join(populations)}), and the plan claims no privacy",
                where=where,
                fix="Have [privacy] added to the plan, or do not take part",
            )
        return None
    try:
        populations = populations_of(ledger, party.vault, manifest)
    except PolicyRefused as error:  # it does not know whose ledger it is
        raise PolicyRefused(error.what, where=where, fix=error.fix) from error
    return LedgerBudget(ledger, populations, party.identity.name)


def _check_evaluation(plan: Plan, party: Party) -> None:
    """Refuse to show, uncharged, how well the model fits rows that have a budget."""
    if not plan.data.public_rows or party.held_out is None or party.ledger is None:
        return
    # a row that happens to be alike in both is no copy: real data has such rows, so only the dataset counts
    if party.ledger.bound(party.vault.manifest(party.held_out).dataset_id):
        raise PolicyRefused(
            "the rows to evaluate on have a budget, and evaluation is not charged to it",
            where=f"dataset {party.held_out!r} of {party.identity.name}",
            fix="Hold out rows that are public, or none",
        )


def _reader(plan: Plan, vault: Vault, name: str, envelope: bytes | None) -> Callable[[], pa.Table]:
    """Return what opens a dataset for the plan's purpose and reads the columns it uses, no others."""

    def read() -> pa.Table:
        with vault.open(name, purpose=plan.study.purpose) as dataset:
            if envelope not in (None, dataset.envelope):
                raise IntegrityError(
                    "the dataset was replaced after its manifest was shown to the study",
                    where=name,
                    fix="Start the study again",
                )
            return dataset.table(columns_of(plan))

    return read
