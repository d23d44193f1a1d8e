from __future__ import annotations

import csv
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.vault.world import (
    CANARY,
    CHEAP,
    HEADER,
    PASSPHRASE,
    PURPOSE,
    add,
    keystore,
    owner,
    row,
    rows,
    schema,
    vault,
    write_rows,
)

import cloister.vault as package
from cloister import files
from cloister.errors import (
    CloisterError,
    InputError,
    IntegrityError,
    PassphraseError,
    PolicyRefused,
    SchemaError,
    StorageError,
)
from cloister.vault import Catalog, LocalKeystore, Quarantined, Schema, Vault, Wrapping
from cloister.vault import vault as module
from cloister.vault.checkedfile import DATA_NAME


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return rows(tmp_path / "rows.csv", 40)


def kek_ids(root: Path) -> list[str]:
    return [kek_id for kek_id in keystore(root).ids() if kek_id.startswith("dataset.")]


def files_below(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.name not in (".lock", "keystore.json.lock")}


def test_the_exports() -> None:
    assert sorted(package.__all__) == package.__all__
    assert all(hasattr(package, name) for name in package.__all__)


def test_a_worked_session(root: Path, source: Path) -> None:
    mine = vault(root)
    manifest = add(mine, source, consent="broad consent of 2025")
    assert mine.list() == ("heart",)
    assert manifest == mine.manifest("heart")
    assert (manifest.rows, manifest.without_consent, manifest.quarantined) == (40, 0, 0)
    assert manifest.owner == owner().fingerprint
    assert manifest.purposes == (PURPOSE,)
    assert manifest.schema == schema()
    assert manifest.schema_sha256 == schema().digest().hex()
    assert manifest.dataset_id in manifest.kek_id
    with mine.open("heart", purpose=PURPOSE) as dataset:
        assert dataset.rows == 40
        assert dataset.schema == schema()
        assert dataset.columns == ("patient", "age", "pressure", "sex", "note", "ill")
        assert dataset.envelope == Catalog(root, owner().public).envelope("heart")
        whole = dataset.table()
        assert whole["age"].to_pylist() == [20 + n for n in range(40)]
        assert [batch.num_rows for batch in dataset.batches(["ill", "age"], 16)] == [16, 16, 8]
        assert dataset.table(["ill", "age"]).column_names == ["ill", "age"]
        assert dataset.table().equals(whole)  # as often as one likes
    assert all(check.ok for check in mine.verify("heart"))
    assert [check.number for check in mine.verify("heart")] == [1, 2, 3, 4, 5]


def test_another_process_opens_it_again(root: Path, source: Path) -> None:
    add(vault(root), source)
    with vault(root).open("heart", purpose=PURPOSE) as dataset:
        assert dataset.table().num_rows == 40


@pytest.mark.parametrize("wrapping", list(Wrapping))
def test_both_wrappings(root: Path, source: Path, wrapping: Wrapping) -> None:
    mine = Vault.unlock(root, owner(), PASSPHRASE, wrapping=wrapping, cost=CHEAP)
    add(mine, source)
    assert all(check.ok for check in vault(root).verify("heart"))


def test_permissions(root: Path, source: Path) -> None:
    add(vault(root), source)
    assert stat.S_IMODE((root / "datasets" / "heart").stat().st_mode) == 0o700
    for path in (root / "keystore.json", root / "owner.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_declared_purposes(root: Path, source: Path) -> None:
    mine = vault(root)
    mine.add(source, name="heart", schema=schema(), purposes=["a", "b"])
    mine.open("heart", purpose="b").close()
    with pytest.raises(PolicyRefused) as caught:
        mine.open("heart", purpose="marketing")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "purposes", [[], [""], ["a", "a"], ["a\n"], ["x" * 201], [f"p{n}" for n in range(33)]]
)
def test_odd_purposes(root: Path, source: Path, purposes: list[str]) -> None:
    with pytest.raises(InputError, match="purpose"):
        vault(root).add(source, name="heart", schema=schema(), purposes=purposes)


