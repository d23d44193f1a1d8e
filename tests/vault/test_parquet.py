from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pq_encryption
import pytest
from tests.vault.world import CANARY, CHEAP

from cloister.errors import InputError, IntegrityError
from cloister.vault import LocalKeystore
from cloister.vault.checkedfile import DATA_NAME, KEY_MATERIAL_NAME, FileDigests, digest_files
from cloister.vault.keymaterial import KeyClient, KeyMaterial
from cloister.vault.parquet import EncryptedFile, write_encrypted

KEK = "dataset.a.1"
NAMES = ["plain", "with, comma", "a:b;c", "50% of.all", "年龄", "%20", " ".join("xy")]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> LocalKeystore:
    keystore = LocalKeystore.initialise(tmp_path_factory.mktemp("keys") / "keystore.json", "pw", cost=CHEAP)
    keystore.create(KEK)
    keystore.create("dataset.b.2")
    return keystore


def table(rows: int = 1000) -> pa.Table:
    columns = [
        pa.array(range(rows)),
        pa.array([n / 3 for n in range(rows)]),
        pa.array([f"{CANARY}-{n}" for n in range(rows)]),
        pa.array([n % 2 == 0 for n in range(rows)]),
        pa.array([None if n % 5 else float(n) for n in range(rows)]),
        pa.array([f"{CANARY}-{n % 3}" for n in range(rows)]),
        pa.array([n % 7 for n in range(rows)]),
    ]
    return pa.Table.from_arrays(columns, names=NAMES)


def write(
    folder: Path, keys: LocalKeystore, rows: int = 1000, batch: int = 300
) -> tuple[pa.Table, FileDigests]:
    content = table(rows)
    return content, write_encrypted(folder, iter(content.to_batches(batch)), content.schema, keys, KEK)


def read(
    folder: Path, digests: FileDigests, keys: LocalKeystore, names: list[str], rows: int = 65_536
) -> pa.Table:
    file = EncryptedFile(folder, digests, keys, KEK)
    try:
        return pa.Table.from_batches(file.batches(names, rows))
    finally:
        file.close()


def test_rows_come_back_whatever_the_columns_are_called(tmp_path: Path, keys: LocalKeystore) -> None:
    content, digests = write(tmp_path, keys)
    assert read(tmp_path, digests, keys, NAMES).equals(content)
    assert read(tmp_path, digests, keys, ["年龄", "plain"]).equals(content.select(["年龄", "plain"]))


@pytest.mark.parametrize("batch_rows", [1, 7, 100_000])
def test_batches_are_as_long_as_asked_for(tmp_path: Path, keys: LocalKeystore, batch_rows: int) -> None:
    _, digests = write(tmp_path, keys, rows=50)
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    lengths = [batch.num_rows for batch in file.batches(NAMES, batch_rows)]
    file.close()
    assert sum(lengths) == 50
    assert max(lengths) == min(batch_rows, 50)


def test_row_groups_stream(tmp_path: Path, keys: LocalKeystore) -> None:
    """Rows are written while they arrive, a row group at a time, however the batches fall."""
    sizes: list[int] = []
    content = pa.table({"a": range(200_000)})

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in content.to_batches(30_011):
            sizes.append((tmp_path / DATA_NAME).stat().st_size)
            yield batch

    digests = write_encrypted(tmp_path, batches(), content.schema, keys, KEK)
    assert 0 < sizes[-1] < digests.size
    assert read(tmp_path, digests, keys, ["a"]).equals(content)
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    with file._parquet() as (parquet, _, _):
        assert [parquet.metadata.row_group(g).num_rows for g in range(4)] == [65_536, 65_536, 65_536, 3_392]
    file.close()


def test_what_a_reader_of_the_disk_sees(tmp_path: Path, keys: LocalKeystore) -> None:
    _, digests = write(tmp_path, keys)
    data = (tmp_path / DATA_NAME).read_bytes()
    material = (tmp_path / KEY_MATERIAL_NAME).read_bytes()
    assert data[:4] == data[-4:] == b"PARE"
    for secret in (CANARY, *NAMES[1:5], "ARROW:schema", "row_group"):
        assert secret.encode() not in data + material
    assert digests == digest_files(tmp_path)
    with pytest.raises(OSError, match=r"[Ee]ncrypt|decrypt"):
        pq.read_table(tmp_path / DATA_NAME)


def test_minima_and_maxima_are_not_written(tmp_path: Path, keys: LocalKeystore) -> None:
    _, digests = write(tmp_path, keys)
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    with file._parquet() as (parquet, _, _):
        group = parquet.metadata.row_group(0)
        assert all(group.column(index).statistics is None for index in range(len(NAMES)))
    file.close()


