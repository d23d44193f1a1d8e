"""Attacks on sealed models: by who has the folder, by another owner, by who carries keys."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.enclave.broker.world import Home, InsecureAttesterDouble, identity, permission
from tests.inference.modelworld import (
    FILES,
    WEIGHTS,
    Keys,
    manifest_of,
    opened,
    person,
    read_all,
    resigned,
    sealed,
    write_files,
)

from cloister.crypto import envelope_signers
from cloister.enclave.broker import BrokerKeys
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused
from cloister.inference.models.keys import PURPOSE, ModelHandover, broker_data_key, kept_elsewhere
from cloister.inference.models.manifest import (
    CHUNK,
    MANIFEST_NAME,
    ModelManifest,
    manifest_digest,
    open_manifest,
    stored_name,
)
from cloister.inference.models.sealed import SealedModel, opened_model, read_envelope
from cloister.inference.models.sealing import seal_model
from cloister.inference.models.verify import verify_model
from cloister.learning.modelfiles.files import PlainFolder

SEALED = CHUNK + 16
WEIGHTS_FILE = stored_name(sorted(FILES).index("model.safetensors"))


def flipped(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    for number, name in enumerate(sorted(FILES)):
        path = folder / stored_name(number)
        length = path.stat().st_size
        for position in {0, length // 2, length - 17, length - 1, SEALED - 1, SEALED} & set(range(length)):
            flipped(path, position)
            with opened(folder, keys) as model, pytest.raises(IntegrityError, match="does not open"):
                model.check(name)
            with opened(folder, keys) as model, pytest.raises(IntegrityError):
                model.read(name) if FILES[name] else model.check(name)
            flipped(path, position)
    assert read_all(folder, keys) == FILES


def test_what_does_not_open_leaves_nothing_behind(tmp_path: Path) -> None:
    """A reader's memory holds zeros where a chunk failed, not unauthenticated plaintext."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    flipped(folder / WEIGHTS_FILE, SEALED + 5)
    room = bytearray(b"\xaa" * (2 * CHUNK))
    with opened(folder, keys) as model, pytest.raises(IntegrityError):
        model.read_into("model.safetensors", 0, memoryview(room))
    assert room[:CHUNK] == WEIGHTS[:CHUNK]
    assert room[CHUNK:] == bytes(CHUNK)