@pytest.mark.parametrize("name", ["", "Heart", "a/b", "..", ".hidden", "a b", "x" * 64])
def test_odd_names(root: Path, source: Path, name: str) -> None:
    with pytest.raises(InputError, match="not allowed"):
        add(vault(root), source, name)


def test_a_name_is_taken_once(root: Path, source: Path) -> None:
    mine = vault(root)
    first = add(mine, source)
    with pytest.raises(InputError, match="exists"):
        add(mine, source)
    assert mine.manifest("heart") == first
    assert len(kek_ids(root)) == 1


def test_names_that_are_not_there(root: Path) -> None:
    mine = vault(root)
    for act in (mine.manifest, mine.verify, mine.remove, lambda name: mine.open(name, purpose="p")):
        with pytest.raises(InputError, match="no dataset"):
            act("heart")
    with pytest.raises(InputError, match="no dataset"):
        mine.export("heart", root / "out.csv")


def test_tables(root: Path) -> None:
    declared = Schema(
        {"a": package.Column("number", bounds=(0, 1)), "y": package.Column("boolean", role="label")}
    )
    table = pa.table({"a": [0.25, 0.5, 7.0], "y": [True, False, True]})
    mine = vault(root)
    with pytest.raises(SchemaError) as caught:
        mine.add_table(table, name="t", schema=declared, purposes=["p"])
    assert (caught.value.line, caught.value.column) == (3, "a")
    left_out: list[Quarantined] = []
    manifest = mine.add_table(
        table, name="t", schema=declared, purposes=["p"], quarantine=True, on_quarantined=left_out.append
    )
    assert (manifest.rows, manifest.quarantined) == (2, 1)
    assert [item.line for item in left_out] == [3]
    with mine.open("t", purpose="p") as dataset:
        assert dataset.table().to_pydict() == {"a": [0.25, 0.5], "y": [True, False]}


