from __future__ import annotations

from pathlib import Path

import pytest
from tests.contracts.key_service import KeyServiceContract
from tests.enclave.broker.world import (
    KEK,
    NOW,
    PURPOSE,
    Home,
    InsecureAttesterDouble,
    filled,
    identity,
    over_socket,
    permission,
    served,
    worker,
)

from cloister.enclave.broker import BrokerKeys
from cloister.errors import InputError, IntegrityError, PolicyRefused, StorageError
from cloister.types import KeyService


class _AllowsAtOnce(BrokerKeys):
    """Owner and attested worker in one, so that the contract can wrap and unwrap."""

    def create(self, kek_id: str) -> None:
        super().create(kek_id)
        self.allow(permission(1000, kek_id=kek_id))


class TestBrokerKeys(KeyServiceContract):
    home: Home

    @pytest.fixture(autouse=True)
    def _close(self) -> object:
        yield
        self.home.close()

    def make(self, folder: Path) -> KeyService:
        self.home = Home(folder / "broker")
        return _AllowsAtOnce(
            self.home.connect, identity("broker").public, owner=identity("alice"), worker=worker()
        )


def test_a_worker_with_accepted_evidence_gets_the_data_key(home: Home) -> None:
    wrapped = filled(home)
    keys = home.worker()
    assert keys.unwrap(KEK, wrapped) == b"k" * 32
    released = home.entries()[-1]
    assert released["entry"] == "released"
    assert released["appraised"]["protection"] == "not hardware-protected"  # type: ignore[index]
    assert released["grant"]["wanted"]["purpose"] == PURPOSE  # type: ignore[index]


def test_opening_a_dataset_of_many_columns_is_one_use_and_one_attestation(home: Home) -> None:
    wrapped = filled(home)
    attester = InsecureAttesterDouble()
    keys = home.worker(attester)
    others = [home.owner().wrap(KEK, bytes([n]) * 32) for n in range(5)]
    assert keys.unwrap(KEK, wrapped) == b"k" * 32
    assert [keys.unwrap(KEK, each) for each in others] == [bytes([n]) * 32 for n in range(5)]
    assert keys.unwrap_all(KEK, others) == [bytes([n]) * 32 for n in range(5)]
    assert len(attester.made) == 1
    assert home.owner().inventory().permissions[0].used == 1
    entries = [entry for entry in home.entries() if entry["entry"] == "released"]
    assert [entry["more"] for entry in entries] == [False] + [True] * 5


def test_further_keys_of_a_session_that_is_over_take_new_evidence(home: Home) -> None:
    wrapped = filled(home, uses=2)
    other = home.owner().wrap(KEK, b"o" * 32)
    attester = InsecureAttesterDouble()
    keys = home.worker(attester)
    keys.unwrap(KEK, wrapped)
    home.clock.move(seconds=601)
    assert keys.unwrap(KEK, other) == b"o" * 32
    assert len(attester.made) == 2
    assert home.owner().inventory().permissions[0].used == 2


def test_an_owner_without_a_worker_opens_only_what_it_has_just_wrapped(home: Home) -> None:
    owner = home.owner()
    owner.create(KEK)
    wrapped = owner.wrap(KEK, b"k" * 32)
    assert owner.unwrap(KEK, wrapped) == b"k" * 32
    owner.close()
    with pytest.raises(PolicyRefused, match="attested workers alone"):
        owner.unwrap(KEK, wrapped)


def test_a_worker_gives_no_orders(home: Home) -> None:
    filled(home)
    keys = home.worker()
    for act in (
        lambda: keys.create("other"),
        lambda: keys.wrap(KEK, bytes(32)),
        lambda: keys.destroy(KEK),
        lambda: keys.allow(permission()),
        lambda: keys.inventory(),
    ):
        with pytest.raises(PolicyRefused):
            act()


def test_another_owner_has_no_say_over_a_key(home: Home) -> None:
    filled(home)
    bob = home.owner("bob")
    with pytest.raises(PolicyRefused, match="another owner"):
        bob.wrap(KEK, bytes(32))
    with pytest.raises(PolicyRefused, match="another owner"):
        bob.destroy(KEK)
    with pytest.raises(PolicyRefused, match="another owner"):
        bob.allow(permission())
    with pytest.raises(InputError, match="no such grant"):
        bob.revoke(home.owner().inventory().permissions[0].permission.id)
    with pytest.raises(InputError, match="exists"):
        bob.create(KEK)
    assert bob.inventory().keks == ()
    assert [entry["entry"] for entry in home.entries()][-3:] == ["refused"] * 3


def test_a_stranger_gives_no_orders(home: Home) -> None:
    filled(home)
    with pytest.raises(PolicyRefused, match="takes no orders"):
        home.owner("eve").create("mine")
    assert home.entries()[-1]["what"] == "order"


def test_a_grant_that_has_expired_already_is_not_taken(home: Home) -> None:
    filled(home)
    with pytest.raises(InputError, match="expired already"):
        home.owner().allow(permission(expires=NOW))


def test_over_a_socket(home: Home, tmp_path: Path) -> None:
    with served(home, tmp_path / "b.sock") as path:
        owner = over_socket(path, owner=identity("alice"))
        owner.create(KEK)
        owner.allow(permission())
        wrapped = owner.wrap(KEK, b"k" * 32)
        keys = over_socket(path, worker=worker())
        assert keys.unwrap(KEK, wrapped) == b"k" * 32
        owner.close()
        keys.close()
    assert not path.exists()


def test_a_connection_that_broke_is_made_again(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    with served(home, path):
        owner = over_socket(path, owner=identity("alice"))
        owner.create(KEK)
    with pytest.raises(StorageError, match="does not answer"):
        owner.create("second")
    with served(home, path):
        owner.create("second")
        assert [kek.kek_id for kek in owner.inventory().keks] == [KEK, "second"]
        owner.close()


def test_a_broker_that_was_started_anew_is_found_again_and_asks_for_new_evidence(
    home: Home, tmp_path: Path
) -> None:
    wrapped = filled(home, uses=2)
    other = home.owner().wrap(KEK, b"o" * 32)
    attester = InsecureAttesterDouble()
    keys = over_socket(tmp_path / "b.sock", worker=worker(attester))
    with served(home, tmp_path / "b.sock"):
        assert keys.unwrap(KEK, wrapped) == b"k" * 32
    home.restart()
    with served(home, tmp_path / "b.sock"):
        assert keys.unwrap(KEK, other) == b"o" * 32
    assert len(attester.made) == 2
    keys.close()


def test_nobody_serves(tmp_path: Path) -> None:
    keys = over_socket(tmp_path / "b.sock", owner=identity("alice"))
    with pytest.raises(StorageError, match="broker serve"):
        keys.create("a")


def test_another_broker_at_the_address_is_not_believed(home: Home) -> None:
    keys = BrokerKeys(home.connect, identity("eve").public, owner=identity("alice"))
    with pytest.raises(IntegrityError, match="another key broker"):
        keys.create("a")
    assert home.entries() == []


def test_a_long_path(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 90) / ("e" * 90)
    folder.mkdir(parents=True)
    with served(home, folder / "b.sock") as path:
        owner = over_socket(path, owner=identity("alice"))
        owner.create(KEK)
        owner.close()
