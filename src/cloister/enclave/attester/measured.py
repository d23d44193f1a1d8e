"""Measured start: what runs here, digested and extended into registers before it runs on anybody's data.

What is measured, in this order, and into which register:

    11  interpreter     the Python that runs: program, library, standard library
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
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from cloister.crypto import canonical_bytes, digest_file
from cloister.enclave.eventlog.start import START_PCRS, StartLog
from cloister.errors import IntegrityError

__all__ = ["Measured", "Registers", "entered", "extend_into", "file_digests", "measure", "standing"]

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_PROGRAM: Final = 11
_AROUND: Final = 12
_PURPOSE: Final = 13
_HOOKS: Final = ("sitecustomize.py", "usercustomize.py")
_NOT_STANDARD: Final = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib"}
_WRITTEN_HERE: Final = re.compile(rb"\.dist-info/(INSTALLER|REQUESTED|direct_url\.json),")


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
    folder = package or _PACKAGE
    files = file_digests(folder)
    interpreter = _interpreter()
    installed = _distributions()
    hooks = _hooks()
    found = [
        Measured(
            _PROGRAM,
            "interpreter",
            _of(interpreter),
            f"Python {sys.version.split()[0]}, {len(interpreter)} files",
        ),
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


def _interpreter() -> dict[str, str]:
    """Return digests of the program that runs, its library, and the standard library."""
    program = Path(sys.executable).resolve()
    found = {"python": _file(program)}
    library = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("LDLIBRARY") or "")
    if library.suffix != ".a" and library.is_file():  # else it is in the program itself
        found["libpython"] = _file(library)
    folder = Path(sysconfig.get_path("stdlib"))
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_STANDARD)
        for name in names:
            if name.endswith((".py", ".so")):
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = _file(path)
    return found


def _distributions() -> dict[str, str]:
    """Return a digest by "name-version" of what is installed in the folders this interpreter looks in.

    Of a RECORD (PEP 376, 627) those lines count that name a file's digest and do not depend on where the
    distribution was installed.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in sorted(Path(place).glob("*.dist-info")) if place else ():
            name = folder.name.removesuffix(".dist-info").lower()
            if not name.startswith("cloister-"):  # its files are measured themselves
                found.setdefault(name, _record(folder))
    return found


def _record(folder: Path) -> str:
    record = folder / "RECORD"
    if not record.is_file():
        return _file(folder / "METADATA") if (folder / "METADATA").is_file() else ""
    lines = [line for line in record.read_bytes().splitlines() if b",sha256=" in line]
    kept = [line for line in lines if not line.startswith(b"../") and not _WRITTEN_HERE.search(line)]
    return hashlib.sha256(b"\n".join(sorted(kept))).hexdigest()


def _hooks() -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        place = Path(folder)
        for path in sorted([*place.glob("*.pth"), *(place / name for name in _HOOKS)]):
            if path.is_file():
                found.setdefault(path.name, _file(path))
    return found
