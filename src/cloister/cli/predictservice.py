"""`cloister predict https://SERVICE FILE`: a served table model answers, after it was verified.

1. The service is verified by the home's enclave policy, or the one given; every request is sealed to it.
2. Rows are read in this process, in chunks: a file's columns, or a dataset's features. Nothing else is sent.
3. Answers come back to this process, which seals them to their readers. Every one has a signed receipt, of
   the same model.

A dataset of the vault may be asked about for its purposes alone. Where its rows have a budget, no reader but
their owner is allowed, and no service that hardware does not vouch for: who runs its machine would be one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cloister.cli import common
from cloister.cli.predictfile import Answer, Format
from cloister.cli.releasedmodel import rows_path
from cloister.errors import InputError, ProtocolError, SchemaError

if TYPE_CHECKING:
    import pyarrow as pa

    from cloister.crypto import PublicIdentity
    from cloister.inference.client import PrivateClient
    from cloister.inference.client.verify import Verified
    from cloister.inference.servicescores import Post
    from cloister.vault.sources import Source

__all__ = ["Service", "is_service", "of_service"]

_JSON: Final = {"content-type": "application/json"}
_TELL_SECONDS: Final = 10.0
"""How often a long run says how far it is."""


@dataclass(frozen=True)
class Service:
    """A service, and how it is asked.

    Attributes:
        url: its address.
        policy: a file that says which evidence is accepted; None for the home's.
        token_file: holds the token; None without one.
        relay: asked in the service's place, or None.
        receipts: a file to keep receipts in, or None.
        model_digest: the one model that is accepted; empty for any.
        tls_ca: certificates that its TLS may end in, or None.
        columns: that are sent; empty for a file's columns, or a dataset's features.
    """

    url: str
    policy: Path | None = None
    token_file: Path | None = None
    relay: str | None = None
    receipts: Path | None = None
    model_digest: str = ""
    tls_ca: Path | None = None
    columns: Sequence[str] = ()


def is_service(model: str) -> bool:
    """Return whether a command line means a service and not a release's folder."""
    return model.lower().startswith(("https://", "http://"))


def of_service(
    service: Service,
    rows: Path | str,
    purpose: str | None,
    readers: Sequence[PublicIdentity] | None,
    output_format: Format,
) -> tuple[Answer, dict[str, Any]]:
    """Return predictions, sealed where they have readers, and what there is to know of the service.

    Args:
        service: what is asked.
        rows: a file's path, or the name of a dataset.
        purpose: of a dataset, or None.
        readers: to whom the predictions are sealed; None for nobody.
        output_format: what they are written as.

    Raises:
        PolicyRefused, VerificationError: the service does not pass; or purpose, budget or a broker says no.
        ProtocolError: it broke the exchange, or answered what it was not asked.
        SchemaError: a row breaks the model's schema.
    """
    from cloister.crypto import seal_bytes
    from cloister.inference.rowgroups import together
    from cloister.inference.servicescores import service_scores

    common.say("Rows are read in this process, and sealed to the service; its answers come back here.")
    names: list[str] = []

    def noted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        done, told = 0, time.monotonic()
        for table in tables:
            names[:], done = table.column_names, done + table.num_rows
            if time.monotonic() - told >= _TELL_SECONDS:
                common.say(f"{done:,} rows are answered ...")
                told = time.monotonic()
            yield table

    with contextlib.ExitStack() as stack:
        if isinstance(rows, Path):
            given = stack.enter_context(_of_file(rows, service.columns))
        else:
            given = stack.enter_context(_of_dataset(rows, purpose, readers or [], service.columns))
        client, verified = stack.enter_context(_verified(service, hardware=given.budget))
        post = _posting(client, verified.keys.model_digest)
        try:
            content, count = together(noted(service_scores(post, given.batches)), output_format.value)
        except SchemaError as error:
            raise SchemaError(
                error.what, line=given.line(error.line), column=error.column, fix=error.fix
            ) from error
        given.check()
    if not count:
        raise InputError("there are no rows", fix="Give at least one")
    about = {
        **given.about,
        "model": verified.keys.model,
        "model_digest": verified.keys.model_digest,
        "keys": verified.keys.digest.hex(),
        "protection": verified.protection,
    }
    return Answer(content if readers is None else seal_bytes(content, readers), count, names), about


