from __future__ import annotations

import errno
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister import files
from cloister.errors import InputError, StorageError
from cloister.files import atomic_file, exclusive, new_directory, read_bytes, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"one")
    write_atomic(path, memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_permissions_hold_from_the_first_byte(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    with atomic_file(path, mode=mode) as file:
        [part] = tmp_path.iterdir()
        assert stat.S_IMODE(part.stat().st_mode) == mode
        file.write(b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_existing_files_wider_mode_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_atomic(path, b"new", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write: No space left on device \(.*file\)\. Free space"):
        write_atomic(tmp_path / "file", b"data")
    assert names(tmp_path) == []


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    for target in (tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="not a file"):
            write_atomic(target, b"data")
    assert Path("/dev/null").is_char_device()


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    write_atomic(tmp_path / "link", b"data")
    assert (tmp_path / "victim").read_bytes() == b"victim"
    assert not (tmp_path / "link").is_symlink()


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    code = "import os, sys, pathlib; from cloister.files import atomic_file\n"
    code += "with atomic_file(pathlib.Path(sys.argv[1])) as file: file.write(b'new'); file.flush(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert path.read_bytes() == b"old"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "release"
    with new_directory(path, mode=0o700) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"data")
        assert not path.exists()
    assert (path / "inner" / "file").read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert names(path.parent) == ["release"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_folder_that_fails_does_not_appear(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "release"

    def fail() -> None:
        with new_directory(path) as folder:
            (folder / "file").write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == []


def test_a_folder_in_its_place_is_told_before_anything_can_be_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "release", []

    def fill() -> None:
        with new_directory(path, placed=lambda: told.append(path.exists())):
            assert told == []

    def interrupted(_path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("cloister.files._fsync_path", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill()
    assert told == [True]


def test_a_second_ctrl_c_does_not_stop_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove = shutil.rmtree

    def pressed(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        remove(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", pressed)
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_waits_for_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, came = shutil.rmtree, list[bool]()

    def terminated(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(*arguments, **options)  # type: ignore[arg-type]

    before = signal.signal(signal.SIGTERM, lambda *_: came.append(any(tmp_path.iterdir())))
    try:
        monkeypatch.setattr(shutil, "rmtree", terminated)
        with pytest.raises(ValueError, match="half"), new_directory(tmp_path / "out"):
            raise ValueError("half")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [False]


def test_ctrl_c_does_not_part_the_two_steps_of_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    rename = Path.rename

    def pressed(self: Path, target: Path) -> Path:
        done = rename(self, target)
        signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(Path, "rename", pressed)
    with new_directory(tmp_path / "out", replace=lambda _: True) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_an_empty_folder_may_be_filled_and_another_not(tmp_path: Path) -> None:
    path = tmp_path / "release"
    path.mkdir()
    with new_directory(path) as folder:
        (folder / "file").write_bytes(b"data")
    assert names(path) == ["file"]
    with pytest.raises(InputError, match="exists"), new_directory(path):
        pass
    with pytest.raises(InputError, match="exists"), new_directory(path / "file"):
        pass


@pytest.mark.parametrize("replace", [False, True])
def test_what_appeared_while_a_folder_was_built_stays(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "release"

    def build() -> None:
        with new_directory(path, replace=lambda _: replace) as folder:
            (folder / "file").write_bytes(b"ours")
            path.mkdir()
            (path / "file").write_bytes(b"theirs")

    with pytest.raises(StorageError):
        build()
    assert (path / "file").read_bytes() == b"theirs"
    assert names(tmp_path) == ["release"]


def test_a_link_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for link, target in (("link", tmp_path / "real"), ("dangling", tmp_path / "nowhere")):
        (tmp_path / link).symlink_to(target)
        with (
            pytest.raises(InputError, match="exists"),
            new_directory(tmp_path / link, replace=lambda _: True),
        ):
            pass
    assert names(tmp_path) == ["dangling", "link", "real"]


def test_a_replacement_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_bytes(b"x")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == path and (self / "new").exists():
            raise OSError(errno.EIO, "refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError), new_directory(path, replace=lambda _: True) as folder:
        (folder / "new").write_bytes(b"x")
    assert [each.name for each in tmp_path.rglob("*")] == ["out", "old"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(InputError, match="the plan is larger than 4 bytes"):
        read_bytes(path, limit=4, what="plan")
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        read_bytes(tmp_path / "missing", limit=1)
    with pytest.raises(InputError, match="Is a directory"):
        read_bytes(tmp_path, limit=1)


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock, trace = tmp_path / "locks" / "lock", tmp_path / "trace"
    code = "import sys, pathlib; from cloister.files import exclusive\n"
    code += "with exclusive(pathlib.Path(sys.argv[1])): pathlib.Path(sys.argv[2]).write_bytes(b'in')"
    with exclusive(lock):
        child = subprocess.Popen([sys.executable, "-c", code, str(lock), str(trace)])
        time.sleep(1.0)
        assert child.poll() is None
        assert not trace.exists()
    assert child.wait(60) == 0
    assert trace.read_bytes() == b"in"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    with pytest.raises(StorageError), exclusive(trace / "impossible"):
        pass


def test_of_two_writers_that_must_not_replace_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def late() -> None:
        with atomic_file(path, replace=False) as file:
            file.write(b"late")
            write_atomic(path, b"first", replace=False)

    with pytest.raises(InputError, match="exists"):
        late()
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
