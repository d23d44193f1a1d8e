"""A software TPM: swtpm, started, provisioned and stopped by Cloister itself. NOT HARDWARE-PROTECTED.

It behaves like a TPM and protects nothing from whoever controls the machine: its seeds, and so all keys, are
in files of its state folder, and putting back an older copy of that folder puts its counters back too. It is
for trials, demonstrations and tests.

Invariants:
1. swtpm speaks over one socket pair and nothing else: no path, no port, and no second client.
2. It ends when this process ends, however that happens: its only connection closes then.
3. One state folder, one swtpm: a lock in the folder is held from before it starts until after it has ended.
4. Every start is a machine's start: registers are zero, seeds and counters are those of the folder.

Provisioning is what swtpm does at its first start in an empty folder: fresh seeds. It has no certificate of
any maker, and none is made up for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from cloister.enclave.attester.pytss import load, why_absent
from cloister.enclave.attester.tpm import Tpm
from cloister.errors import InputError, StorageError

__all__ = ["NOT_PROTECTED", "SoftwareTpm", "TpmInUse", "why_no_swtpm"]

NOT_PROTECTED: Final = "not hardware-protected: a software TPM (swtpm)"
"""What every statement that rests on one says."""
_ANSWER: Final = 30.0  # seconds for one command
_LOCK: Final = 5.0  # seconds for a predecessor to end
_LARGEST: Final = 4096  # bytes of a response (TPM_PT_MAX_RESPONSE_SIZE of swtpm)
_SHUTDOWN_CLEAR: Final = bytes.fromhex("8001 0000000c 00000145 0000")
_GET_RANDOM: Final = bytes.fromhex("8001 0000000c 0000017b 0008")


def why_no_swtpm() -> str | None:
    """Return why no software TPM can be run here, or None where one can."""
    if shutil.which("swtpm") is None:
        return "the program swtpm is not installed"
    return why_absent()


class TpmInUse(InputError):
    """A software TPM that another process uses: it serves one at a time."""


class SoftwareTpm:
    """A software TPM with its state in one folder. Close it, or use it in a with-statement.

    Args:
        folder: its state; made where missing, for this user alone. Give each party one of its own.

    Raises:
        InputError: swtpm is not installed, does not start, or runs already with this folder.
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        missing = why_no_swtpm()
        if missing is not None:
            raise InputError(f"no software TPM can be started: {missing}", fix="Run `cloister enclave setup`")
        self.folder: Final = folder.absolute()
        with contextlib.ExitStack() as undo:
            lock = _locked(self.folder)
            undo.callback(os.close, lock)
            ours, process = _started(self.folder)
            undo.callback(_end, ours, process)
            self.tpm: Final = Tpm(_way(ours), where=f"{NOT_PROTECTED}, {self.folder}")
            self._undo = undo.pop_all()
        self.pid: Final = process.pid
        self._parent: Final = os.getpid()

    def close(self) -> None:
        """Shut it down in order, and wait until it has ended. A second call does nothing, nor does one of a
        forked child, whose parent still uses it."""
        if os.getpid() != self._parent:
            return
        self.tpm.close()
        self._undo.close()

    def __enter__(self) -> SoftwareTpm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SoftwareTpm {self.folder}, {NOT_PROTECTED}>"


def _locked(folder: Path) -> int:
    """Make the folder and take its lock. Returns the descriptor that holds it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / "cloister.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot make a software TPM's folder: {os.strerror(error.errno or 0)}", where=str(folder)
        ) from None
    until = time.monotonic() + _LOCK
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            os.close(lock)
            raise TpmInUse(
                "another process uses this software TPM",
                where=str(folder),
                fix="Stop it, or give this one another folder",
            ) from None
        return lock


def _started(folder: Path) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start swtpm until it answers; one that a killed parent left needs a moment to let go of the folder."""
    until = time.monotonic() + _LOCK
    while True:
        ours, process = _spawned(folder)
        try:
            ours.sendall(_GET_RANDOM)
            if ours.recv(_LARGEST)[6:10] == bytes(4):
                return ours, process
        except OSError:
            pass
        said = _end(ours, process)
        if time.monotonic() > until:
            raise InputError(
                f"swtpm does not start: {said or 'it says nothing'}",
                where=str(folder),
                fix="If its state is damaged, move the folder away: its keys and counters are lost then",
            )
        time.sleep(0.1)


def _spawned(folder: Path) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_ANSWER)
    program = shutil.which("swtpm") or "swtpm"
    flags = ["--fd", str(theirs.fileno()), "--flags", "not-need-init,startup-clear"]
    with theirs:
        process = subprocess.Popen(
            [program, "socket", "--tpm2", "--tpmstate", f"dir={folder},mode=0600", *flags],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we then close it in order
        )
    return ours, process


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> str:
    """End swtpm; return the last line it wrote."""
    with contextlib.suppress(OSError):
        ours.sendall(_SHUTDOWN_CLEAR)
        ours.recv(_LARGEST)
    ours.close()
    try:
        _, said = process.communicate(timeout=_LOCK)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _way(ours: socket.socket) -> Any:
    """Return a TCTI of `tpm2_pytss` over a connected socket."""
    tcti: Any = importlib.import_module("tpm2_pytss.TCTI")
    constants: Any = importlib.import_module("tpm2_pytss.constants")
    tss = load()

    class _Way(tcti.PyTCTI):  # type: ignore[misc]  # the package has no types
        def do_transmit(self, command: bytes) -> None:
            ours.sendall(command)

        def do_receive(self, timeout: int) -> bytes:
            if timeout >= 0 and not select.select([ours], [], [], timeout / 1000)[0]:
                raise tss.TSS2_Exception(constants.TSS2_RC.TCTI_RC_TRY_AGAIN)
            response = ours.recv(_LARGEST)
            if not response:
                raise ConnectionResetError("swtpm has ended")
            return response

    return _Way(max_size=_LARGEST)
