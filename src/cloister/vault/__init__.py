"""The vault: rows go in through a schema, lie encrypted, and come out for a declared purpose.

    vault = Vault.unlock(home / "vault", identity, passphrase)
    manifest = vault.add(path, name="patients", schema=load_schema(schema_path), purposes=["heart study"])
    with vault.open("patients", purpose="heart study") as dataset:
        for batch in dataset.batches(["age", "label"]):
            ...

`vault.vault` says in which order things are checked, `schema` what may be declared, `parquet` how rows are
encrypted.
"""

from cloister.vault.catalog import Catalog
from cloister.vault.dataset import Dataset
from cloister.vault.draft import draft_schema
from cloister.vault.ingest import Quarantined
from cloister.vault.keystore import LocalKeystore, Wrapping
from cloister.vault.manifest import Manifest, open_manifest
from cloister.vault.schema import Column, Schema, load_schema
from cloister.vault.splitkeys import SplitKeys
from cloister.vault.vault import Vault
from cloister.vault.verify import Check

__all__ = [
    "Catalog",
    "Check",
    "Column",
    "Dataset",
    "LocalKeystore",
    "Manifest",
    "Quarantined",
    "Schema",
    "SplitKeys",
    "Vault",
    "Wrapping",
    "draft_schema",
    "load_schema",
    "open_manifest",
]
