"""Batch inference over a dataset of the vault: its rows are read one row group after another, where they lie.

In this order:

1. the dataset was added for the purpose, and is what its owner signed (`Vault.hand_over`);
2. answers about rows that have a budget go to the rows' owner alone: an answer is computed from its row, is
   not charged to anything, and other readers would learn from it what the budget promised to bound;
3. a worker of its own opens the rows, with data keys that are lent one by one, or with those of a key broker,
   which releases them to the attested worker under a grant for this dataset and purpose, and no plan;
4. it seals the answers to their readers; there are as many as the manifest has rows.

Step 2 computes fingerprints of rows, in the process that asks, where the ledger was never told which rows the
dataset has; a study and a query do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cloister.crypto import Identity, PublicIdentity, sha256
from cloister.enclave.broker import Wanted
from cloister.errors import PolicyRefused, ProtocolError
from cloister.inference.released import Artifact
from cloister.inference.walled import MOST_TOKENS, asked, start_worker
from cloister.inference.walledmessages import DatasetRows, Predicted, Rows
from cloister.privacy.ledger import Ledger
from cloister.runtime.workers.asking import KeyLender, Lends
from cloister.runtime.workers.brokered import BrokerAccess, KeyCarrier
from cloister.runtime.workers.messages import Place
from cloister.runtime.workers.session import StartWorker
from cloister.vault import Manifest, Vault
from cloister.vault.handover import Handover

__all__ = ["budgets_of", "predict_dataset", "require_owner_alone"]


def budgets_of(vault: Vault, manifest: Manifest, ledger: Ledger) -> tuple[str, ...]:
    """Return the populations that have a budget for rows of a dataset, under whatever name they come.

    Args:
        vault: the dataset's; its rows' fingerprints are computed where the ledger does not know its id.
        manifest: the dataset's.
        ledger: the owner's.
    """
    return ledger.bound(manifest.dataset_id) or ledger.overlap(vault.fingerprints(manifest.name))


def require_owner_alone(
    vault: Vault, manifest: Manifest, readers: Sequence[PublicIdentity], owner: PublicIdentity, ledger: Ledger
) -> None:
    """Return where the owner is the only reader, or the rows have no budget.

    Args:
        vault: the dataset's.
        manifest: the dataset's.
        readers: who shall read what the rows are told about.
        owner: the vault's.
        ledger: the owner's.

    Raises:
        PolicyRefused: somebody else shall read it, and rows of the dataset have a budget under any name.
    """
    others = [each.name for each in readers if each.fingerprint != owner.fingerprint]
    populations = budgets_of(vault, manifest, ledger) if others else ()
    if populations:
        raise PolicyRefused(
            f"these rows have a budget ({', '.join(populations)}), and predictions are not charged to it",
            where=f"dataset {manifest.name!r}, reader {', '.join(others)}",
            fix=f"Seal them to yourself alone: --to {owner.name}",
        )


def predict_dataset(
    artifact: Artifact,
    handed: Handover,
    *,
    purpose: str,
    identity: Identity,
    readers: Sequence[PublicIdentity],
    output_format: Literal["csv", "parquet"],
    reference: Rows | None = None,
    broker: BrokerAccess | None = None,
    code: bytes | None = None,
    base: Path | None = None,
    tokens: int = MOST_TOKENS,
    start: StartWorker = start_worker,
) -> Predicted:
    """Have a walled worker predict a dataset; it lives for this call. Who may read is asked before.

    Args:
        artifact: the model, as it was verified.
        handed: the dataset, of `Vault.hand_over` for this purpose.
        purpose: what the rows are used for.
        identity: the dataset's owner; the session is signed with it.
        readers: to whom the worker seals the answers.
        output_format: what the predictions are written as.
        reference: rows to scale by.
        broker: keeps keys of the vault's datasets; None where the vault does.
        code: the file of a model that is a module of a user's own, who has read and allows it.
        base: folder of a language model's base; None for other models.
        tokens: of an answer at most, where the model writes.
        start: starts the worker.

    Raises:
        PolicyRefused: the machine lacks a wall, the purpose is another, or the broker refuses.
        IntegrityError: the dataset, or a key of it, is not what its owner signed.
        ProtocolError: the worker ended, broke the protocol, or asked for what is not this dataset's.
        CloisterError: what the worker ran into.
    """
    access = broker if broker is not None and broker.holds(handed.manifest.kek_id) else None
    place = Place(
        str(handed.folder.resolve()), handed.envelope, None if access is None else access.identity.to_json()
    )
    lender = _lender(handed, access, purpose)
    try:
        answer = asked(
            artifact,
            DatasetRows(place, purpose),
            reference,
            output_format,
            readers,
            code,
            base=base,
            tokens=tokens,
            identity=identity,
            lender=lender,
            start=start,
        )
    finally:
        if isinstance(lender, KeyCarrier):
            lender.close()
    if answer.rows != handed.manifest.rows:
        raise ProtocolError("the worker answered for another number of rows than the dataset has")
    return answer


def _lender(handed: Handover, access: BrokerAccess | None, purpose: str) -> Lends:
    columns = len(handed.manifest.schema.columns)
    if access is None:
        return KeyLender(handed.data_key, columns)
    manifest = sha256(handed.envelope).hex()
    return KeyCarrier(access, Wanted(handed.manifest.kek_id, manifest, None, purpose), columns)