def test_consent_and_quarantine_are_counted(root: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.csv", row(0), row(1, agreed="no"), row(2, age="x"), row(3))
    manifest = add(vault(root), source, quarantine=True)
    assert (manifest.rows, manifest.without_consent, manifest.quarantined) == (2, 1, 1)


def test_progress_is_told(root: Path, source: Path) -> None:
    seen: list[tuple[int, int]] = []
    add(vault(root), source, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (source.stat().st_size, source.stat().st_size)


def test_the_same_rows_have_the_same_root_and_other_rows_another(
    root: Path, source: Path, tmp_path: Path
) -> None:
    mine = vault(root)
    first, second = add(mine, source, "one"), add(mine, source, "two")
    other = add(mine, rows(tmp_path / "other.csv", 39), "three")
    assert first.fingerprints_root == second.fingerprints_root != other.fingerprints_root
    assert first.dataset_id != second.dataset_id
    assert first.file.sha256 != second.file.sha256
    theirs = add(vault(tmp_path / "bob", "bob"), source)
    assert theirs.fingerprints_root != first.fingerprints_root  # under another owner's key they say nothing


def test_pseudonyms_link_within_a_purpose_only(root: Path, source: Path) -> None:
    mine = vault(root)

    def patients(name: str, *purposes: str) -> list[str]:
        mine.add(source, name=name, schema=schema(), purposes=purposes)
        with mine.open(name, purpose=purposes[0]) as dataset:
            return dataset.table(["patient"])["patient"].to_pylist()  # type: ignore[no-any-return]

    one, again, other, both = (
        patients("a", "p"),
        patients("b", "p"),
        patients("c", "q"),
        patients("d", "q", "p"),
    )
    assert one == again
    assert len({tuple(one), tuple(other), tuple(both)}) == 3
    assert len(set(one)) == 40


@pytest.mark.parametrize("columns", [["nobody"], [], ["age", "age"], ["phone"], ["agreed"]])
def test_columns_that_are_not_there(root: Path, source: Path, columns: list[str]) -> None:
    mine = vault(root)
    add(mine, source)
    with mine.open("heart", purpose=PURPOSE) as dataset, pytest.raises(InputError):
        dataset.batches(columns)


def test_batches_of_no_rows(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    with mine.open("heart", purpose=PURPOSE) as dataset, pytest.raises(InputError):
        dataset.batches(batch_rows=0)


def test_an_open_dataset_says_little(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    with mine.open("heart", purpose=PURPOSE) as dataset:
        assert repr(dataset) == "<Dataset heart: 40 rows, 6 columns>"


def test_export_as_csv_and_add_again(root: Path, source: Path, tmp_path: Path) -> None:
    mine = vault(root)
    write_rows(source, *(row(n, note=f'"a ""q"", and\nline {n}"') for n in range(20)))
    add(mine, source)
    target = tmp_path / "out.csv"
    assert mine.export("heart", target) == 20
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with target.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[3]["note"] == 'a "q", and\nline 3'
    assert lines[0]["pressure"] == ""
    stored = {name: column for name, column in schema().columns.items() if column.stored}
    stored["patient"] = package.Column("text", role="id")
    mine.add(target, name="again", schema=Schema(stored), purposes=[PURPOSE])
    with mine.open("again", purpose=PURPOSE) as again, mine.open("heart", purpose=PURPOSE) as first:
        assert again.table().equals(first.table())


def test_export_as_parquet(root: Path, source: Path, tmp_path: Path) -> None:
    mine = vault(root)
    add(mine, source)
    mine.export("heart", tmp_path / "out.parquet")
    with mine.open("heart", purpose=PURPOSE) as dataset:
        assert pq.read_table(tmp_path / "out.parquet").equals(dataset.table())


@pytest.mark.parametrize("name", ["out.json", "out", "rows.csv"])
def test_exports_that_are_refused(root: Path, source: Path, tmp_path: Path, name: str) -> None:
    mine = vault(root)
    add(mine, source)
    before = source.read_bytes()
    with pytest.raises(InputError):
        mine.export("heart", tmp_path / name)
    assert source.read_bytes() == before


def test_an_export_replaces_nothing_that_came_to_be_meanwhile(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, target = vault(root), tmp_path / "out.csv"
    add(mine, source)
    batches = package.Dataset.batches

    def slow(self: package.Dataset) -> Iterator[pa.RecordBatch]:
        target.write_text("theirs")
        return batches(self)

    monkeypatch.setattr(package.Dataset, "batches", slow)
    with pytest.raises(InputError, match="exists"):
        mine.export("heart", target)
    assert target.read_text() == "theirs"


def test_remove_destroys_the_key_and_the_files_and_nothing_else(root: Path, source: Path) -> None:
    mine = vault(root)
    kek_id = add(mine, source).kek_id
    add(mine, source, "other")
    sentence = mine.remove("heart")
    assert "SSD" in sentence
    assert mine.list() == ("other",)
    assert kek_id not in keystore(root).ids()
    assert all(check.ok for check in mine.verify("other"))
    add(mine, source)  # the name is free again


def test_a_copy_taken_before_the_removal_does_not_open(root: Path, source: Path, tmp_path: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "datasets" / "heart").rename(tmp_path / "copy")
    (tmp_path / "copy2").mkdir()
    for path in (tmp_path / "copy").iterdir():
        (tmp_path / "copy2" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "copy2").rename(root / "datasets" / "heart")
    mine.remove("heart")
    (tmp_path / "copy").rename(root / "datasets" / "heart")
    with vault(root).open("heart", purpose=PURPOSE) as dataset, pytest.raises(InputError, match="no KEK"):
        dataset.table()


def test_remove_a_damaged_dataset(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "datasets" / "heart" / "manifest.dsse.json").write_bytes(b"{}")
    assert "stays in the keystore" in mine.remove("heart")
    assert mine.list() == ()


def test_files_that_stay_are_not_said_to_be_deleted(root: Path, source: Path, tmp_path: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "datasets" / "heart").rename(tmp_path / "elsewhere")
    (root / "datasets" / "heart").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="could not be deleted"):
        mine.remove("heart")
    assert (tmp_path / "elsewhere" / "data.parquet").exists()
    assert mine.list() == ()


def test_remove_twice_after_an_interruption(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = vault(root)
    add(mine, source)

    def interrupted(self: Catalog, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mine.remove("heart")
    assert "gone already" in mine.remove("heart")
    assert mine.list() == ()


# --- nothing is left behind -------------------------------------------------------------------------------


def test_a_refused_source_leaves_nothing(root: Path, tmp_path: Path) -> None:
    mine = vault(root)
    before = files_below(root)
    source = write_rows(tmp_path / "rows.csv", *(row(n) for n in range(10)), row(11, age="x"))
    with pytest.raises(SchemaError):
        add(mine, source)
    assert files_below(root) - before == {"owner.key", "datasets"}
    assert kek_ids(root) == []
    assert mine.list() == ()


@pytest.mark.parametrize("step", ["write_encrypted", "Fingerprints", "sign_manifest", "Manifest"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError, RuntimeError])
def test_an_interruption_at_any_step_leaves_nothing(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    mine = vault(root)
    add(mine, source, "before")
    before = files_below(root)

    def fail(*_: object, **__: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises((error, CloisterError)):
            add(mine, source)
    assert files_below(root) == before
    assert len(kek_ids(root)) == 1
    assert mine.list() == ("before",)
    add(mine, source)
    assert all(check.ok for name in mine.list() for check in mine.verify(name))


def test_an_interruption_once_the_files_are_in_place_leaves_their_key(
    root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a dataset is listed that nobody can open."""
    mine = vault(root)

    def interrupted(path: Path) -> None:
        if path == root / "datasets":  # the last thing that is done: the new name is made to last
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_fsync_path", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(mine, source)
    assert mine.list() == ("heart",)
    assert all(check.ok for check in mine.verify("heart"))
    assert len(kek_ids(root)) == 1


def test_leftovers_of_a_power_cut_are_ignored_and_removed(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    part = root / "datasets" / ".other.0123456789ab.part"
    part.mkdir()
    (part / DATA_NAME).write_bytes(b"half")
    assert mine.list() == ("heart",)
    assert not part.exists()


def test_leftovers_stay_while_somebody_writes(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    part = root / "datasets" / ".other.0123456789ab.part"
    part.mkdir()
    with Catalog(root, owner().public).writing():
        assert mine.list() == ("heart",)
        assert part.exists()
    mine.list()
    assert not part.exists()


def test_other_files_in_the_folder_are_no_datasets(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "datasets" / "README").write_text("hi")
    (root / "datasets" / "empty").mkdir()
    shutil.copytree(root / "datasets" / "heart", root / "datasets" / "Copy of heart")
    assert mine.list() == ("heart",)


# --- keystore and owner's secret --------------------------------------------------------------------------


def test_a_wrong_passphrase(root: Path, source: Path) -> None:
    add(vault(root), source)
    with pytest.raises(PassphraseError):
        Vault.unlock(root, owner(), "wrong")


def test_a_lost_keystore_is_not_replaced(root: Path, source: Path) -> None:
    add(vault(root), source)
    (root / "keystore.json").unlink()
    with pytest.raises(InputError, match="lost its keystore"):
        vault(root)


def test_a_lost_owner_secret_is_not_replaced(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "owner.key").unlink()
    with pytest.raises(IntegrityError, match="lost"):
        add(mine, source, "other")
    assert mine.list() == ("heart",)


def test_an_altered_owner_secret(root: Path, source: Path) -> None:
    mine = vault(root)
    add(mine, source)
    (root / "owner.key").write_bytes(bytes(60))
    with pytest.raises(IntegrityError):
        add(mine, source, "other")


def test_a_first_attempt_that_broke_off_does_not_lock_the_owner_out(root: Path, source: Path) -> None:
    mine = vault(root)
    keys = keystore(root)
    keys.create("vault.owner")
    add(mine, source)
    assert mine.list() == ("heart",)


def test_another_owner_reads_nothing(root: Path, source: Path) -> None:
    add(vault(root), source)
    theirs = Vault(root, owner("bob"), LocalKeystore.open(root / "keystore.json", PASSPHRASE))
    with pytest.raises(IntegrityError):
        theirs.open("heart", purpose=PURPOSE)


def test_a_catalog_needs_no_key(root: Path, source: Path) -> None:
    add(vault(root), source)
    catalog = Catalog(root, owner().public)
    assert catalog.names() == ("heart",)
    assert catalog.manifest("heart").rows == 40
    assert Catalog(root / "nowhere", owner().public).names() == ()


def test_fingerprints_are_those_of_the_rows(root: Path, source: Path) -> None:
    owned = vault(root)
    add(owned, source)
    found = owned.fingerprints("heart")
    each = [found[start : start + 32] for start in range(0, len(found), 32)]
    assert len(each) == 40
    # The same rows under another name, in another order, for another purpose, are the same rows.
    lines = source.read_text().splitlines()
    write_rows(source, *reversed(lines[1:]))
    owned.add(source, name="again", schema=schema(), purposes=["something else"])
    again = owned.fingerprints("again")
    assert [again[start : start + 32] for start in range(0, len(again), 32)] == each[::-1]
    # Another value is another row, and another owner sees nothing in common.
    add(owned, write_rows(source, row(0), row(1, age="99")), "other")
    other = owned.fingerprints("other")
    assert (other[:32] == each[0], other[32:] in each) == (True, False)
    stranger = vault(root.with_name("strangers"), "bob")
    add(stranger, rows(source, 40))
    assert not set(each) & {stranger.fingerprints("heart")[:32]}


def test_fingerprints_without_pseudonyms_are_the_signed_ones(root: Path, tmp_path: Path) -> None:
    from cloister.log import MerkleTree
    from cloister.vault import load_schema

    owned = vault(root)
    plain = load_schema(b'[columns.age]\ntype = "integer"\nbounds = [0, 120]\n')
    (tmp_path / "plain.csv").write_text("age\n1\n2\n3\n")
    manifest = owned.add(tmp_path / "plain.csv", name="plain", schema=plain, purposes=[PURPOSE])
    found, tree = owned.fingerprints("plain"), MerkleTree()
    for start in range(0, len(found), 32):
        tree.append(found[start : start + 32])
    assert tree.root().hex() == manifest.fingerprints_root


def test_fingerprints_of_altered_rows_are_refused(root: Path, source: Path) -> None:
    owned = vault(root)
    add(owned, source)
    path = root / "datasets" / "heart" / DATA_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        owned.fingerprints("heart")
    with pytest.raises(InputError, match="no dataset"):
        owned.fingerprints("none")


def test_many_columns(root: Path, tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(300)]
    declared = Schema({name: package.Column("integer", bounds=(0, 1000)) for name in names})
    source = write_rows(
        tmp_path / "wide.csv", *(",".join(map(str, range(300))) for _ in range(3)), header=",".join(names)
    )
    mine = vault(root)
    mine.add(source, name="wide", schema=declared, purposes=["p"])
    assert all(check.ok for check in mine.verify("wide"))


def test_the_header_of_the_world_fits_its_schema() -> None:
    assert set(HEADER.split(",")) == set(schema().columns)
    assert CANARY in row(1)
