from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import InputError, IntegrityError, StorageError
from cloister.runtime.journal import EncryptedLog
from cloister.runtime.journal.pieces import opened, sealed, sealed_bytes

KEY = bytes(range(32))
RECORDS = [b"", b"one", os.urandom(256 << 10), os.urandom((600 << 10) + 3), b"last"]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "log"


def written(path: Path, records=RECORDS) -> list[int]:
    """Write records; return the file's size after each, the header's first."""
    log = EncryptedLog.create(path, KEY)
    sizes = [log.size]
    for record in records:
        log.append(record)
        sizes.append(log.size)
    log.close()
    return sizes


def read(path: Path) -> list[bytes]:
    log = EncryptedLog.open(path, KEY)
    try:
        return [bytes(record) for record in log.records()]
    finally:
        log.close()


def test_what_was_appended_is_read_back(path):
    sizes = written(path)
    assert path.stat().st_size == sizes[-1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == RECORDS
    log = EncryptedLog.open(path, KEY)
    log.append(memoryview(bytearray(b"more")))
    log.sync()
    assert (log.count, log.generation) == (len(RECORDS) + 1, 0)
    log.close()
    assert read(path) == [*RECORDS, b"more"]


def test_nothing_of_a_record_is_in_the_file(path):
    written(path, [b"a secret that must not be seen" * 30])
    assert b"secret" not in path.read_bytes()
    assert repr(EncryptedLog.open(path, KEY)) == "<EncryptedLog: secret>"


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), lengths=st.lists(st.integers(0, 60), max_size=4))
def test_a_torn_tail_is_cut_wherever_it_ends(tmp_path_factory, cut, lengths):
    path = tmp_path_factory.mktemp("torn") / "log"
    records = [bytes([i]) * length for i, length in enumerate(lengths)]
    sizes = written(path, records)
    end = max(sizes[0], sizes[-1] - cut)
    os.truncate(path, end)
    whole = sum(size <= end for size in sizes) - 1
    assert read(path) == records[:whole]
    assert path.stat().st_size == sizes[whole]
    log = EncryptedLog.open(path, KEY)
    log.append(b"goes on")
    log.close()
    assert read(path) == [*records[:whole], b"goes on"]


@pytest.mark.parametrize("kept", [0, 3, 60, 300, 4096])
def test_a_tail_of_zeros_is_cut_too(path, kept):
    """What a machine that loses power leaves: the file has its length, and not its content."""
    sizes = written(path, [b"one", os.urandom(8192)])
    with path.open("r+b") as file:
        file.seek(sizes[1] + kept)
        file.write(bytes(sizes[2] - sizes[1] - kept))
    assert read(path) == [b"one"]
    assert path.stat().st_size == sizes[1]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_anything_else_that_was_altered_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("altered") / "log"
    records = [os.urandom(40), b"two", os.urandom(70)]
    sizes = written(path, records)
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "drop", "swap", "repeat", "insert"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "drop":
            del content[sizes[0] : sizes[1]]
        case "swap":
            content = content[: sizes[0]] + content[sizes[1] : sizes[2]] + content[sizes[0] : sizes[1]]
        case "repeat":
            content += content[sizes[2] : sizes[3]]
        case "insert":
            at = data.draw(st.integers(0, len(content)))
            content[at:at] = data.draw(
                st.binary(min_size=100, max_size=130).filter(lambda b: not b.endswith(bytes(16)))
            )
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        read(path)


