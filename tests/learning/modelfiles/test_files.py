"""A model's files: which are admitted, and that what is read is what the digest was made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from cloister.errors import InputError, IntegrityError
from cloister.learning.modelfiles.files import PlainFolder, check_name, set_digest
from cloister.learning.modelfiles.openfile import CHUNK


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_reads_what_is_there(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK + 17)
    files = PlainFolder(
        folder(tmp_path, {"config.json": b"{}", "a/model.safetensors": data, "empty.json": b""})
    )
    assert files.names == ("a/model.safetensors", "config.json", "empty.json")
    assert files.read("a/model.safetensors") == data
    assert files.read("empty.json") == b""
    assert files.size("a/model.safetensors") == len(data)
    for offset, length in [(0, 0), (0, 1), (CHUNK - 1, 2), (5, CHUNK), (3, 2 * CHUNK + 14), (len(data), 0)]:
        assert files.read_at("a/model.safetensors", offset, length) == data[offset : offset + length]
    files.close()


def test_digest_by_its_definition(tmp_path: Path) -> None:
    files = PlainFolder(folder(tmp_path, {"b.json": b"two", "a.json": b"one"}))
    parts = [b"cloister/model-files/v1"]
    for name, data in [("a.json", b"one"), ("b.json", b"two")]:
        parts += [name.encode(), len(data).to_bytes(8, "big"), hashlib.sha256(data).digest()]
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert files.digest == hashlib.sha256(framed).hexdigest()
    assert files.digest == set_digest(
        (name, len(data), hashlib.sha256(data).digest())
        for name, data in [("b.json", b"two"), ("a.json", b"one")]
    )
    files.close()


def test_documentation_and_hidden_files_are_no_part(tmp_path: Path) -> None:
    files = PlainFolder(folder(tmp_path, {"config.json": b"{}"}))
    more = PlainFolder(
        folder(
            tmp_path,
            {
                "README.md": b"x",
                "LICENSE": b"x",
                ".gitattributes": b"x",
                ".cache/x.bin": b"x",
                "picture.png": b"x",
            },
        )
    )
    assert more.names == ("config.json",)
    assert more.digest == files.digest
    files.close()
    more.close()


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "x/consolidated.00.PTH", "a.pkl", "m.ckpt", "scaler.joblib", "x.npy"],
)
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="pickle"):
        PlainFolder(folder(tmp_path, {"config.json": b"{}", name: b"x"}))


@pytest.mark.parametrize("name", ["modeling_llama.py", "x/kernel.so", "run.sh"])
def test_code_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="code"):
        PlainFolder(folder(tmp_path, {"config.json": b"{}", name: b"x"}))


@pytest.mark.parametrize("name", ["a b.json", "a/b/c.json", "näme.json", "a\nb.json"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="name does not fit"):
        PlainFolder(folder(tmp_path, {"config.json": b"{}", name: b"x"}))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "", ".", "a/.hidden", "x" * 300])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(InputError):
        check_name(name)


def test_links(tmp_path: Path) -> None:
    outside = folder(tmp_path / "out", {"secret.json": b"x"})
    inside = folder(tmp_path / "in", {"config.json": b"{}"})
    (inside / "same.json").symlink_to("config.json")
    files = PlainFolder(inside)
    assert files.read("same.json") == b"{}"
    files.close()
    (inside / "leak.json").symlink_to(outside / "secret.json")
    with pytest.raises(InputError, match="leads out"):
        PlainFolder(inside)
    (inside / "leak.json").unlink()
    (inside / "sub").symlink_to(outside)
    with pytest.raises(InputError, match="leads out"):
        PlainFolder(inside)
    (inside / "sub").unlink()
    (inside / "gone.json").symlink_to("nowhere")
    with pytest.raises(InputError, match="cannot read"):
        PlainFolder(inside)


def test_a_pipe_is_no_file_and_does_not_hang(tmp_path: Path) -> None:
    folder(tmp_path, {"config.json": b"{}"})
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="not a file"):
        PlainFolder(tmp_path)


def test_a_change_after_opening_is_noticed(tmp_path: Path) -> None:
    data = bytes(3 * CHUNK)
    files = PlainFolder(folder(tmp_path, {"model.safetensors": data, "config.json": b"{}"}))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(b"\x01")
    assert files.read_at("model.safetensors", 0, CHUNK) == data[:CHUNK]
    with pytest.raises(IntegrityError, match="changed"):
        files.read_at("model.safetensors", CHUNK - 1, 2)
    os.truncate(tmp_path / "model.safetensors", CHUNK)
    with pytest.raises(IntegrityError, match="cut"):
        files.read_at("model.safetensors", 2 * CHUNK, 5)
    (tmp_path / "config.json").unlink()  # it stays open
    assert files.read("config.json") == b"{}"
    files.close()


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        PlainFolder(tmp_path / "none")
    with pytest.raises(InputError, match="empty"):
        PlainFolder(tmp_path)
    files = PlainFolder(folder(tmp_path, {"config.json": b"{}"}))
    with pytest.raises(InputError, match="no such file"):
        files.read("other.json")
    with pytest.raises(InputError, match="shorter"):
        files.read_at("config.json", 1, 2)
    with pytest.raises(InputError, match="shorter"):
        files.read_at("config.json", -1, 1)
    with pytest.raises(InputError, match="not a folder"):
        PlainFolder(tmp_path / "config.json")
    files.close()
    with pytest.raises(InputError):
        files.read("config.json")
