"""`cloister enclave attest`, `seal` and `unseal`: what this machine says of itself, and what it alone opens.

What a software TPM vouches for is not hardware-protected, and is only made where that is allowed aloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.enclaveverify import PURPOSE, NonceOption, PurposeOption, nonce_bytes
from cloister.errors import CloisterError, InputError, PolicyRefused

if TYPE_CHECKING:
    from cloister.enclave.attester import Tpm, TpmAttester, TsmAttester

__all__ = ["attest", "seal", "unseal"]

_MAX_PLAIN: Final = 60 << 20
_UNPROTECTED: Final = (
    "NOT HARDWARE-PROTECTED: a software TPM vouches for this; whoever runs this machine can forge it."
)

SoftwareOption = Annotated[
    bool,
    typer.Option(
        "--allow-software-tpm", help="Where there is no hardware, use a TPM made of software: no protection."
    ),
]
LabelOption = Annotated[
    str | None, typer.Option("--label", help="What it is; `unseal` must say the same. Default: its name.")
]


def attest(
    out: Annotated[Path, typer.Option("--out", help="Where the evidence goes.")] = Path("evidence.json"),
    nonce: NonceOption = None,
    purpose: PurposeOption = PURPOSE,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Vouch for this file, such as a public key.")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured/--bare", help="Measure this program first, as a worker does.")
    ] = True,
    allow_software_tpm: SoftwareOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write evidence of this machine: confidential guest, TPM, or (if allowed) a TPM made of software."""
    from cloister.crypto import digest_file
    from cloister.enclave.claims import protection_by
    from cloister.enclave.evidence import report_data
    from cloister.files import write_atomic

    digest = bytes(32) if key is None else digest_file(key)
    asked = report_data(purpose, nonce_bytes(nonce), digest)
    with _attester(allow_software_tpm, measured=measured) as machine:
        evidence = machine.attest(asked)
        hardware = machine.hardware
    write_atomic(out, evidence.to_json())
    if not hardware:
        say(_UNPROTECTED)
    found = {
        "evidence": str(out),
        "kind": evidence.kind,
        "sha256": evidence.digest.hex(),
        "protection": protection_by(hardware),
        "key_digest": digest.hex(),
    }
    emit(found, as_json=as_json, text=f"Wrote {out}: evidence of kind {evidence.kind}.")


def seal(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to seal, 60 MiB at most.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: FILE.tpm-sealed.")] = None,
    label: LabelOption = None,
    rollback: Annotated[
        bool,
        typer.Option(
            "--counter/--no-counter", help="Make older copies useless by a counter in the TPM, or not."
        ),
    ] = True,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="What was sealed under this label elsewhere may be lost."),
    ] = False,
    allow_software_tpm: SoftwareOption = False,
) -> None:
    """Seal a file to this machine and to the software that runs: nothing else opens it, nor an older copy."""
    from cloister.enclave.sealing import seal_file
    from cloister.files import read_bytes

    name = label or file.name
    target = out or file.with_name(file.name + ".tpm-sealed")
    data = read_bytes(file, limit=_MAX_PLAIN, what="file to seal")
    with _tpm(allow_software_tpm) as tpm:
        if rollback and not replace:
            _keep_others(tpm, name, target)
        seal_file(tpm, target, data, label=name, counter=name if rollback else None)
        unprotected = tpm.software
    if unprotected:
        say(_UNPROTECTED)
    say(
        f"Sealed: {target}. It opens on this machine, with this software, as {name!r}. {file} is still there."
    )


def unseal(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `seal` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Where the contents go; mode 0600.")],
    label: LabelOption = None,
    allow_software_tpm: SoftwareOption = False,
) -> None:
    """Open a file that was sealed here."""
    from cloister.enclave.sealing import unseal_file
    from cloister.files import write_atomic

    if out.exists():
        raise InputError("there is a file of this name", where=str(out), fix="Choose another --out")
    name = label or file.name.removesuffix(".tpm-sealed")
    with _tpm(allow_software_tpm) as tpm:
        data = unseal_file(tpm, file, label=name)
        unprotected = tpm.software
    write_atomic(out, data, mode=0o600, replace=False)
    if unprotected:
        say(_UNPROTECTED)
    say(f"Opened: {out}")


def _keep_others(tpm: Tpm, label: str, target: Path) -> None:
    """Raise InputError where sealing would make another file useless: a label has one counter."""
    from cloister.enclave.attester.nv import NvCounter
    from cloister.enclave.sealing import MAX_SEALED, read_header
    from cloister.files import read_bytes

    if not NvCounter(tpm, label).exists():
        return
    try:
        counted = read_header(read_bytes(target, limit=2 * MAX_SEALED, what="sealed file")).counter
    except CloisterError:
        counted = None
    if counted is None or counted.name != label:
        raise InputError(
            f"another file is sealed as {label!r} on this machine, and would open no more",
            where=str(target),
            fix="Give another --label; or --replace, if that file may be lost",
        )


@contextmanager
def _attester(software: bool, *, measured: bool) -> Iterator[TsmAttester | TpmAttester]:
    from cloister.enclave.attester import find_attester, measure

    folder = common.home() / "enclave"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        machine = find_attester(folder, software_allowed=software, measured=measure() if measured else ())
    except PolicyRefused as refusal:
        raise PolicyRefused(
            refusal.what,
            fix="Run on such a machine; or, for a trial that is not hardware-protected, give "
            "--allow-software-tpm",
        ) from refusal
    try:
        yield machine
    finally:
        machine.close()


@contextmanager
def _tpm(software: bool) -> Iterator[Tpm]:
    """Yield the TPM of this machine after a measured start."""
    from cloister.enclave.attester import TpmAttester

    with _attester(software, measured=True) as machine:
        if not isinstance(machine, TpmAttester):
            raise InputError(
                "this confidential guest has no TPM to seal with",
                where=machine.kind,
                fix="Keep keys in a key broker, which releases them on this guest's evidence",
            )
        yield machine.tpm
