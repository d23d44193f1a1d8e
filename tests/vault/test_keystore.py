from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from tests.contracts.key_service import KeyServiceContract
from tests.vault.world import CHEAP

from cloister.crypto import ScryptCost
from cloister.errors import InputError, IntegrityError, PassphraseError
from cloister.types import KeyService
from cloister.vault import LocalKeystore, Wrapping


class TestHybridKeystore(KeyServiceContract):
    def make(self, folder: Path) -> KeyService:
        return LocalKeystore.initialise(folder / "keystore.json", "pw", cost=CHEAP)


class TestRsaKeystore(KeyServiceContract):
    template: bytes = b""

    def make(self, folder: Path) -> KeyService:
        path = folder / "keystore.json"
        if not self.template:  # an RSA key takes its time: one for all tests
            LocalKeystore.initialise(path, "pw", wrapping=Wrapping.RSA_OAEP_3072, cost=CHEAP)
            type(self).template = path.read_bytes()
        path.write_bytes(self.template)
        return LocalKeystore.open(path, "pw")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "keystore.json"


def made(path: Path, **options: object) -> LocalKeystore:
    return LocalKeystore.initialise(path, "pw", cost=CHEAP, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapping", list(Wrapping))
def test_it_opens_again(path: Path, wrapping: Wrapping) -> None:
    keystore = made(path, wrapping=wrapping)
    keystore.create("a")
    wrapped = keystore.wrap("a", b"k" * 32)
    again = LocalKeystore.open(path, "pw")
    assert again.ids() == ("a",)
    assert again.unwrap("a", wrapped) == b"k" * 32


def test_the_file_is_for_its_owner_alone_also_after_a_change(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_there_is_no_second_initialisation(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    with pytest.raises(InputError, match="exists"):
        made(path)
    assert LocalKeystore.open(path, "pw").ids() == ("a",)


@pytest.mark.parametrize("passphrase", ["PW", "pw ", "x" * 1024], ids=["case", "space", "long"])
def test_wrong_passphrase(path: Path, passphrase: str) -> None:
    made(path)
    with pytest.raises(PassphraseError) as caught:
        LocalKeystore.open(path, passphrase)
    assert passphrase not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("passphrase", ["", "x" * 1025])
def test_unusable_passphrase(path: Path, passphrase: str) -> None:
    with pytest.raises(PassphraseError):
        LocalKeystore.initialise(path, passphrase, cost=CHEAP)
    assert not path.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"\xff\xfe", b"[1]", b'{"header": 1}', b"x" * 1000, b'{"keks": {"\xff": ""}}'],
    ids=["empty", "no", "bytes", "list", "int", "x", "text"],
)
def test_nonsense_is_no_keystore(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(InputError):
        LocalKeystore.open(path, "pw")


def edit(path: Path, change: object) -> None:
    tree = json.loads(path.read_bytes())
    change(tree)  # type: ignore[operator]
    path.write_text(json.dumps(tree))


def test_costs_out_of_bounds_are_refused_before_they_are_paid(path: Path) -> None:
    made(path)
    for cost in ({"n": 2**40, "r": 8, "p": 1}, {"n": 1024, "r": 8, "p": 10**9}, {"n": 1000, "r": 8, "p": 1}):
        edit(path, lambda tree, cost=cost: tree["header"].update(cost=cost))
        with pytest.raises(InputError):
            LocalKeystore.open(path, "pw")


def test_weaker_cost_written_into_the_file_does_not_open_it(path: Path) -> None:
    made(path)
    edit(path, lambda tree: tree["header"]["cost"].update(n=512))
    with pytest.raises(PassphraseError):
        LocalKeystore.open(path, "pw")


def test_a_changed_table_is_noticed(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    keystore.create("b")
    whole = path.read_bytes()

    def swap(tree: dict) -> None:  # type: ignore[type-arg]
        keks = tree["keks"]
        keks["a"], keks["b"] = keks["b"], keks["a"]

    def rename(tree: dict) -> None:  # type: ignore[type-arg]
        tree["keks"]["c"] = tree["keks"].pop("a")

    def drop(tree: dict) -> None:  # type: ignore[type-arg]
        del tree["keks"]["a"]

    for change in (swap, rename, drop):
        path.write_bytes(whole)
        edit(path, change)
        with pytest.raises(IntegrityError):
            LocalKeystore.open(path, "pw")
        with pytest.raises(IntegrityError):
            keystore.create("d")  # an open keystore does not build on it either


def test_a_kek_planted_under_the_public_key_is_not_taken(path: Path) -> None:
    """Anybody can encrypt to the public key; only the passphrase makes the table authentic."""
    keystore, other = made(path), made(path.with_name("other.json"))
    other.create("a")
    planted = json.loads(path.with_name("other.json").read_bytes())["keks"]["a"]
    edit(path, lambda tree: tree["keks"].update(a=planted))
    with pytest.raises(IntegrityError):
        keystore.wrap("a", bytes(32))


def test_another_public_key_does_not_go_unnoticed(path: Path) -> None:
    made(path)
    made(path.with_name("other.json"))
    public = json.loads(path.with_name("other.json").read_bytes())["header"]["public"]
    edit(path, lambda tree: tree["header"].update(public=public))
    with pytest.raises(PassphraseError):
        LocalKeystore.open(path, "pw")


def test_keys_are_not_on_the_disk(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    kek = keystore._kek("a")
    content = path.read_bytes()
    assert kek not in content
    assert kek.hex().encode() not in content


def test_close_forgets_and_use_remembers(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    wrapped = keystore.wrap("a", b"k" * 32)
    keystore.close()
    assert not keystore._keks
    assert keystore.unwrap("a", wrapped) == b"k" * 32


def test_destroy_says_what_may_survive(path: Path) -> None:
    keystore = made(path)
    keystore.create("a")
    sentence = keystore.destroy("a")
    assert "SSD" in sentence
    assert "backups" in sentence
    assert b'"a"' not in path.read_bytes()


def test_a_destroyed_kek_is_gone_for_an_open_keystore_of_another_process_that_has_not_used_it(
    path: Path,
) -> None:
    keystore = made(path)
    keystore.create("a")
    wrapped = keystore.wrap("a", bytes(32))
    other = LocalKeystore.open(path, "pw")
    keystore.destroy("a")
    with pytest.raises(InputError):
        other.unwrap("a", wrapped)


def _create_many(path: Path, prefix: str) -> None:
    keystore = LocalKeystore.open(path, "pw")
    for number in range(8):
        keystore.create(f"{prefix}{number}")


def test_processes_that_add_at_once_lose_nothing(path: Path) -> None:
    made(path)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_create_many, args=(path, prefix)) for prefix in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert all(worker.exitcode == 0 for worker in workers)
    assert len(LocalKeystore.open(path, "pw").ids()) == 16


def test_the_default_cost_is_not_a_cheap_one() -> None:
    cost = ScryptCost()
    assert 128 * cost.n * cost.r >= 64 << 20
