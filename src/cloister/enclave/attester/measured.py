"""Measured start: what runs here, digested and extended into registers before it runs on anybody's data.

What is measured, in this order, and into which register:

    11  interpreter     the program file of the Python that runs
    11  package         every file of the package that is run from, by path
    12  dependencies    name, version and RECORD of every distribution that could be imported
    12  hooks           .pth files, sitecustomize and usercustomize: what runs at every start
    13  plan, policy    the study's plan and the enclave policy, where there are any

Whoever changes a byte of any file of the package gets another value in register 11, and the log says which
name has changed. RECORD lists digests of a distribution's files; the files themselves are not read, so an
installed dependency that was altered in place is not found.

This is self-measurement, and says so wherever it is appraised (`Claims.self_reported`): it is this very code
that says what it is. A changed package could as well state the old digest. It counts only where the same
quote covers firmware, kernel and a locked image that starts this program, and registers that were capped
before.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from cloister.crypto import canonical_bytes, digest_file
from cloister.enclave.eventlog.start import START_PCRS, StartLog
from cloister.errors import InputError, IntegrityError

__all__ = ["Measured", "Registers", "entered", "extend_into", "file_digests", "measure", "standing"]

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = 11
_AROUND: Final = 12
_PURPOSE: Final = 13
_HOOKS: Final = ("sitecustomize.py", "usercustomize.py")


class Measured(NamedTuple):
    """One thing that was measured: register, name, SHA-256 (hexadecimal), and a few words."""

    pcr: int
    name: str
    digest: str
    detail: str


class Registers(Protocol):
    """What can be extended: a `Tpm`, or a twin of one."""

    def extend(self, pcr: int, value: bytes) -> None:
        """Extend a register with 32 bytes."""

    def pcrs(self, selection: tuple[int, ...]) -> dict[int, bytes]:
        """Return registers."""


def measure(
    *, plan: bytes | None = None, policy: bytes | None = None, package: Path | None = None
) -> tuple[Measured, ...]:
    """Return what a measured start enters.

    Args:
        plan: canonical bytes of the study's plan, if this start is for one.
        policy: the enclave policy's bytes, if there is one.
        package: folder of the package that is run; this one.

    Raises:
        InputError: a file cannot be read.
    """
    program = Path(sys.executable).resolve()
    folder = package or _PACKAGE
    files = file_digests(folder)
    installed = _distributions()
    hooks = _hooks()
    found = [
        Measured(_PROGRAM, "interpreter", _file(program), f"Python {sys.version.split()[0]}"),
        Measured(_PROGRAM, "package", _of(files), f"{len(files)} files"),
        Measured(_AROUND, "dependencies", _of(installed), f"{len(installed)} distributions"),
        Measured(_AROUND, "hooks", _of(hooks), f"{len(hooks)} files"),
    ]
    for name, content in (("plan", plan), ("policy", policy)):
        if content is not None:
            found.append(Measured(_PURPOSE, name, hashlib.sha256(content).hexdigest(), ""))
    return tuple(found)


def extend_into(
    registers: Registers, measured: tuple[Measured, ...], log: StartLog | None = None
) -> StartLog:
    """Extend what was measured and return the log that replays to the registers.

    What the log holds already is not extended again: registers of a machine outlive a process.

    Args:
        registers: the TPM.
        measured: what `measure` returned.
        log: of earlier starts since the machine was started, if there were any.

    Raises:
        IntegrityError: the registers are not what the log says: somebody else extends them, too.
        InputError: something is measured as other than before; the machine must be started anew.
    """
    log = standing(log or StartLog(), registers)
    after = entered(log, measured)
    for entry in after.entries[len(log.entries) :]:
        registers.extend(entry.pcr, entry.value)
    return after


def entered(log: StartLog, measured: tuple[Measured, ...]) -> StartLog:
    """Return a log with what was measured and is not in it yet. Raises InputError as `extend_into`."""
    after = StartLog.from_bytes(log.to_bytes())
    for each in measured:
        if after.digests().get(each.name) != each.digest:
            after.extend(each.pcr, each.name, each.digest, each.detail)
    return after


def standing(log: StartLog, registers: Registers) -> StartLog:
    """Return the longest beginning of a log that the registers hold: what was extended before a kill.

    Raises:
        IntegrityError: there is none.
    """
    held = registers.pcrs(START_PCRS)
    lines = log.to_bytes().splitlines(keepends=True)
    for count in range(len(lines), -1, -1):
        begin = StartLog.from_bytes(b"".join(lines[:count]))
        values = begin.replay()
        if all(held[pcr] == values.get(pcr, bytes(32)) for pcr in START_PCRS):
            return begin
    raise IntegrityError(
        "the registers of a measured start hold what its log does not say",
        where=f"registers {START_PCRS[0]} to {START_PCRS[-1]}",
        fix="Somebody else extends them on this machine; measured start cannot be used on it",
    )


def file_digests(folder: Path) -> dict[str, str]:
    """Return SHA-256 of every file below a folder by its path in it; compiled copies of sources are left out.

    Python runs a compiled copy while it states its source's time and size; who can write the package's folder
    could forge one. A locked image has none, or has them read-only.
    """
    names = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {path.relative_to(folder).as_posix(): _file(path) for path in names}


def _file(path: Path) -> str:
    return digest_file(path).hex()


def _of(found: dict[str, str]) -> str:
    return hashlib.sha256(canonical_bytes(found)).hexdigest()


def _distributions() -> dict[str, str]:
    """Return a digest by "name version" of what is installed where this interpreter looks."""
    found: dict[str, str] = {}
    for each in metadata.distributions():
        name = each.metadata["Name"] or "?"
        if name == "cloister":
            continue  # its files were measured themselves
        record = each.read_text("RECORD") or each.read_text("METADATA") or ""
        found.setdefault(f"{name.lower()} {each.version}", hashlib.sha256(record.encode()).hexdigest())
    return found


def _hooks() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        place = Path(folder)
        for path in sorted([*place.glob("*.pth"), *(place / name for name in _HOOKS)]):
            if path.is_file():
                found.setdefault(path.name, _file(path))
    if not found and not Path(sysconfig.get_path("purelib")).is_dir():
        raise InputError("the folder of installed packages cannot be read", where="purelib")
    return found
