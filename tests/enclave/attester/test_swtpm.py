"""The software TPM: its life, its folder, and what it says of itself."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm

from cloister.enclave.attester import SoftwareTpm, swtpm
from cloister.errors import InputError

_CHILD = """
import sys, time
from pathlib import Path
from cloister.enclave.attester import SoftwareTpm
tpm = SoftwareTpm(Path(sys.argv[1]))
print(tpm.pid, flush=True)
time.sleep(60)
"""


def _gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rsplit(")", 1)[1].split()[0] == "Z"


def test_it_says_that_it_is_software(software: SoftwareTpm) -> None:
    assert software.tpm.software
    assert software.tpm.ek_certificate is None
    assert "not hardware-protected" in repr(software)
    assert "not hardware-protected" in software.tpm.where


def test_every_start_is_a_fresh_machine_with_the_same_seeds(tmp_path: Path) -> None:
    needs_swtpm()
    with SoftwareTpm(tmp_path / "a") as one:
        ak, ek = one.tpm.public("ak"), one.tpm.public("ek")
        one.tpm.extend(11, bytes(32))
        assert one.tpm.pcrs([11])[11] != bytes(32)
    with SoftwareTpm(tmp_path / "a") as again:
        assert (again.tpm.public("ak"), again.tpm.public("ek")) == (ak, ek)
        assert again.tpm.pcrs([11])[11] == bytes(32)
    with SoftwareTpm(tmp_path / "b") as other:
        assert other.tpm.public("ak") != ak


def test_its_state_is_for_this_user_alone(software: SoftwareTpm) -> None:
    assert stat.S_IMODE(software.folder.stat().st_mode) == 0o700
    for path in software.folder.iterdir():
        if path.name == ".lock":  # swtpm's own, and empty
            assert path.stat().st_size == 0
            continue
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_it_ends_when_closed_and_closes_twice(tmp_path: Path) -> None:
    needs_swtpm()
    software = SoftwareTpm(tmp_path)
    assert not _gone(software.pid)
    software.close()
    software.close()
    assert _gone(software.pid)
    with pytest.raises(InputError, match="closed"):
        software.tpm.quote(b"")


def test_it_ends_with_its_parent_and_lets_go_of_its_folder(tmp_path: Path) -> None:
    needs_swtpm()
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert not _gone(pid)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    deadline = time.monotonic() + 20
    while not _gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _gone(pid)
    with SoftwareTpm(tmp_path) as successor:  # also right after the kill, when the old one may still hold on
        assert successor.tpm.pcrs([0])


def test_one_folder_has_one_at_a_time(software: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swtpm, "_LOCK", 0.1)
    with pytest.raises(InputError, match="another process uses"):
        SoftwareTpm(software.folder)


def test_it_opens_no_port_and_leaves_no_path(software: SoftwareTpm) -> None:
    names = {path.name for path in software.folder.iterdir()}
    assert names <= {".lock", "cloister.lock", "tpm2-00.permall", "tpm2-00.volatilestate"}
    sockets = [str(each.readlink()) for each in Path(f"/proc/{software.pid}/fd").iterdir()]
    inodes = {each[8:-1] for each in sockets if each.startswith("socket:[")}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        try:
            lines = Path(f"/proc/{software.pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        assert not inodes & {line.split()[9] for line in lines}


def test_without_swtpm_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert swtpm.why_no_swtpm() == "the program swtpm is not installed"
    with pytest.raises(InputError, match="cloister enclave setup"):
        SoftwareTpm(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_damaged_state_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_swtpm()
    SoftwareTpm(tmp_path).close()
    state = tmp_path / "tpm2-00.permall"
    state.write_bytes(b"\xff" * 100)
    monkeypatch.setattr(swtpm, "_LOCK", 0.1)
    with pytest.raises(InputError, match="swtpm does not start"):
        SoftwareTpm(tmp_path)


def test_a_killed_swtpm_is_a_clear_error(software: SoftwareTpm) -> None:
    os.kill(software.pid, signal.SIGKILL)
    with pytest.raises(InputError, match="the TPM did not"):
        software.tpm.pcrs([0])


def test_a_forked_child_may_not_use_it(software: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: mine + 1)
        with pytest.raises(InputError, match="parent process"):
            software.tpm.pcrs([0])
    assert software.tpm.pcrs([0])


def test_libtss2_is_silent(software: SoftwareTpm, capfd: pytest.CaptureFixture[str]) -> None:
    assert not software.tpm.has(0x01C00002)
    assert capfd.readouterr().err == ""
