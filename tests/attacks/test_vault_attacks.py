"""What somebody does who can write to the vault's disk, but has neither passphrase nor identity."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pq_encryption
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vault.world import (
    CANARY,
    CHEAP,
    HEADER,
    PASSPHRASE,
    PURPOSE,
    SCHEMA,
    add,
    keystore,
    owner,
    row,
    rows,
    vault,
    write_rows,
)

from cloister.crypto import sign_envelope
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.vault import Vault, parquet
from cloister.vault.checkedfile import DATA_NAME, KEY_MATERIAL_NAME
from cloister.vault.columns import MAX_TEXT_BYTES
from cloister.vault.keymaterial import KeyClient, KeyMaterial
from cloister.vault.manifest import MANIFEST_NAME, PAYLOAD_TYPE
from cloister.vault.parquet import EncryptedFile, write_encrypted

FILES = (DATA_NAME, KEY_MATERIAL_NAME, MANIFEST_NAME)


@dataclass(frozen=True, repr=False)
class World:
    """A vault with the datasets "heart" and "other", of the same schema, in row groups of 50 rows."""

    root: Path
    vault: Vault
    truth: list[dict[str, object]]

    def path(self, file: str = DATA_NAME, name: str = "heart") -> Path:
        return self.root / "datasets" / name / file

    def read(self) -> tuple[list[dict[str, object]], BaseException | None]:
        """Return the rows that were yielded, and the error that ended them."""
        got: list[dict[str, object]] = []
        try:
            with self.vault.open("heart", purpose=PURPOSE) as dataset:
                for batch in dataset.batches(batch_rows=20):
                    got += batch.to_pylist()
        except (IntegrityError, InputError) as error:
            return got, error
        return got, None

    def refused(self) -> None:
        """Assert that no row is yielded, and that verify says no."""
        got, error = self.read()
        assert got == []
        assert isinstance(error, IntegrityError)
        assert not self.vault.verify("heart")[-1].ok


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("attacks")
    mine = vault(folder / "vault")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_ROW_GROUP_ROWS", 50)
        add(mine, rows(folder / "rows.csv", 120), "heart")
        add(mine, rows(folder / "other.csv", 120, start=1000), "other")
    with mine.open("heart", purpose=PURPOSE) as dataset:
        truth = dataset.table().to_pylist()
    assert len(truth) == 120
    return World(folder / "vault", mine, truth)


@pytest.fixture
def world(whole: World) -> Iterator[World]:
    """The whole vault, put back afterwards."""
    datasets = whole.root / "datasets"
    saved = whole.root / "saved"
    shutil.copytree(datasets, saved)
    yield whole
    shutil.rmtree(datasets)
    saved.rename(datasets)


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


# --- one flipped bit ----------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere(whole: World, file: str, where: float, bit: int) -> None:
    path = whole.path(file)
    before = path.read_bytes()
    position = int(where * len(before))
    data = bytearray(before)
    data[position] ^= 1 << bit
    with replaced(path, bytes(data)):
        got, error = whole.read()
        checks = whole.vault.verify("heart")
    if (
        file == MANIFEST_NAME and error is None
    ):  # unused bits at the end of base64: the same bytes were signed
        assert got == whole.truth
        return
    assert isinstance(error, IntegrityError)
    assert not checks[-1].ok
    pinned = file != DATA_NAME or position < 4 or position >= footer_start(before)
    assert got == ([] if pinned else whole.truth[: len(got)])


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_byte_flipped(whole: World, file: str) -> None:
    path = whole.path(file)
    before = path.read_bytes()
    for position in range(len(before)):
        data = bytearray(before)
        data[position] ^= 0x41
        with replaced(path, bytes(data)):
            got, error = whole.read()
        same = file == MANIFEST_NAME and got == whole.truth  # unused bits at the end of base64
        assert same or isinstance(error, IntegrityError), position
        assert got == whole.truth[: len(got)]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.floats(0, 1), length=st.integers(1, 300), junk=st.binary(min_size=300, max_size=300))
def test_overwritten_stretches(whole: World, start: float, length: int, junk: bytes) -> None:
    path = whole.path()
    before = path.read_bytes()
    begin = int(start * (len(before) - length))
    data = before[:begin] + junk[:length] + before[begin + length :]
    if data == before:
        return
    with replaced(path, data):
        got, error = whole.read()
        assert not whole.vault.verify("heart")[-1].ok
    assert isinstance(error, IntegrityError)
    assert got == whole.truth[: len(got)]


# --- other files in the place -------------------------------------------------------------------------------


def copy(world: World, *files: str) -> None:
    for file in files:
        shutil.copyfile(world.path(file, "other"), world.path(file))


@pytest.mark.parametrize(
    "files",
    [
        (DATA_NAME,),
        (KEY_MATERIAL_NAME,),
        (DATA_NAME, KEY_MATERIAL_NAME),
        (MANIFEST_NAME,),
        (DATA_NAME, MANIFEST_NAME),
        (KEY_MATERIAL_NAME, MANIFEST_NAME),
        FILES,
    ],
    ids=lambda files: "+".join(file.split(".")[0].strip("_")[:8] for file in files),
)
def test_files_of_another_dataset(world: World, files: tuple[str, ...]) -> None:
    copy(world, *files)
    world.refused()


def test_a_dataset_under_another_name(world: World) -> None:
    shutil.rmtree(world.path().parent)
    world.path(name="other").parent.rename(world.path().parent)
    world.refused()


def test_another_file_under_the_same_kek(world: World) -> None:
    """The library reads it without complaint; the digests are what refuses it."""
    manifest = world.vault.manifest("heart")
    keys = keystore(world.root)
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        table = dataset.table()
    folder = world.root / "forged"
    folder.mkdir()
    write_encrypted(folder, iter(table.slice(1).to_batches()), table.schema, keys, manifest.kek_id)
    for file in (DATA_NAME, KEY_MATERIAL_NAME):
        shutil.copyfile(folder / file, world.path(file))
    shutil.rmtree(folder)
    assert library_rows(world, keys, manifest.kek_id) == 119
    world.refused()


def library_rows(world: World, keys: object, kek_id: str) -> int:
    """Return how many rows Arrow alone reads, asking nobody."""
    client = KeyClient(keys, kek_id)  # type: ignore[arg-type]
    material = world.path(KEY_MATERIAL_NAME).read_bytes()
    client.prepare(material)
    properties = pq_encryption.CryptoFactory(lambda _: client).file_decryption_properties(
        pq_encryption.KmsConnectionConfig(),
        parquet_file_path=DATA_NAME,
        filesystem=pa_fs.PyFileSystem(KeyMaterial({KEY_MATERIAL_NAME: material})),
    )
    return int(pq.ParquetFile(world.path(), decryption_properties=properties).read().num_rows)


@pytest.mark.parametrize("pad", [False, True])
def test_a_plaintext_file(world: World, pad: bool) -> None:
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        table = dataset.table()
    size = world.path().stat().st_size
    pq.write_table(table, world.path(), compression="zstd")
    assert library_rows(world, keystore(world.root), world.vault.manifest("heart").kek_id) == 120
    if pad:
        data = world.path().read_bytes()
        world.path().write_bytes(data[:4] + bytes(max(size - len(data), 0)) + data[4:])
    world.refused()


def test_a_plaintext_file_of_the_right_length_is_refused_for_its_magic(world: World) -> None:
    size = world.path().stat().st_size
    world.path().write_bytes(b"PAR1" + bytes(size - 8) + b"PAR1")
    got, error = world.read()
    assert got == []
    assert "not an encrypted Parquet file" in str(error)


@pytest.mark.parametrize("keep", [0, 1, 4, 7, 8, 100, -1, -4, -8, -100])
def test_truncated(world: World, keep: int) -> None:
    data = world.path().read_bytes()
    world.path().write_bytes(data[:keep])
    world.refused()


@pytest.mark.parametrize("more", [b"\x00", b"PARE", b"x" * 100_000])
def test_extended(world: World, more: bytes) -> None:
    with world.path().open("ab") as file:
        file.write(more)
    world.refused()


@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**32 - 1])
def test_a_footer_length_out_of_range(world: World, length: int) -> None:
    data = bytearray(world.path().read_bytes())
    data[-8:-4] = length.to_bytes(4, "little")
    world.path().write_bytes(bytes(data))
    world.refused()


@pytest.mark.parametrize("file", [DATA_NAME, KEY_MATERIAL_NAME])
@pytest.mark.parametrize("what", ["nothing", "folder", "link", "pipe", "empty"])
def test_something_else_in_the_place_of_a_file(world: World, file: str, what: str) -> None:
    path = world.path(file)
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(world.path(file, "other"))
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    world.refused()


def test_a_link_to_the_very_file_is_not_followed(world: World) -> None:
    elsewhere = world.root / "elsewhere"
    world.path().rename(elsewhere)
    world.path().symlink_to(elsewhere)
    world.refused()
    elsewhere.unlink()


def test_pages_moved_within_the_file(world: World) -> None:
    """Two pages of one column, of equal length, each under that column's key: GCM's context says where each belongs."""
    manifest = world.vault.manifest("heart")
    file = EncryptedFile(world.path().parent, manifest.file, keystore(world.root), manifest.kek_id)
    with file._parquet() as (parquet_file, _, _):
        metadata = parquet_file.metadata
        chunks = [
            [
                (
                    metadata.row_group(g).column(c).data_page_offset,
                    metadata.row_group(g).column(c).total_compressed_size,
                )
                for g in (0, 1)
            ]
            for c in range(metadata.num_columns)
        ]
    file.close()
    (one, length), (two, _) = next(pair for pair in chunks if pair[0][1] == pair[1][1])
    data = bytearray(world.path().read_bytes())
    data[one : one + length], data[two : two + length] = data[two : two + length], data[one : one + length]
    assert bytes(data) != world.path().read_bytes()
    world.path().write_bytes(bytes(data))
    got, error = world.read()
    assert isinstance(error, IntegrityError)
    assert got == world.truth[: len(got)]
    assert not world.vault.verify("heart")[-1].ok


def test_wrapped_keys_exchanged_in_the_key_material(world: World) -> None:
    tree = json.loads(world.path(KEY_MATERIAL_NAME).read_bytes())
    tree["columnKey0"], tree["columnKey1"] = tree["columnKey1"], tree["columnKey0"]
    world.path(KEY_MATERIAL_NAME).write_text(json.dumps(tree))
    world.refused()


# --- manifests ----------------------------------------------------------------------------------------------


def forge(world: World, signer: str, **changes: object) -> None:
    manifest = msgspec.structs.replace(world.vault.manifest("heart"), **changes)
    envelope = sign_envelope(PAYLOAD_TYPE, msgspec.json.encode(manifest), [owner(signer)])
    world.path(MANIFEST_NAME).write_bytes(envelope)


@pytest.mark.parametrize("claimed", ["mallory", "alice"])
def test_a_manifest_signed_again_by_somebody_else(world: World, claimed: str) -> None:
    forge(world, "mallory", owner=owner(claimed).fingerprint)
    world.refused()


def test_a_manifest_signed_by_somebody_else_under_the_owners_key_id(world: World) -> None:
    forge(world, "mallory")
    tree = json.loads(world.path(MANIFEST_NAME).read_bytes())
    tree["signatures"][0]["keyid"] = owner().fingerprint
    world.path(MANIFEST_NAME).write_text(json.dumps(tree))
    world.refused()


def test_more_purposes_written_into_the_manifest(world: World) -> None:
    tree = json.loads(world.path(MANIFEST_NAME).read_bytes())
    manifest = msgspec.structs.replace(world.vault.manifest("heart"), purposes=(PURPOSE, "marketing"))
    tree["payload"] = msgspec.json.decode(msgspec.json.encode(msgspec.json.encode(manifest)))
    world.path(MANIFEST_NAME).write_text(json.dumps(tree))
    with pytest.raises(IntegrityError):
        world.vault.open("heart", purpose="marketing")
    world.refused()


def test_an_old_manifest_beside_a_new_file(tmp_path: Path) -> None:
    mine = vault(tmp_path / "vault")
    folder = tmp_path / "vault" / "datasets" / "heart"
    add(mine, rows(tmp_path / "rows.csv", 30))
    old = {file: (folder / file).read_bytes() for file in FILES}
    mine.remove("heart")
    add(mine, rows(tmp_path / "rows.csv", 31))
    new = {file: (folder / file).read_bytes() for file in FILES}
    for files in ((MANIFEST_NAME,), (DATA_NAME,), (DATA_NAME, KEY_MATERIAL_NAME)):
        for file in FILES:
            (folder / file).write_bytes((old if file in files else new)[file])
        with pytest.raises(IntegrityError):
            mine.open("heart", purpose=PURPOSE)
    for file in FILES:  # the whole old dataset: its signature holds, its key is gone
        (folder / file).write_bytes(old[file])
    with mine.open("heart", purpose=PURPOSE) as dataset, pytest.raises(InputError, match="no KEK"):
        dataset.table()
    assert not mine.verify("heart")[-1].ok


# --- between check and use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [DATA_NAME, KEY_MATERIAL_NAME, MANIFEST_NAME])
def test_replacing_a_path_after_it_was_opened_does_not_matter(world: World, file: str) -> None:
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        batches = dataset.batches(batch_rows=20)
        got = next(batches).to_pylist()
        new = world.root / "new"
        shutil.copyfile(world.path(file, "other"), new)
        new.rename(world.path(file))
        for batch in batches:
            got += batch.to_pylist()
        assert got == world.truth
        assert dataset.table().to_pylist() == world.truth


def test_writing_into_the_open_file_gives_errors_and_no_wrong_row(world: World) -> None:
    other = world.path(name="other").read_bytes()
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        size = world.path().stat().st_size
        with world.path().open("r+b") as file:
            file.write(other[:size])
        got = []
        error = None
        try:
            for batch in dataset.batches(batch_rows=20):
                got += batch.to_pylist()
        except IntegrityError as raised:
            error = raised
        assert error is not None
        assert got == world.truth[: len(got)]


def test_writing_over_the_footer_of_the_open_file_does_not_matter(world: World) -> None:
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        data = world.path().read_bytes()
        start = footer_start(data)
        with world.path().open("r+b") as file:
            file.seek(start)
            file.write(bytes(len(data) - start))
        assert dataset.table().to_pylist() == world.truth


def test_cutting_the_open_file_gives_an_error(world: World) -> None:
    with world.vault.open("heart", purpose=PURPOSE) as dataset:
        os.truncate(world.path(), 200)
        with pytest.raises(IntegrityError):
            dataset.table()


# --- nothing leaks ------------------------------------------------------------------------------------------


def test_no_row_is_in_the_clear_anywhere_below_the_vault(world: World) -> None:
    looked_at = [path for path in world.root.rglob("*") if path.is_file()]
    assert len(looked_at) > 8
    needles = [CANARY.encode(form) for form in ("utf-8", "utf-16-le", "utf-16-be")]
    needles += [CANARY.encode().hex().encode(), CANARY.encode()[::-1]]
    for path in looked_at:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), path


def failures() -> list[tuple[str, Callable[[Path], Path]]]:
    huge = CANARY * 400_000  # well above the most bytes of a text
    lines: dict[str, list[str]] = {
        "number": [row(1, pressure=CANARY)],
        "integer": [row(1, age=CANARY)],
        "category": [row(1, sex=CANARY)],
        "boolean": [row(1, ill=CANARY)],
        "duplicate": [row(1), row(1)],
        "long row": [row(1) + f",{CANARY}"],
        "short row": [CANARY],
        "not closed": [row(1), row(2, note=f'"{CANARY}')],
        "huge": [row(1, note=huge)],
        "huge and short": [row(1, note=huge), CANARY],
        "long text": [row(1, note=CANARY * (1 + MAX_TEXT_BYTES // len(CANARY)))],
        "no consent": [row(1, agreed=CANARY)],
    }
    made: list[tuple[str, Callable[[Path], Path]]] = [
        (name, lambda path, given=given: write_rows(path, *given)) for name, given in lines.items()
    ]

    def not_utf8(path: Path) -> Path:
        path.write_bytes(f"{HEADER}\n{row(1, note=CANARY + 'X')}\n".encode().replace(b"X", b"\xff"))
        return path

    def block(path: Path) -> Path:
        path.write_text(f"{HEADER}\n" + row(1, note=f'"{CANARY * 900_000}"') + "\n")
        return path

    def typed(path: Path) -> Path:
        names = HEADER.split(",")
        pq.write_table(pa.table({name: [[CANARY]] if name == "age" else [CANARY] for name in names}), path)
        return path

    def texts(path: Path) -> Path:
        pq.write_table(pa.table({name: [CANARY] for name in HEADER.split(",")}), path)
        return path

    return [
        *made,
        ("not UTF-8", not_utf8),
        ("larger than a block", block),
        ("nested", typed),
        ("texts", texts),
    ]


@pytest.mark.parametrize(("name", "make"), failures(), ids=[name for name, _ in failures()])
@pytest.mark.parametrize("quarantine", [False, True])
def test_no_value_is_in_an_error(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], Path],
    quarantine: bool,
) -> None:
    mine = vault(tmp_path / "vault")
    listed: list[object] = []
    said = ""
    try:
        add(mine, make(tmp_path / "rows"), quarantine=quarantine, on_quarantined=listed.append)
    except CloisterError as error:
        said = whole_story(error)
    else:
        assert quarantine, name
    assert CANARY not in said + repr(listed) + "".join(capfd.readouterr())
    assert not any(
        CANARY.encode() in path.read_bytes() for path in (tmp_path / "vault").rglob("*") if path.is_file()
    )


def whole_story(error: BaseException) -> str:
    """Return everything an error and those behind it would show, suppressed ones included."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        parts += [str(seen), repr(seen), repr(seen.args), repr(vars(seen)), *traceback.format_exception(seen)]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)


