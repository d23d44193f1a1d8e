from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError, StorageError
from cloister.log import Log, leaf_hash, store, verify_consistency, verify_inclusion

HEADER = 16 + 2 + len("hub")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "studies.log"


def test_entries_survive_reopening(path: Path) -> None:
    log = Log(path, "hub")
    assert len(log) == 0
    assert [log.append(entry) for entry in (b"one", b"", b"three" * 1000)] == [0, 1, 2]
    again = Log(path, "hub")
    assert again.head() == log.head()
    assert [again.entry(index) for index in range(3)] == [b"one", b"", b"three" * 1000]
    assert again.torn_bytes == 0


def test_heads_and_proofs(path: Path) -> None:
    log = Log(path, "hub")
    for number in range(10):
        log.append(b"%d" % number)
    head, earlier = log.head(), log.head(4)
    assert (head.log_id, head.size, earlier.size) == ("hub", 10, 4)
    verify_inclusion(leaf_hash(b"7"), 7, head.size, log.inclusion_proof(7), head.root)
    verify_consistency(4, 10, log.consistency_proof(4), earlier.root, head.root)
    assert head.to_bytes().startswith(b'{"log_id":"hub","root":"')


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_a_crash_in_the_middle_of_an_append_loses_only_that_entry(
    tmp_path: Path, whole: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path / os.urandom(8).hex()
    log = Log(path, "hub")
    for entry in whole:
        log.append(entry)
    head, size = log.head(), path.stat().st_size
    log.append(b"the crash comes while this is written")
    cut = data.draw(st.integers(size + 1, path.stat().st_size - 1))
    os.truncate(path, cut)
    again = Log(path, "hub")
    assert again.head() == head
    assert again.torn_bytes == cut - size
    assert path.stat().st_size == size
    assert again.append(b"next") == len(whole)
    assert Log(path, "hub").entry(len(whole)) == b"next"


def test_every_altered_byte_is_found(path: Path) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    log.append(b"second")
    whole = path.read_bytes()
    for position in range(HEADER, len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            again = Log(path, "hub")
        except IntegrityError:
            continue
        assert again.torn_bytes > 0  # a length was changed and reaches beyond the file: the head tells
        assert again.head() != log.head()


def test_what_is_cut_off_is_kept(path: Path) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    size = path.stat().st_size
    log.append(b"second")
    log.append(b"third")
    whole = bytearray(path.read_bytes())
    whole[size + 3] ^= 0x80  # the length of the second entry: it now reaches beyond the file
    path.write_bytes(whole)
    assert len(Log(path, "hub")) == 1
    assert path.with_name(path.name + ".torn").read_bytes() == whole[size:]


def test_a_length_that_no_append_writes_is_no_crash(path: Path) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    whole = bytearray(path.read_bytes())
    whole[HEADER] = 0xFF
    path.write_bytes(whole)
    with pytest.raises(IntegrityError, match="entry 0"):
        Log(path, "hub")
    assert path.read_bytes() == whole


def test_two_that_make_the_log_at_once_keep_both_entries(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, others = store.write_atomic, list[str]()

    def slow(*arguments: Any, **options: Any) -> None:
        if not others:
            others.append("other")
            Log(path, "hub").append(b"other")
        real(*arguments, **options)

    monkeypatch.setattr(store, "write_atomic", slow)
    log = Log(path, "hub")
    assert log.append(b"own") == 1
    assert Log(path, "hub").entry(0) == b"other"


def test_an_entry_altered_under_an_open_log_is_found(path: Path) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(IntegrityError, match="entry 0"):
        log.entry(0)


def test_a_log_that_became_shorter_is_found(path: Path) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    os.truncate(path, HEADER)
    with pytest.raises(IntegrityError, match="shorter"):
        log.append(b"second")


def test_other_files_and_other_logs_are_refused(path: Path, tmp_path: Path) -> None:
    Log(path, "hub")
    with pytest.raises(InputError, match="not the expected log"):
        Log(path, "another")
    (tmp_path / "notes.txt").write_bytes(b"notes")
    with pytest.raises(InputError, match="not the expected log"):
        Log(tmp_path / "notes.txt", "hub")
    with pytest.raises(StorageError, match="cannot open"):
        Log(tmp_path, "hub")
    for name in ("", "x" * 257):
        with pytest.raises(InputError, match="id"):
            Log(tmp_path / "new", name)


def test_two_handles_see_each_others_entries(path: Path) -> None:
    one, two = Log(path, "hub"), Log(path, "hub")
    assert one.append(b"a") == 0
    assert two.append(b"b") == 1
    assert one.append(b"c") == 2
    assert one.head() == Log(path, "hub").head()
    assert [one.entry(index) for index in range(3)] == [b"a", b"b", b"c"]


def test_processes_append_together(path: Path) -> None:
    Log(path, "hub")
    code = "import sys, pathlib; from cloister.log import Log; log = Log(pathlib.Path(sys.argv[1]), 'hub')\n"
    code += "for number in range(20): log.append(sys.argv[2].encode() + b'%d' % number)"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("a", "b")]
    assert [child.wait(60) for child in children] == [0, 0]
    log = Log(path, "hub")
    assert sorted(log.entry(index) for index in range(len(log))) == sorted(
        name + b"%d" % number for name in (b"a", b"b") for number in range(20)
    )


def test_a_full_disk_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(path, "hub")
    log.append(b"first")
    before = path.read_bytes()
    real = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        real(descriptor, bytes(data[:10]), offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "pwrite", full)
    with pytest.raises(StorageError, match="No space left"):
        log.append(b"second")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert log.append(b"second") == 1
    assert Log(path, "hub").entry(1) == b"second"


def test_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(path, "hub")
    monkeypatch.setattr(store, "MAX_ENTRY", 3)
    with pytest.raises(InputError, match="longer"):
        log.append(b"four")
    for index in (0, -1):
        with pytest.raises(InputError, match="no entry"):
            log.entry(index)
    with pytest.raises(InputError):
        log.head(1)
