"""The whole way of a dataset: into the vault with its key in the broker, and open in an attested worker."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from tests.enclave.broker.world import Home, InsecureAttesterDouble, identity, permission
from tests.vault.world import CHEAP, PASSPHRASE, PURPOSE, add, owner, rows, write_rows

from cloister.crypto import sha256
from cloister.enclave.broker import BrokerKeys, Worker
from cloister.errors import IntegrityError, PolicyRefused, SchemaError
from cloister.types import KeyService
from cloister.vault import Catalog, LocalKeystore, SplitKeys, Vault
from cloister.vault.fingerprintfile import FINGERPRINTS_NAME
from cloister.vault.handover import open_handed

PLAN = "22" * 32


class _World:
    def __init__(self, home: Home, root: Path) -> None:
        self.home, self.root = home, root
        self.local = LocalKeystore.initialise(root / "keystore.json", PASSPHRASE, cost=CHEAP)

    def owners_keys(self) -> BrokerKeys:
        return BrokerKeys(self.home.connect, identity("broker").public, owner=identity("alice"))

    def vault(self) -> Vault:
        """The owner's vault as a new process sees it."""
        keys: KeyService = SplitKeys(self.local, self.owners_keys(), new=True)
        return Vault(self.root, owner(), keys)

    def grant(self, uses: int = 1, plan: str | None = PLAN) -> None:
        manifest = Catalog(self.root, owner().public).manifest("heart")
        self.owners_keys().allow(
            permission(uses, kek_id=manifest.kek_id, manifest=self.digest(), plan=plan, purpose=PURPOSE)
        )

    def digest(self) -> str:
        return sha256(Catalog(self.root, owner().public).envelope("heart")).hex()

    def read(self, attester: InsecureAttesterDouble | None = None) -> pa.Table:
        """Read the rows as a worker: with folder, signed manifest and evidence, and no keystore."""
        catalog = Catalog(self.root, owner().public)
        party = Worker(
            attester or InsecureAttesterDouble(), manifest=self.digest(), plan=PLAN, purpose=PURPOSE
        )
        keys = BrokerKeys(self.home.connect, identity("broker").public, worker=party)
        kek_id = catalog.manifest("heart").kek_id
        with open_handed(
            catalog.folder("heart"),
            catalog.envelope("heart"),
            owner().public,
            purpose=PURPOSE,
            data_key=lambda wrapped: keys.unwrap(kek_id, wrapped),
        ) as dataset:
            table = dataset.table()
            assert dataset.table(["age"]).num_rows == table.num_rows  # again, without another use
            return table


@pytest.fixture
def world(home: Home, tmp_path: Path) -> _World:
    return _World(home, tmp_path / "vault")


def test_a_dataset_opens_for_an_attested_worker_and_for_nobody_else(world: _World, tmp_path: Path) -> None:
    add(world.vault(), rows(tmp_path / "rows.csv", 40))
    world.grant()
    with (
        pytest.raises(PolicyRefused, match="attested workers alone"),
        world.vault().open("heart", purpose=PURPOSE) as dataset,
    ):
        dataset.table()
    with pytest.raises(PolicyRefused, match="none of the accepted images"):
        world.read(InsecureAttesterDouble("bb" * 32))
    table = world.read()
    assert table.num_rows == 40
    assert sorted(table.column("age").to_pylist())[:2] == [20, 21]
    with pytest.raises(PolicyRefused, match="every use"):
        world.read()
    released = [entry for entry in world.home.entries() if entry["entry"] == "released"]
    assert released[0]["more"] is False
    assert {entry["grant"]["use"] for entry in released} == {1}  # type: ignore[index]


def test_another_dataset_is_added_in_another_process(world: _World, tmp_path: Path) -> None:
    """The vault's own secret stays in the keystore, so that an owner needs no worker to add rows."""
    add(world.vault(), rows(tmp_path / "rows.csv", 10))
    add(world.vault(), rows(tmp_path / "rows.csv", 10), "second")
    assert len(world.owners_keys().inventory().keks) == 2
    assert world.local.ids() == ("vault.owner",)


def test_an_add_that_fails_leaves_no_key_in_the_broker(world: _World, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.csv", "P1,not a number,1.0,male,x,y,yes,1")
    with pytest.raises(SchemaError):
        add(world.vault(), bad)
    assert world.owners_keys().inventory().keks == ()
    assert [entry["entry"] for entry in world.home.entries()] == ["created", "destroyed"]


def test_a_removed_dataset_is_gone_from_the_broker(world: _World, tmp_path: Path) -> None:
    add(world.vault(), rows(tmp_path / "rows.csv", 10))
    world.grant()
    assert "The broker's copy of the key was destroyed" in world.vault().remove("heart")
    assert world.owners_keys().inventory().keks == ()


def test_a_grant_of_an_earlier_manifest_opens_no_later_one(world: _World, tmp_path: Path) -> None:
    add(world.vault(), rows(tmp_path / "rows.csv", 10))
    world.grant()
    world.vault().remove("heart")
    add(world.vault(), rows(tmp_path / "rows.csv", 12))
    with pytest.raises(PolicyRefused, match="granted nothing"):
        world.read()


def test_key_material_of_another_dataset_is_refused(world: _World, tmp_path: Path) -> None:
    add(world.vault(), rows(tmp_path / "rows.csv", 10))
    add(world.vault(), rows(tmp_path / "rows.csv", 10), "second")
    world.grant()
    heart, second = (world.root / "datasets" / name for name in ("heart", "second"))
    for name in ("data.parquet", "_KEY_MATERIAL_FOR_data.parquet.json"):
        (heart / name).write_bytes((second / name).read_bytes())
    with pytest.raises(IntegrityError):
        world.read()


def test_the_owner_keeps_fingerprints_of_rows_it_cannot_open(world: _World, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.csv", 40)
    add(world.vault(), source)
    local = Vault(world.root, owner(), SplitKeys(world.local, world.owners_keys(), new=False))
    add(local, source, "plain")
    kept = world.vault().fingerprints("heart")
    assert len(kept) == 40 * 32
    assert kept == local.fingerprints("plain")  # a budget counts them as the same rows
    folder = Catalog(world.root, owner().public).folder("heart")
    assert not (folder.with_name("plain") / FINGERPRINTS_NAME).exists()
    path = folder / FINGERPRINTS_NAME
    data = path.read_bytes()
    assert kept[:32] not in data
    for position in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(IntegrityError):
            world.vault().fingerprints("heart")
    path.write_bytes(data[:-32])
    with pytest.raises(IntegrityError):
        world.vault().fingerprints("heart")
    path.unlink()
    with pytest.raises(PolicyRefused, match="attested workers alone"):
        world.vault().fingerprints("heart")
