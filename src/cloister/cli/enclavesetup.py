"""`cloister enclave setup`: what this machine lacks for enclaves, and how it gets it.

Three groups: programs and libraries of the system (Debian packages), Python packages, and what the machine
itself offers, which nothing can install. As root on a Debian or Ubuntu machine the first two are installed,
unless `--check` is given; anywhere else the commands are shown. The verdict is "yes" where the first two are
complete.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from ctypes.util import find_library
from typing import Annotated, Any, Final, NamedTuple

import typer

from cloister.cli.common import JsonOption, emit, say

__all__ = ["PACKAGES", "setup"]

PACKAGES: Final = ("swtpm", "swtpm-tools", "tpm2-tools", "libtss2-dev", "libseccomp2")
"""Debian's packages: the software TPM, tools to look into a TPM, the TCG's stack, and seccomp."""
_PYTHON: Final = {
    "tpm2-pytss": ("tpm2_pytss", "tpm2-pytss>=2.3"),
    "dcap-qvl": ("dcap_qvl", "dcap-qvl>=0.5"),
    "lxml": ("lxml", "lxml>=5.3"),
    "signxml": ("signxml", "signxml>=4.0"),
    "pyseccomp": ("pyseccomp", "pyseccomp>=0.1.2"),
}
_APT: Final = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30", "--quiet")
_MINUTES: Final = 15 * 60.0


class _Part(NamedTuple):
    """One thing that is needed or offered; `missing` says in words what its absence costs, or is None."""

    name: str
    missing: str | None


def setup(
    check: Annotated[bool, typer.Option("--check", help="Say what is missing, and install nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine lacks for enclaves, and install what may be installed, as root on Debian."""
    done: list[str] = []
    if not check and any(part.missing for part in (*_system(), *_python())):
        done = _install()
    groups = {"system": _system(), "python": _python(), "machine": _machine()}
    complete = not any(part.missing for part in (*groups["system"], *groups["python"]))
    result: dict[str, Any] = {
        "complete": complete,
        "installed": done,
        "commands": [] if complete else [" ".join(each) for each in _commands()],
        **{name: {part.name: part.missing for part in parts} for name, parts in groups.items()},
    }
    emit(result, as_json=as_json, text=_text(groups, result))
    if not complete:
        raise typer.Exit(1)


def _system() -> list[_Part]:
    """Programs and libraries, and what is not to be had without them."""
    program = shutil.which("swtpm")
    return [
        _Part("swtpm", None if program else "no software TPM can be started"),
        _Part("libtss2", None if find_library("tss2-esys") else "no TPM can be spoken to"),
        _Part(
            "libseccomp", None if find_library("seccomp") else "the worker's system calls are not confined"
        ),
    ]


def _python() -> list[_Part]:
    return [
        _Part(name, None if importlib.util.find_spec(module) else "not installed")
        for name, (module, _) in _PYTHON.items()
    ]


def _machine() -> list[_Part]:
    """What the machine offers; nothing of it can be installed."""
    from cloister.enclave.attester.tpm import DEVICE
    from cloister.enclave.attester.tsm import TsmReports
    from cloister.enclave.sandbox import available

    kind = TsmReports().kind()
    tpm = "there is none" if not DEVICE.exists() else "this user may not use it (group tss)"
    usable = os.access(DEVICE, os.R_OK | os.W_OK)
    return [
        _Part(
            "confidential guest",
            None if kind else "this is no SEV-SNP or TDX guest, or this user may not ask",
        ),
        _Part("TPM", None if usable else tpm),
        *(_Part(f"wall: {wall}", missing) for wall, missing in available().items()),
    ]


def _commands() -> list[list[str]]:
    """What installs everything: as root with apt, and with this interpreter's pip."""
    found: list[list[str]] = []
    if any(part.missing for part in _system()) or importlib.util.find_spec("tpm2_pytss") is None:
        found.append(["apt-get", *_APT, "install", "--yes", "--no-install-recommends", *PACKAGES])
    wanted = [each for module, each in _PYTHON.values() if importlib.util.find_spec(module) is None]
    if wanted:
        found.append([sys.executable, "-m", "pip", "install", "--quiet", *wanted])
    return found


def _install() -> list[str]:
    """Run what may be run here; return the commands that succeeded."""
    done: list[str] = []
    for command in _commands():
        if command[0] == "apt-get" and (os.geteuid() != 0 or shutil.which("apt-get") is None):
            say("System packages are installed by root, with apt-get; see the command below.")
            continue
        if command[0] == "apt-get":
            _run(["apt-get", *_APT, "update"])
        if _run(command):
            done.append(" ".join(command))
            importlib.invalidate_caches()
    return done


def _run(command: Sequence[str]) -> bool:
    """Run one command, its output going to stderr; tell whether it succeeded."""
    say(f"$ {' '.join(command)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        code = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=quiet,
            timeout=_MINUTES,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"It did not run to its end: {type(error).__name__}")
        return False
    if code != 0:
        say(f"It ended with {code}.")
    return code == 0


def _text(groups: dict[str, list[_Part]], result: dict[str, Any]) -> str:
    lines = []
    for name, parts in groups.items():
        lines.append(f"{name}:")
        lines += [
            f"  {part.name}: {'yes' if part.missing is None else f'no; {part.missing}'}" for part in parts
        ]
    if result["commands"]:
        lines += ["", "To install what is missing:", *(f"  {each}" for each in result["commands"])]
    if all(part.missing for part in groups["machine"][:2]):
        lines += [
            "",
            "No hardware vouches for this machine: what a software TPM says is NOT hardware-protected.",
        ]
    return "\n".join(lines)
