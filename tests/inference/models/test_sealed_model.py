"""A model is sealed, and read back at any place; what it looks like on the disk; what fails leaves nothing."""

from __future__ import annotations

import copy
import os
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from tests.inference.modelworld import (
    FILES,
    WEIGHTS,
    Keys,
    manifest_of,
    opened,
    person,
    read_all,
    sealed,
    write_files,
)

from cloister import files
from cloister.crypto import aead, framed, hkdf, sha256
from cloister.errors import InputError, IntegrityError, StorageError
from cloister.inference.models import sealing
from cloister.inference.models.manifest import (
    CHUNK,
    MAX_FILES,
    check_files,
    chunks_of,
    encrypted_size,
    open_manifest,
    sign_manifest,
    stored_name,
)
from cloister.inference.models.sealed import SealedModel, is_sealed_model, opened_model, read_envelope
from cloister.inference.models.sealedfile import chunk_label, commitment, file_key
from cloister.inference.models.sealing import MemoryFiles, seal_model
from cloister.inference.models.verify import verify_model
from cloister.learning.modelfiles.files import PlainFolder


def test_what_was_sealed_comes_back(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    assert read_all(folder, keys) == FILES
    with opened(folder, keys) as model, closing(PlainFolder(tmp_path / "ada-plain")) as plain:
        assert model.names == plain.names
        assert model.digest == plain.digest
        assert [model.size(name) for name in model.names] == [len(FILES[name]) for name in model.names]


def test_it_reads_at_any_place(tmp_path: Path) -> None:
    keys = Keys()
    size = len(WEIGHTS)
    places = [0, 1, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, size - 1, size]
    with opened(sealed(tmp_path, keys), keys) as model:
        for start in places:
            for stop in (each for each in places if each >= start):
                piece = model.read_at("model.safetensors", start, stop - start)
                assert type(piece) is bytes
                assert piece == WEIGHTS[start:stop]
                room = bytearray(stop - start)
                model.read_into("model.safetensors", start, memoryview(room))
                assert room == WEIGHTS[start:stop]
        numbers = memoryview(bytearray(CHUNK)).cast("d")  # a tensor's storage counts numbers
        model.read_into("model.safetensors", 8, numbers)
        assert numbers.tobytes() == WEIGHTS[8 : CHUNK + 8]
        assert model.read_at("empty.json", 0, 0) == b""


@pytest.mark.parametrize(
    ("name", "offset", "length"),
    [
        ("model.safetensors", len(WEIGHTS), 1),
        ("model.safetensors", -1, 1),
        ("empty.json", 0, 1),
        ("no.json", 0, 0),
    ],
)
def test_there_is_nothing_beyond(tmp_path: Path, name: str, offset: int, length: int) -> None:
    keys = Keys()
    with opened(sealed(tmp_path, keys), keys) as model, pytest.raises(InputError):
        model.read_at(name, offset, length)


def test_once_open_the_folder_is_not_needed(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    with opened(folder, keys) as model:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        assert model.read("model.safetensors") == WEIGHTS
    with pytest.raises(InputError, match="closed"):
        model.read("model.safetensors")


def test_it_is_neither_printed_nor_copied(tmp_path: Path) -> None:
    keys = Keys()
    with opened(sealed(tmp_path, keys), keys) as model:
        assert repr(model) == "<SealedModel: secret>"
        with pytest.raises(TypeError):
            copy.copy(model)


def test_a_file_opens_by_the_definition_in_the_docstring(tmp_path: Path) -> None:
    """The format, derived a second time."""
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest = manifest_of(folder)
    data_key = keys.unwrap(manifest.kek_id, manifest.wrapped)
    number = [file.name for file in manifest.files].index("model.safetensors")
    salt = sha256(
        framed(
            bytes.fromhex(manifest.model_id),
            bytes.fromhex(manifest.digest),
            number.to_bytes(4, "big"),
            b"model.safetensors",
            len(WEIGHTS).to_bytes(8, "big"),
        )
    )
    opener = aead.Opener(hkdf(data_key, info=b"cloister/model/v1/file", salt=salt), CHUNK)
    stored, found = (folder / "files" / f"{number:04d}.enc").read_bytes(), b""
    for index, start in enumerate(range(0, len(stored), CHUNK + 16)):
        label = b"cloister/model/v1/chunk" + index.to_bytes(8, "big") + bytes([index == 2])
        found += opener.open(stored[start : start + CHUNK + 16], label)
    assert found == WEIGHTS


def test_the_folder_holds_what_it_should(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"model.dsse.json", *(stored_name(number) for number in range(4))}
    assert [file.name for file in manifest_of(folder).files] == sorted(FILES)
    assert is_sealed_model(folder)
    assert not is_sealed_model(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_sizes() -> None:
    assert [chunks_of(size) for size in (0, 1, CHUNK, CHUNK + 1)] == [1, 1, 1, 2]
    assert encrypted_size(0) == 16
    assert encrypted_size(2 * CHUNK + 1) == 2 * CHUNK + 1 + 48


def test_a_second_sealing_shares_nothing(tmp_path: Path) -> None:
    keys = Keys()
    first = manifest_of(sealed(tmp_path / "a", keys))
    second = manifest_of(sealed(tmp_path / "b", keys))
    assert first.digest == second.digest
    assert first.kek_id != second.kek_id
    assert len(keys.keks) == 2
    for number in range(4):
        one, two = ((tmp_path / which / "ada" / stored_name(number)).read_bytes() for which in "ab")
        assert one != two


def test_a_sealing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys()
    source = PlainFolder(write_files(tmp_path / "plain"))
    written = 0

    def full(_descriptor: int, data: memoryview) -> None:
        nonlocal written
        written += len(data)
        if written > CHUNK:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealing, "_write", full)
    with pytest.raises(StorageError, match="No space"):
        seal_model(source, tmp_path / "out", person("ann"), name="ada", kind="language", keys=keys)
    assert keys.keks == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_an_interruption_once_the_files_are_in_place_leaves_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there is a sealed model that nobody can open."""
    keys = Keys()
    source = PlainFolder(write_files(tmp_path / "plain"))

    def interrupted(path: Path) -> None:
        if path == tmp_path:  # the last thing that is done: the new name is made to last
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_fsync_path", interrupted)
        with pytest.raises(KeyboardInterrupt):
            seal_model(source, tmp_path / "out", person("ann"), name="ada", kind="language", keys=keys)
    assert read_all(tmp_path / "out", keys) == FILES


def test_a_source_that_changes_meanwhile_is_not_sealed(tmp_path: Path) -> None:
    keys = Keys()
    source = PlainFolder(write_files(tmp_path / "plain"))
    with (tmp_path / "plain" / "model.safetensors").open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"another byte or two")
    with pytest.raises(IntegrityError):
        seal_model(source, tmp_path / "out", person("ann"), name="ada", kind="language", keys=keys)
    assert keys.keks == {}
    assert not (tmp_path / "out").exists()


def test_it_does_not_write_over_anything(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    source = PlainFolder(tmp_path / "ada-plain")
    before = read_envelope(folder)
    with pytest.raises(InputError, match="exists"):
        seal_model(source, folder, person("ann"), name="ada", kind="language", keys=keys)
    assert read_envelope(folder) == before
    assert len(keys.keks) == 1


@pytest.mark.parametrize("name", ["", "../up", "Ada", "a b", "a" * 64])
def test_a_models_name_is_a_name(tmp_path: Path, name: str) -> None:
    keys = Keys()
    source = MemoryFiles({"model.safetensors": b"x"})
    with pytest.raises(InputError):
        seal_model(source, tmp_path / "out", person("ann"), name=name, kind="table", keys=keys)
    assert keys.keks == {}


def test_too_many_files_are_told_before_a_key_is_made(tmp_path: Path) -> None:
    source = MemoryFiles({f"{number}.json": b"" for number in range(MAX_FILES + 1)})
    with pytest.raises(InputError, match="files"):
        seal_model(source, tmp_path / "out", person("ann"), name="ada", kind="table", keys=(keys := Keys()))
    assert keys.keks == {}


def test_files_in_memory_are_model_files(tmp_path: Path) -> None:
    files = MemoryFiles(dict(reversed(FILES.items())))
    with closing(PlainFolder(write_files(tmp_path / "plain"))) as plain:
        assert (files.names, files.digest) == (plain.names, plain.digest)
    assert files.read_at("config.json", 2, 3) == FILES["config.json"][2:5]
    assert "llama" not in repr(files)
    for place in (("config.json", 0, 1000), ("config.json", -1, 1), ("other", 0, 0)):
        with pytest.raises(InputError):
            files.read_at(*place)


def test_only_its_owner_signs_a_manifest(tmp_path: Path) -> None:
    manifest = manifest_of(sealed(tmp_path, Keys()))
    with pytest.raises(InputError):
        sign_manifest(manifest, person("eve"))
    assert open_manifest(sign_manifest(manifest, person("ann")), person("ann").public) == manifest


@pytest.mark.parametrize("names", [[], ["b", "a"], ["a", "a"], ["a", "a/b"], ["x.py"], ["../x"], ["/etc/x"]])
def test_names_that_are_none(names: list[str]) -> None:
    with pytest.raises(InputError):
        check_files(names)


def test_a_whole_model_verifies_and_says_what_it_found(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    checks = list(
        verify_model(folder, read_envelope(folder), person("ann").public, keys.of(manifest_of(folder)))
    )
    assert [check.ok for check in checks] == [True] * 5
    assert [check.name for check in checks] == ["manifest", "folder", "encrypted files", "key", "content"]


def test_the_digest_that_was_signed_is_the_contents(tmp_path: Path) -> None:
    """An owner whose program signs a false digest is found by the last check."""
    keys = Keys()

    class Lying(MemoryFiles):
        def __init__(self) -> None:
            super().__init__({"config.json": b"{}", "empty.json": b""})
            self.digest = "ab" * 32  # type: ignore[misc]

    seal_model(Lying(), tmp_path / "out", person("ann"), name="ada", kind="table", keys=keys)
    folder = tmp_path / "out"
    checks = list(
        verify_model(folder, read_envelope(folder), person("ann").public, keys.of(manifest_of(folder)))
    )
    assert [check.ok for check in checks] == [True] * 4 + [False]
    assert "digest" in checks[-1].detail


def test_a_folder_that_is_no_sealed_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sealed model"):
        read_envelope(tmp_path)
    with pytest.raises(InputError, match="no sealed model"):
        SealedModel.open(tmp_path, person("ann").public, lambda key: key)


def test_the_key_is_asked_for_once_and_only_when_all_else_is_right(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    manifest, asked = manifest_of(folder), []

    def data_key(wrapped: bytes) -> bytes:
        asked.append(wrapped)
        return keys.unwrap(manifest.kek_id, wrapped)

    with opened_model(folder, read_envelope(folder), person("ann").public, data_key) as model:
        model.read("model.safetensors")
    assert asked == [manifest.wrapped]
    os.truncate(folder / stored_name(2), 100)
    with pytest.raises(IntegrityError):
        opened_model(folder, read_envelope(folder), person("ann").public, data_key)
    assert len(asked) == 1


def test_the_manifest_shows_no_digest_of_a_single_file(tmp_path: Path) -> None:
    """A small file could be guessed by it."""
    text = msgspec.json.encode(manifest_of(sealed(tmp_path, Keys())))
    for data in FILES.values():
        assert sha256(data).hex().encode() not in text


def test_the_format_is_what_it_was() -> None:
    """Stored vectors; both keys were computed with nothing but HMAC as well."""
    data_key, place = bytes(range(32)), ("0123456789abcdef" * 2, "89abcdef" * 8, 3, "model.safetensors", 5)
    key = file_key(data_key, *place)
    assert key.hex() == "665bca5427789a3e8648b6f1d81c6ac3c4b10bc01ced81d4252764e5b913f145"
    assert commitment(data_key).hex() == "476d4de5e87425417dd58fc2c0608d6b8198a87503a1b526f5bf2986786d0ee1"
    sealed_chunk = aead.Numbered(key).seal(0, b"hello", chunk_label(0, last=True))
    assert sealed_chunk.hex() == "5bf710becd3c0a3f0445a00f12afb79fe5806f10e8"
    others = [
        ("f" * 32, *place[1:]),
        (place[0], "f" * 64, *place[2:]),
        (*place[:2], 4, *place[3:]),
        (*place[:3], "model.safetensorz", 5),
        (*place[:4], 6),
    ]
    assert len({key, *(file_key(data_key, *each) for each in others)}) == 6