# --- a disk that is full, a user who interrupts, a machine that stops ------------------------------------------

COMMAND = (sys.executable, "-c", "from cloister.cli.main import main; main()", "vault")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one dataset, for commands in processes of their own."""
    folder = tmp_path / "home"
    folder.mkdir()
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    monkeypatch.setenv("CLOISTER_HOME", str(folder))
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(secret))
    owner().save(folder / "identity.json", PASSPHRASE, cost=CHEAP)
    add(vault(folder / "vault"), rows(tmp_path / "small.csv", 10), "before")
    return folder


def arguments(source: Path) -> list[str]:
    options = ["--name", "heart", "--schema", str(source.with_name("schema.toml")), "--purpose", PURPOSE]
    return [*COMMAND, "add", str(source), *options]


def state(home: Path) -> tuple[set[str], tuple[str, ...], int]:
    """Return the names below the vault, the datasets, and the number of KEKs."""
    mine = vault(home / "vault")
    names = mine.list()
    assert all(check.ok for name in names for check in mine.verify(name))
    files = {path.name for path in (home / "vault").rglob("*") if not path.name.endswith(".lock")}
    return files, names, len(keystore(home / "vault").ids())


@pytest.mark.parametrize("limit", [0, 500, 3_000, 8_000, 30_000])
def test_a_full_disk(home: Path, tmp_path: Path, limit: int) -> None:
    before = state(home)
    source = rows(tmp_path / "rows.csv", 2_000)
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    command = arguments(source)
    command[2] = limited + command[2]  # Python ignores SIGXFSZ, so that writing fails with EFBIG
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(home) == before
    subprocess.run(arguments(source), check=True, capture_output=True, timeout=60)
    assert state(home)[1] == ("before", "heart")


def begun(home: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the add has begun to write."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any((home / "vault" / "datasets").glob(".heart.*.part/*")):
            return
        time.sleep(0.002)


def start(source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments(source), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_an_interrupted_add(home: Path, tmp_path: Path, delay: float) -> None:
    before = state(home)
    source = rows(tmp_path / "rows.csv", 150_000)
    with start(source) as process:
        begun(home, process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert state(home) == before


def test_a_killed_add(home: Path, tmp_path: Path) -> None:
    files, names, keks = state(home)
    source = rows(tmp_path / "rows.csv", 150_000)
    with start(source) as process:
        begun(home, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert any((home / "vault" / "datasets").glob(".heart.*.part"))
    assert state(home) == (files, names, keks + 1)  # the KEK that is left opens nothing
    add(vault(home / "vault"), rows(tmp_path / "few.csv", 20))
    assert state(home)[1] == ("before", "heart")


@pytest.mark.slow
def test_interrupted_at_any_moment(home: Path, tmp_path: Path) -> None:
    """From the start of the process to its end, in steps: all or nothing, and one sentence at most."""
    source = rows(tmp_path / "rows.csv", 20_000)
    for step in range(60):
        with start(source) as process:
            time.sleep(step * 0.03)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        _, names, keks = state(home)
        assert names in (("before",), ("before", "heart"))
        assert keks >= 1 + len(names)  # one that is left over opens nothing
        if "heart" in names:
            vault(home / "vault").remove("heart")
        assert "heart" in names or process.returncode in (130, -signal.SIGINT, 1), err