def test_records_of_another_log_do_not_open(tmp_path):
    sizes = written(tmp_path / "one", [b"first"])
    written(tmp_path / "two", [b"other"])
    one, two = (tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()
    (tmp_path / "one").write_bytes(one[: sizes[0]] + two[sizes[0] :])
    with pytest.raises(IntegrityError, match="altered"):
        read(tmp_path / "one")


def test_another_key_does_not_open_it(path):
    written(path)
    with pytest.raises(IntegrityError, match="key"):
        EncryptedLog.open(path, bytes(32))
    assert read(path) == RECORDS


def test_what_is_not_a_log_is_refused(path):
    with pytest.raises(InputError, match="no such log"):
        EncryptedLog.open(path, KEY)
    path.write_bytes(b"anything")
    with pytest.raises(IntegrityError, match="not a log"):
        EncryptedLog.open(path, KEY)
    with pytest.raises(InputError, match="exists"):
        EncryptedLog.create(path, KEY)


def test_replacing_is_one_step(path, monkeypatch):
    written(path)
    log = EncryptedLog.open(path, KEY)
    log.replace([b"only", b"these"])
    assert (log.count, log.generation) == (2, 1)
    log.append(b"and this")
    assert [bytes(record) for record in log.records()] == [b"only", b"these", b"and this"]

    def failing():
        yield b"begun"
        raise OSError(28, "full")

    with pytest.raises(StorageError, match="No space"):
        log.replace(failing())
    log.append(b"still")
    log.close()
    assert read(path) == [b"only", b"these", b"and this", b"still"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["log", "log.lock"]


def test_one_process_at_a_time(path):
    log = EncryptedLog.create(path, KEY)
    for opening in (EncryptedLog.open, EncryptedLog.create):
        with pytest.raises(InputError, match="another process"):
            opening(path, KEY)
    log.replace([b"x"])
    with pytest.raises(InputError, match="another process"):
        EncryptedLog.open(path, KEY)
    log.close()
    log.close()
    assert read(path) == [b"x"]
    with pytest.raises(StorageError, match="closed"):
        log.append(b"")


def test_a_full_disk_leaves_the_file_as_it_was(path):
    written(path, [b"one"])
    log = EncryptedLog.open(path, KEY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.size + (300 << 10), before[1]))
    try:
        with pytest.raises(StorageError, match="what was written before is whole"):
            log.append(os.urandom(1 << 20))
        log.append(b"a small one fits")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(os.urandom(1 << 20))
    log.close()
    assert read(path)[:2] == [b"one", b"a small one fits"]


def test_a_log_that_cannot_be_cut_back_is_not_written_to(path, monkeypatch):
    written(path, [b"one"])
    log = EncryptedLog.open(path, KEY)

    def refuse(*_: object) -> int:
        raise OSError(5, "io")

    monkeypatch.setattr(os, "ftruncate", refuse)
    monkeypatch.setattr(os, "pwritev", refuse)
    for _ in range(2):
        with pytest.raises(StorageError):
            log.append(b"two")
    monkeypatch.undo()
    with pytest.raises(StorageError, match="could not be written before"):
        log.append(b"two")
    log.close()
    assert read(path) == [b"one"]


def _append_for_ever(path: Path, told: object) -> None:
    log = EncryptedLog.open(path, KEY)
    number = 0
    while True:
        log.append(number.to_bytes(4, "big") * 100_000)
        number += 1
        told.send(number)


def test_a_process_that_is_killed_loses_nothing_it_has_told(path):
    EncryptedLog.create(path, KEY).close()
    fork = multiprocessing.get_context("spawn")
    hears, tells = fork.Pipe(duplex=False)
    process = fork.Process(target=_append_for_ever, args=(path, tells))
    process.start()
    while (told := hears.recv()) < 40:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while hears.poll():
        told = hears.recv()
    found = read(path)
    assert len(found) in (told, told + 1)
    assert found == [number.to_bytes(4, "big") * 100_000 for number in range(len(found))]


@settings(max_examples=40, deadline=None)
@given(length=st.one_of(st.integers(0, 40), st.integers((256 << 10) - 2, (256 << 10) + 2)))
def test_pieces(length):
    record = os.urandom(length)
    data = b"".join(bytes(piece) for piece in sealed(KEY, bytes(16), record))
    assert len(data) == sealed_bytes(length)

    def reader(content: bytes):
        left = [content]

        def read(size: int) -> bytes:
            chunk, left[0] = left[0][:size], left[0][size:]
            return chunk

        return read

    assert opened(KEY, bytes(16), length, reader(data)) == record
    with pytest.raises(IntegrityError):
        opened(KEY, bytes(16), length, reader(data[:-1]))
    with pytest.raises(IntegrityError):
        opened(KEY, bytes([1] * 16), length, reader(data))