@dataclass(frozen=True)
class _Given:
    """Rows to ask about.

    Attributes:
        batches: the rows.
        about: what there is to know of a dataset.
        budget: whether they have one.
        source: of a file's rows, which knows their lines; None for a dataset.
    """

    batches: Iterator[pa.RecordBatch]
    about: dict[str, Any]
    budget: bool = False
    source: Source | None = None

    def line(self, row: int | None) -> int | None:
        """Return the line of a row, from 1; of a dataset the number is all there is."""
        if row is None or self.source is None:
            return row
        return next((each.line for each in self.source.records() if each.row == row - 1), row)

    def check(self) -> None:
        """Raise SchemaError where a record of the file could not be read and was not asked about."""
        if self.source is not None and self.source.unreadable:
            bad = next(each for each in self.source.records() if each.row is None)
            raise SchemaError(bad.reason, line=bad.line, fix="Correct the row")


@contextlib.contextmanager
def _of_file(file: Path, columns: Sequence[str]) -> Iterator[_Given]:
    """Yield the rows of a file, opened in memory where it is sealed."""
    from cloister.vault.sources import open_source

    with rows_path(file) as path:
        source = open_source(path)
        for name in columns:
            if name not in source.names:
                raise SchemaError("the column is absent", column=name, fix="Name one of the file's")
        yield _Given(source.batches(list(columns) or list(source.names)), {}, source=source)


@contextlib.contextmanager
def _of_dataset(
    dataset: str, purpose: str | None, readers: Sequence[PublicIdentity], columns: Sequence[str]
) -> Iterator[_Given]:
    """Yield the rows of a dataset, opened in this process; what a broker keeps is not."""
    from cloister.cli.brokerkeys import open_vault
    from cloister.cli.predictdataset import budgets_of_home, purpose_of, require_readers

    root, identity = common.home() / "vault", common.load_identity()
    vault = open_vault(root, identity, common.passphrase())
    manifest = vault.manifest(dataset)
    wanted = purpose_of(manifest, purpose)
    with vault.open(dataset, purpose=wanted) as opened:
        require_readers(vault, manifest, readers, identity)
        budget = bool(budgets_of_home(vault, manifest, identity))
        features = [name for name, column in manifest.schema.columns.items() if column.role == "feature"]
        batches = opened.batches(list(columns) or features)
        yield _Given(batches, {"dataset": dataset, "purpose": wanted}, budget)


@contextlib.contextmanager
def _verified(service: Service, *, hardware: bool) -> Iterator[tuple[PrivateClient, Verified]]:
    """Yield a client of a verified service; of one that hardware vouches for, where that is needed."""
    from cloister.cli.serviceoptions import client_policy, in_reach, read_token, tell_verified, tls_of
    from cloister.inference.client import PrivateClient

    policy = client_policy(service.policy)
    if hardware and policy.allow_software_tee:
        common.say("These rows have a budget: evidence that no hardware stands behind is not accepted.")
        policy = msgspec.structs.replace(policy, allow_software_tee=False)
    client = PrivateClient(
        service.url,
        policy,
        token=read_token(service.token_file) or "",
        receipts=service.receipts,
        relay=service.relay,
        model_digest=service.model_digest,
        verify=tls_of(service.tls_ca),
    )
    with client, in_reach(service.relay or service.url):
        verified = client.attest()
        tell_verified(service.url, verified)
        yield client, verified


def _posting(client: PrivateClient, model_digest: str) -> Post:
    """Return what asks a service, whose every answer has a receipt of this one model."""
    from cloister.inference.client.privateclient import receipt_of
    from cloister.inference.servicescores import PATH

    def post(body: bytes) -> tuple[int, bytes]:
        response = client.post(PATH, content=body, headers=_JSON)
        receipt = receipt_of(response)
        if receipt is None or receipt.model_digest != model_digest:
            raise ProtocolError(
                "an answer has no receipt of the model that was verified", fix="Do not use it; ask again"
            )
        return response.status_code, response.content

    return post