def test_other_chunks_still_open_and_only_they(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    flipped(folder / WEIGHTS_FILE, SEALED + 5)
    with opened(folder, keys) as model:
        assert model.read_at("model.safetensors", 0, CHUNK) == WEIGHTS[:CHUNK]
        for offset, length in ((CHUNK, 1), (CHUNK - 1, 2), (2 * CHUNK - 1, 1), (0, 3 * CHUNK // 2)):
            with pytest.raises(IntegrityError):
                model.read_at("model.safetensors", offset, length)


def test_chunks_swapped_or_repeated(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    path = folder / WEIGHTS_FILE
    data = path.read_bytes()
    first, second, rest = data[:SEALED], data[SEALED : 2 * SEALED], data[2 * SEALED :]
    for forged in (second + first + rest, first + first + rest, second + second + rest):
        path.write_bytes(forged)
        with opened(folder, keys) as model, pytest.raises(IntegrityError):
            model.read("model.safetensors")
        path.write_bytes(data)


def test_a_file_cut_or_grown_does_not_open(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    path = folder / WEIGHTS_FILE
    data = path.read_bytes()
    lengths = [0, 15, 16, SEALED, 2 * SEALED, len(data) - 1]
    for forged in (*(data[:length] for length in lengths), data + b"x", data + data[:SEALED]):
        path.write_bytes(forged)
        with pytest.raises(IntegrityError, match="length"):
            opened(folder, keys)


def test_a_file_cut_after_it_was_opened(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    with opened(folder, keys) as model:
        os.truncate(folder / WEIGHTS_FILE, SEALED + 100)
        assert model.read_at("model.safetensors", 0, 10) == WEIGHTS[:10]
        with pytest.raises(IntegrityError):
            model.read("model.safetensors")


def test_a_chunk_that_ends_where_it_should_not(tmp_path: Path) -> None:
    """A manifest with a shorter size, signed by the owner's own key, still cannot cut at a chunk's border."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest = manifest_of(folder)
    os.truncate(folder / WEIGHTS_FILE, SEALED)
    shorter = tuple(
        msgspec.structs.replace(file, size=CHUNK) if file.name == "model.safetensors" else file
        for file in manifest.files
    )
    resigned(folder, msgspec.structs.replace(manifest, files=shorter))
    with opened(folder, keys) as model, pytest.raises(IntegrityError):
        model.read("model.safetensors")


def test_files_swapped_within_a_model(tmp_path: Path) -> None:
    """Also where both have one size, and where the manifest's order is exchanged with them."""
    keys = Keys()
    files = {"a.json": b"first", "b.json": b"other"}
    folder = sealed(tmp_path, keys, files=files)
    manifest = manifest_of(folder)
    (folder / "spare").mkdir()
    shutil.move(folder / stored_name(0), folder / "spare" / "0")
    shutil.move(folder / stored_name(1), folder / stored_name(0))
    shutil.move(folder / "spare" / "0", folder / stored_name(1))
    with opened(folder, keys) as model:
        for name in files:
            with pytest.raises(IntegrityError):
                model.read(name)
    one, two = manifest.files
    crossed = (
        msgspec.structs.replace(one, sealed_sha256=two.sealed_sha256),
        msgspec.structs.replace(two, sealed_sha256=one.sealed_sha256),
    )
    resigned(folder, msgspec.structs.replace(manifest, files=crossed))
    with opened(folder, keys) as model, pytest.raises(IntegrityError):
        model.read("a.json")


def test_another_models_file_under_the_same_name(tmp_path: Path) -> None:
    """Of the same owner, with the same content even: another sealing's chunk does not open."""
    keys = Keys()
    folder, other = sealed(tmp_path / "one", keys), sealed(tmp_path / "two", keys)
    shutil.copy(other / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    with opened(folder, keys) as model:
        assert model.read("config.json") == FILES["config.json"]
        with pytest.raises(IntegrityError):
            model.read("model.safetensors")


def test_another_models_manifest_over_these_files(tmp_path: Path) -> None:
    keys = Keys()
    folder, other = sealed(tmp_path / "one", keys), sealed(tmp_path / "two", keys)
    shutil.copy(other / MANIFEST_NAME, folder / MANIFEST_NAME)
    with opened(folder, keys) as model:
        for name in model.names:
            with pytest.raises(IntegrityError):
                model.check(name)


@pytest.mark.parametrize("signer", ["eve", "ann"])
def test_another_owners_signature(tmp_path: Path, signer: str) -> None:
    """Eve signs: under her own name, or as if she were the owner. Neither is the owner's model."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest = manifest_of(folder)
    resigned(folder, msgspec.structs.replace(manifest, owner=person("eve").fingerprint), "eve")
    if signer == "ann":
        envelope = json.loads((folder / MANIFEST_NAME).read_bytes())
        envelope["signatures"][0]["keyid"] = person("ann").fingerprint
        (folder / MANIFEST_NAME).write_text(json.dumps(envelope))
        assert envelope_signers(read_envelope(folder)) == (person("ann").fingerprint,)
    with pytest.raises(IntegrityError):
        opened_model(folder, read_envelope(folder), person("ann").public, keys.of(manifest))


def test_an_owner_cannot_take_over_a_model_by_signing_it(tmp_path: Path) -> None:
    """Whoever trusts Eve too, and has Ann's key, does not get Ann's model with files left out."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest = manifest_of(folder)
    fewer, digest = manifest.files[:-1], "cd" * 32
    resigned(
        folder,
        msgspec.structs.replace(manifest, owner=person("eve").fingerprint, files=fewer, digest=digest),
        "eve",
    )
    (folder / stored_name(3)).unlink()
    with opened(folder, keys, "eve") as model:
        for name in model.names:
            with pytest.raises(IntegrityError):
                model.check(name)


def test_a_manifest_of_another_type_is_none(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest = manifest_of(folder)
    resigned(folder, manifest, kind="application/vnd.cloister.manifest+json")
    with pytest.raises(IntegrityError, match="type"):
        opened(folder, keys)


def change(**to: object) -> Callable[[dict[str, object]], None]:
    return lambda fields: fields.update(to)


def change_file(**to: object) -> Callable[[dict[str, object]], None]:
    def make(fields: dict[str, object]) -> None:
        fields["files"][0].update(to)  # type: ignore[index]

    return make


@pytest.mark.parametrize(
    "alter",
    [
        *(
            change_file(name=name)
            for name in (
                "../../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../b", "a/b/c", "a\\..\\b", "a\x00b", ".ssh",
                "C:\\x", "a//b", "config.json/", "config.json\n", "model.pkl", "pytorch_model.bin", "run.py", "x" * 301,
            )
        ),
        change_file(size=-1),
        change_file(size=2**42 + 1),
        change_file(size=2**64),
        change_file(size=1.5),
        change_file(sealed_sha256="xy"),
        change_file(more=1),
        change(files=[]),
        change(files=[{"name": "a", "size": 0, "sealed_sha256": "0" * 64}] * 2),
        change(files=[{"name": f"{n:03d}", "size": 0, "sealed_sha256": "0" * 64} for n in range(513)]),
        change(version=2),
        change(name="../ada"),
        change(name="eve"),
        change(kek_id="vault.owner"),
        change(chunk=2**40),
        change(kind="shell"),
        change(commitment="AAAA"),
        change(wrapped=""),
        change(more=1),
    ],
)  # fmt: skip
def test_a_signed_manifest_that_breaks_a_rule(
    tmp_path: Path, alter: Callable[[dict[str, object]], None]
) -> None:
    """Signed by the owner, too: a manifest's rules hold whoever wrote it, and nothing is opened before them."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    fields = msgspec.to_builtins(manifest_of(folder), builtin_types=())
    alter(fields)
    resigned(folder, fields)
    with pytest.raises(IntegrityError):
        opened_model(
            folder, read_envelope(folder), person("ann").public, lambda _: pytest.fail("asked for the key")
        )


def test_the_same_manifest_with_no_rule_broken_opens(tmp_path: Path) -> None:
    """What the test above changes is what it refuses."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    resigned(folder, msgspec.to_builtins(manifest_of(folder), builtin_types=()))
    assert read_all(folder, keys) == FILES


def test_names_never_become_paths(tmp_path: Path) -> None:
    """Files lie under numbers: a name of the manifest is compared, and never given to the system."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    with opened(folder, keys) as model:
        for name in ("../ada-plain/config.json", "files/0000.enc", "/etc/passwd", "model.dsse.json"):
            with pytest.raises(InputError, match="no such file"):
                model.read(name)


def test_a_huge_declared_size_costs_nothing(tmp_path: Path) -> None:
    """Nothing is allocated for a size that the file on disk does not have."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    fields = msgspec.to_builtins(manifest_of(folder), builtin_types=())
    for file in fields["files"]:
        file["size"] = 2**42
    resigned(folder, fields)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="length"):
            opened(folder, keys)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_an_overlong_manifest_is_not_read(tmp_path: Path) -> None:
    folder = sealed(tmp_path, Keys())
    with (folder / MANIFEST_NAME).open("ab") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(InputError, match="larger"):
        read_envelope(folder)


def test_plaintext_in_place_of_a_file(tmp_path: Path) -> None:
    """Not as it is, nor padded to the length; nor does a plain file beside the sealed ones count."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    path = folder / WEIGHTS_FILE
    path.write_bytes(WEIGHTS)
    with pytest.raises(IntegrityError, match="length"):
        opened(folder, keys)
    path.write_bytes(WEIGHTS + bytes(48))
    with opened(folder, keys) as model, pytest.raises(IntegrityError):
        model.read("model.safetensors")
    write_files(folder, {"model.safetensors": b"mine", "config.json": b"mine"})
    with opened(folder, keys) as model:
        assert model.read("config.json") == FILES["config.json"]
    checks = list(
        verify_model(folder, read_envelope(folder), person("ann").public, keys.of(manifest_of(folder)))
    )
    assert not checks[-1].ok
    assert "does not belong" in checks[-1].detail


def test_links_pipes_and_folders_in_place_of_a_file(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    path, kept = folder / WEIGHTS_FILE, tmp_path / "kept"
    path.rename(kept)
    makers: tuple[Callable[[], object], ...] = (
        lambda: path.symlink_to(kept),
        lambda: os.mkfifo(path),
        path.mkdir,
    )
    for make in makers:
        make()
        with pytest.raises(IntegrityError):
            opened(folder, keys)
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(IntegrityError, match="cannot be opened"):
        opened(folder, keys)
    (folder / MANIFEST_NAME).rename(tmp_path / "manifest")
    (folder / MANIFEST_NAME).symlink_to(tmp_path / "manifest")
    with pytest.raises(IntegrityError, match="link"):
        read_envelope(folder)


def test_verify_names_the_first_thing_that_is_wrong(tmp_path: Path) -> None:
    keys = Keys()
    whole = sealed(tmp_path, keys)
    manifest = manifest_of(whole)

    def numbers(folder: Path, key: Callable[[bytes], bytes] | None = None) -> list[bool]:
        found = verify_model(folder, read_envelope(folder), person("ann").public, key or keys.of(manifest))
        return [check.ok for check in found]

    for number, spoil in enumerate(
        (
            lambda folder: resigned(folder, manifest, "eve"),
            lambda folder: os.truncate(folder / WEIGHTS_FILE, 5),
            lambda folder: flipped(folder / WEIGHTS_FILE, 5),
        )
    ):
        folder = Path(shutil.copytree(whole, tmp_path / f"copy{number}"))
        spoil(folder)
        assert numbers(folder) == [True] * number + [False]
    assert numbers(whole, lambda _: b"k" * 32) == [True] * 3 + [False]
    with pytest.raises(PolicyRefused, match="checks 1 to 3 hold"):
        numbers(whole, kept_elsewhere)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 32, b"k" * 33])
def test_a_keeper_that_gives_another_key(tmp_path: Path, key: bytes) -> None:
    folder = sealed(tmp_path, Keys())
    with pytest.raises(IntegrityError, match="data key"):
        opened_model(folder, read_envelope(folder), person("ann").public, lambda _: key)


def test_rollback_is_seen_by_the_digest_and_by_a_brokers_grant(tmp_path: Path) -> None:
    """An older folder of the same owner opens as what it is: what names it tells it from the newer one."""
    keys = Keys()
    old = sealed(tmp_path / "old", keys)
    new = sealed(tmp_path / "new", keys, files={"config.json": b"{}"})
    assert manifest_of(old).name == manifest_of(new).name
    assert manifest_of(old).digest != manifest_of(new).digest
    assert manifest_digest(read_envelope(old)) != manifest_digest(read_envelope(new))


def test_no_canary_is_on_the_disk_in_clear(tmp_path: Path) -> None:
    """Neither in the sealed folder nor anywhere below the folder that everything temporary is made in."""
    canary = b"canary-of-a-weight-" + os.urandom(16).hex().encode()
    files = {"config.json": canary, "model.safetensors": canary * 40_000}
    root = tmp_path / "root"
    folder = sealed(root, keys := Keys(), files=files)
    shutil.rmtree(root / "ada-plain")
    data_key = keys.unwrap(manifest_of(folder).kek_id, manifest_of(folder).wrapped)
    assert read_all(folder, keys) == files
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert canary[:24] not in data
            assert data_key not in data


class World:
    """A model whose key is in a broker."""

    def __init__(self, home: Home, root: Path) -> None:
        self.home, self.folder, self.owner = home, root / "ada", identity("alice")
        source = PlainFolder(write_files(root / "plain"))
        keys = BrokerKeys(home.connect, identity("broker").public, owner=self.owner)
        self.manifest: ModelManifest = seal_model(
            source, self.folder, self.owner,
            name="ada", kind="language", keys=keys, broker=identity("broker").public,
        )  # fmt: skip
        keys.close()
        self.keys = BrokerKeys(home.connect, identity("broker").public, owner=self.owner)

    @property
    def handed(self) -> ModelHandover:
        return ModelHandover.of(self.folder, self.owner.public)

    def grant(self, **changes: object) -> None:
        wanted = self.handed.wanted
        stated = {"kek_id": wanted.kek_id, "manifest": wanted.manifest, "plan": None, "purpose": PURPOSE}
        self.keys.allow(permission(**(stated | changes)))

    def open(self, attester: InsecureAttesterDouble | None = None) -> SealedModel:
        handed = self.handed
        key = broker_data_key(
            handed.envelope, handed.owner, identity("broker").public, self.home.connect,
            attester or InsecureAttesterDouble(),
        )  # fmt: skip
        return opened_model(self.folder, handed.envelope, handed.owner, key)


@pytest.fixture
def world(tmp_path: Path) -> object:
    home = Home(tmp_path / "broker")
    yield World(home, tmp_path)
    home.close()


def test_a_brokers_model_opens_for_an_attested_worker_alone(world: World) -> None:
    assert world.handed.broker == identity("broker").public
    with pytest.raises(PolicyRefused, match="attested workers alone"):
        world.keys.unwrap(world.manifest.kek_id, world.manifest.wrapped)
    with pytest.raises(PolicyRefused, match="granted nothing"):
        world.open()
    world.grant()
    with pytest.raises(PolicyRefused, match="none of the accepted images"):
        world.open(InsecureAttesterDouble("bb" * 32))
    with world.open() as model:
        assert model.read("model.safetensors") == WEIGHTS
    with pytest.raises(PolicyRefused, match="every use"):
        world.open()


@pytest.mark.parametrize(
    "changes",
    [{"manifest": "11" * 32}, {"purpose": "training"}, {"plan": "22" * 32}],
    ids=lambda each: next(iter(each)),
)
def test_a_grant_for_something_else_opens_no_model(world: World, changes: dict[str, object]) -> None:
    world.grant(**changes)
    with pytest.raises(PolicyRefused):
        world.open()


def test_an_older_sealing_is_not_released_under_a_newer_grant(world: World, tmp_path: Path) -> None:
    source = PlainFolder(tmp_path / "plain")
    keys = BrokerKeys(world.home.connect, identity("broker").public, owner=world.owner)
    old, world.folder = world.folder, tmp_path / "new"
    seal_model(
        source,
        world.folder,
        world.owner,
        name="ada",
        kind="language",
        keys=keys,
        broker=identity("broker").public,
    )
    world.grant()
    world.folder = old
    with pytest.raises(PolicyRefused, match="granted nothing"):
        world.open()


def test_a_sealing_that_fails_leaves_no_key_in_the_broker(world: World, tmp_path: Path) -> None:
    source = PlainFolder(write_files(tmp_path / "second"))
    (tmp_path / "second" / "model.safetensors").write_bytes(bytes(len(WEIGHTS)))
    keys = BrokerKeys(world.home.connect, identity("broker").public, owner=world.owner)
    with pytest.raises(CloisterError):
        seal_model(source, tmp_path / "new", world.owner, name="b", kind="table", keys=keys)
    assert [kek.kek_id for kek in world.keys.inventory().keks] == [world.manifest.kek_id]


def test_the_envelope_that_is_opened_is_the_one_that_was_named(world: World) -> None:
    """A worker asks for the manifest it was given, not for whatever lies in the folder when the key comes."""
    world.grant()
    handed = world.handed
    shutil.copytree(world.folder / "files", world.folder / "copy")
    (world.folder / MANIFEST_NAME).write_bytes(b"swapped")
    key = broker_data_key(
        handed.envelope, handed.owner, identity("broker").public, world.home.connect, InsecureAttesterDouble()
    )
    with opened_model(world.folder, handed.envelope, handed.owner, key) as model:
        assert model.read("config.json") == FILES["config.json"]
    assert open_manifest(handed.envelope, handed.owner) == world.manifest
