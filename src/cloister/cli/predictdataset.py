"""`cloister predict MODEL --dataset NAME --to KEY`: batch predictions over a dataset of the home's vault.

1. The purpose is said, or the dataset has one only; it must be one of the dataset's.
2. Where the home has a ledger, and others than its owner shall read the predictions, rows that have a budget
   are refused: exit code 3.
3. A walled worker opens the rows where they lie, with keys that the vault lends one by one, or those that a
   key broker releases to it under a grant for this dataset and purpose; a row group at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cloister.cli import common
from cloister.cli.predictfile import Answer, Asked, predictor_inside
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.privacy.ledger import Ledger
    from cloister.runtime.workers.brokered import BrokerAccess
    from cloister.vault import Manifest, Vault

__all__ = ["budgets_of_home", "of_dataset", "purpose_of", "require_readers"]


def of_dataset(asked: Asked, dataset: str, purpose: str | None, *, sandboxed: bool) -> tuple[Answer, str]:
    """Return predictions for a dataset, sealed, and the purpose they were made for.

    Raises:
        InputError: there is no such dataset, or it has several purposes and none was said.
        PolicyRefused: purpose, budget, or a key broker says no.
        IntegrityError: the dataset is not what its owner signed.
    """
    from cloister.cli.brokerkeys import vault_and_broker
    from cloister.cli.evidence import HomeEvidence
    from cloister.crypto import Identity
    from cloister.vault import Catalog

    home = common.home()
    manifest = Catalog(home / "vault", Identity.read_public(common.identity_path())).manifest(dataset)
    wanted = purpose_of(manifest, purpose)
    identity = common.load_identity()
    with contextlib.ExitStack() as stack:
        evidence = HomeEvidence(home, identity.public, stack, common.say)
        vault, broker = vault_and_broker(home, identity, common.passphrase(), evidence)
        require_readers(vault, manifest, asked.readers or [], identity)
        work = _walled if sandboxed else _inside
        return work(asked, vault, dataset, wanted, identity, broker), wanted


def purpose_of(manifest: Manifest, purpose: str | None) -> str:
    """Return what a dataset is opened for: as said, or its one purpose. Whether it may be, the vault says.

    Raises:
        InputError: it has several, and none was said.
    """
    if purpose is None and len(manifest.purposes) > 1:
        named = ", ".join(map(repr, manifest.purposes))
        raise InputError("what the predictions are for is not said", fix=f"Give --purpose, one of {named}")
    return manifest.purposes[0] if purpose is None else purpose


def require_readers(
    vault: Vault, manifest: Manifest, readers: Sequence[PublicIdentity], identity: Identity
) -> None:
    """Raise PolicyRefused where rows that have a budget would be told to others than their owner."""
    from cloister.inference.batch import require_owner_alone

    if all(reader.fingerprint == identity.fingerprint for reader in readers):
        return
    with _ledger(manifest, identity) as ledger:
        if ledger is not None:
            require_owner_alone(vault, manifest, readers, identity.public, ledger)


def budgets_of_home(vault: Vault, manifest: Manifest, identity: Identity) -> tuple[str, ...]:
    """Return the populations of this home's ledger that have a budget for rows of a dataset."""
    from cloister.inference.batch import budgets_of

    with _ledger(manifest, identity) as ledger:
        return () if ledger is None else budgets_of(vault, manifest, ledger)


@contextlib.contextmanager
def _ledger(manifest: Manifest, identity: Identity) -> Iterator[Ledger | None]:
    """Yield this home's ledger; None where no rows have a budget."""
    from cloister.privacy.ledger import ledger_exists

    if not ledger_exists(common.home() / "ledger"):
        yield None
        return
    with common.open_ledger(common.home(), identity, manifest.name) as ledger:
        yield ledger


def _walled(
    asked: Asked, vault: Vault, dataset: str, purpose: str, identity: Identity, broker: BrokerAccess | None
) -> Answer:
    """Have a walled worker open the rows and predict."""
    from cloister.inference.batch import predict_dataset
    from cloister.inference.walled import rows_of

    reference = None if asked.reference is None else rows_of(asked.reference, common.load_identity)
    answer = predict_dataset(
        asked.artifact,
        vault.hand_over(dataset, purpose=purpose),
        purpose=purpose,
        identity=identity,
        readers=asked.readers or [],
        output_format=asked.output_format.value,
        reference=reference,
        broker=broker,
        code=asked.code,
        base=asked.base,
        tokens=asked.tokens,
    )
    return Answer(bytes(answer.content), answer.rows, answer.columns)


def _inside(
    asked: Asked, vault: Vault, dataset: str, purpose: str, identity: Identity, broker: BrokerAccess | None
) -> Answer:
    """Open the rows and predict in this process; what a broker keeps is not opened here."""
    from cloister.crypto import seal_bytes
    from cloister.inference.rowgroups import scored

    with predictor_inside(asked) as predictor, vault.open(dataset, purpose=purpose) as opened:
        content, rows = scored(opened, predictor, asked.output_format.value)
        return Answer(seal_bytes(content, asked.readers or []), rows, list(predictor.columns))