def test_data_keys_have_256_bits_and_are_all_different(tmp_path: Path, keys: LocalKeystore) -> None:
    write(tmp_path, keys)
    client = KeyClient(keys, KEK)
    columns = client.prepare((tmp_path / KEY_MATERIAL_NAME).read_bytes())
    assert len(columns) == len(NAMES)
    assert len(set(client._opened.values())) == len(NAMES) + 1
    assert all(len(key) == 32 for key in client._opened.values())
    client.forget()
    assert not client._opened


def foreign(folder: Path, keys: LocalKeystore, names: list[str], **settings: object) -> FileDigests:
    """Write a file as somebody careless would."""
    files: dict[str, bytes] = {}
    options = {
        "footer_key": KEK,
        "column_keys": {KEK: names},
        "double_wrapping": False,
        "internal_key_material": False,
        "data_key_length_bits": 256,
    }
    client = KeyClient(keys, KEK)
    properties = pq_encryption.CryptoFactory(lambda _: client).file_encryption_properties(
        pq_encryption.KmsConnectionConfig(),
        pq_encryption.EncryptionConfiguration(**{**options, **settings}),
        parquet_file_path=DATA_NAME,
        filesystem=pa_fs.PyFileSystem(KeyMaterial(files)),
    )
    content = pa.table({"a": [f"{CANARY}"] * 100, "b": [1] * 100})
    with pq.ParquetWriter(folder / DATA_NAME, content.schema, encryption_properties=properties) as writer:
        writer.write_table(content)
    (folder / KEY_MATERIAL_NAME).write_bytes(files.get(KEY_MATERIAL_NAME, b"{}"))
    return digest_files(folder)


def test_a_column_left_in_the_clear_is_refused(tmp_path: Path, keys: LocalKeystore) -> None:
    digests = foreign(tmp_path, keys, ["b"])
    assert CANARY.encode() in (tmp_path / DATA_NAME).read_bytes()  # which the library does without a word
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    with pytest.raises(IntegrityError, match="column"):
        file.require_encrypted(["a", "b"])
    file.close()


def test_one_key_for_all_columns_is_refused(tmp_path: Path, keys: LocalKeystore) -> None:
    digests = foreign(tmp_path, keys, [], column_keys=None, uniform_encryption=True)
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    with pytest.raises(IntegrityError):
        file.require_encrypted(["a", "b"])
    file.close()


def test_a_file_as_it_should_be_passes(tmp_path: Path, keys: LocalKeystore) -> None:
    digests = foreign(tmp_path, keys, ["a", "b"])
    file = EncryptedFile(tmp_path, digests, keys, KEK)
    file.require_encrypted(["a", "b"])
    for names in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(IntegrityError):
            file.require_encrypted(names)
    file.close()


def test_key_material_of_another_kek(tmp_path: Path, keys: LocalKeystore) -> None:
    _, digests = write(tmp_path, keys)
    file = EncryptedFile(tmp_path, digests, keys, "dataset.b.2")
    with pytest.raises(IntegrityError, match="key material"):
        next(file.batches(NAMES, 10))
    file.close()


def test_a_kek_that_is_gone(tmp_path: Path, keys: LocalKeystore) -> None:
    keys.create("dataset.c.3")
    content = table(10)
    digests = write_encrypted(tmp_path, iter(content.to_batches()), content.schema, keys, "dataset.c.3")
    keys.destroy("dataset.c.3")
    file = EncryptedFile(tmp_path, digests, keys, "dataset.c.3")
    with pytest.raises(InputError, match="no KEK"):
        next(file.batches(NAMES, 10))
    file.close()


@pytest.mark.parametrize(
    "material", [b"", b"{}", b"[]", b'{"footerKey": "x"}', b'{"footerKey": "{}"}', b"\xff"]
)
def test_nonsense_for_key_material(keys: LocalKeystore, material: bytes) -> None:
    with pytest.raises(IntegrityError):
        KeyClient(keys, KEK).prepare(material)


def test_a_failing_source_leaves_its_own_error(tmp_path: Path, keys: LocalKeystore) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from table(10).to_batches()
        raise InputError("the source broke")

    with pytest.raises(InputError, match="the source broke"):
        write_encrypted(tmp_path, batches(), table(1).schema, keys, KEK)


def test_a_full_disk_is_an_os_error(
    tmp_path: Path, keys: LocalKeystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, "w"))
    with pytest.raises(OSError, match="No space left") as caught:
        write_encrypted(tmp_path, iter(table(10).to_batches()), table(1).schema, keys, KEK)
    assert caught.value.errno == errno.ENOSPC


def test_the_file_closes_when_nobody_holds_it(tmp_path: Path, keys: LocalKeystore) -> None:
    _, digests = write(tmp_path, keys)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        EncryptedFile(tmp_path, digests, keys, KEK)
        next(EncryptedFile(tmp_path, digests, keys, KEK).batches(NAMES, 10))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
