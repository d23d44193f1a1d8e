"""Attesters: whatever on this machine can say, signed, what runs here.

In order of preference: a confidential guest's report (configfs-tsm: SEV-SNP, TDX), the machine's TPM, and,
only where it is allowed, a software TPM, whose evidence says that it is not hardware-protected. A site or a
hub finds one at its start and keeps it: an open TPM answers in a millisecond.

Files in FOLDER/endorsements are sent along by name (collateral, certificates a host does not give, a
verifier's statement of activation); what the machine gives itself has precedence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Protocol

from cloister.enclave.attester.measured import Measured, entered, extend_into, standing
from cloister.enclave.attester.swtpm import NOT_PROTECTED, SoftwareTpm
from cloister.enclave.attester.tpm import DEVICE, Tpm
from cloister.enclave.attester.tsm import TsmReports
from cloister.enclave.eventlog.start import StartLog
from cloister.enclave.evidence import Evidence, Kind
from cloister.enclave.kinds.tpmquote import pack
from cloister.errors import CloisterError, InputError, PolicyRefused
from cloister.files import exclusive, read_bytes, write_atomic

__all__ = ["Attester", "TpmAttester", "TsmAttester", "find_attester", "software_attester"]

_FIRMWARE_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
_CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_LARGEST: Final = 4 << 20


class Attester(Protocol):
    """Gives evidence of this machine.

    Attributes:
        kind: of its evidence.
        hardware: whether it believes that hardware stands behind it; a verifier decides for itself.
    """

    @property
    def kind(self) -> Kind:
        """Kind of its evidence."""

    @property
    def hardware(self) -> bool:
        """Whether it believes that hardware stands behind it."""

    def attest(self, report_data: bytes) -> Evidence:
        """Return fresh evidence that carries 64 bytes, or the first 32 of them where there is less room."""

    def close(self) -> None:
        """Let go of what it holds."""


class TsmAttester:
    """A confidential guest. Its launch was measured by its processor; what it runs since then was not."""

    hardware: Final = True

    def __init__(self, reports: TsmReports, kind: Kind, endorsements: dict[str, bytes]) -> None:
        self.kind: Kind = kind
        self._reports = reports
        self._endorsements = endorsements

    def attest(self, report_data: bytes) -> Evidence:
        """Return a report. Raises InputError where the machine gives none."""
        report = self._reports.report(report_data)
        endorsements = {**self._endorsements, **report.certificates}
        log = _optional(_CCEL) if report.kind == "tdx" else None
        return Evidence(report.kind, report.report, endorsements, log)

    def close(self) -> None:
        """Nothing is held."""


class TpmAttester:
    """A TPM.

    Args:
        tpm: stays its owner's, unless `owned`.
        log: of a measured start, or None: then the firmware's log goes along where there is one.
        endorsements: sent along by name.
        owned: closed with this attester: a SoftwareTpm, or the TPM.
    """

    def __init__(
        self,
        tpm: Tpm,
        *,
        log: StartLog | None = None,
        endorsements: dict[str, bytes] | None = None,
        owned: SoftwareTpm | Tpm | None = None,
    ) -> None:
        self.kind: Kind = "tpm"
        software = tpm.software
        self.hardware = not software
        self.tpm = tpm
        self.log = log
        self._owned = owned
        certificate = None if software else tpm.ek_certificate
        self._endorsements = dict(endorsements or {}) | {"ak": tpm.public("ak")}
        if certificate is not None:
            self._endorsements["ek_cert"] = certificate
        if software:
            self._endorsements["software"] = NOT_PROTECTED.encode()

    def attest(self, report_data: bytes) -> Evidence:
        """Return a quote of all registers over the first 32 bytes of `report_data` (64 bytes)."""
        if len(report_data) != 64:
            raise InputError(f"report data has 64 bytes, not {len(report_data)}")
        quoted = self.tpm.quote(report_data[:32])
        log = self.log.to_bytes() if self.log is not None else self._firmware_log()
        packed = pack(quoted.quote, quoted.signature, {"sha256": quoted.pcrs})
        return Evidence("tpm", packed, self._endorsements, log)

    def _firmware_log(self) -> bytes | None:
        return _optional(_FIRMWARE_LOG) if self.hardware else None

    def close(self) -> None:
        """Close what this attester owns."""
        if self._owned is not None:
            self._owned.close()


def find_attester(
    folder: Path,
    *,
    software_allowed: bool,
    measured: tuple[Measured, ...] = (),
    reports: TsmReports | None = None,
    device: Path = DEVICE,
) -> TsmAttester | TpmAttester:
    """Return the best attester of this machine.

    Args:
        folder: of this party: state of its software TPM, log of its measured start, endorsements.
        software_allowed: whether a software TPM will do where there is no hardware. It protects nothing.
        measured: what `measure` returned, for a measured start; not used by confidential guests, whose
            registers a launch measurement fills.
        reports: the way to configfs-tsm.
        device: of the machine's TPM.

    Raises:
        PolicyRefused: there is no hardware, and a software TPM is not allowed.
        InputError: a software TPM is allowed and cannot be started.
        IntegrityError: registers of a measured start were extended by somebody else.
    """
    endorsements = _endorsements(folder / "endorsements")
    reports = reports or TsmReports()
    kind = reports.kind()
    if kind is not None:
        return TsmAttester(reports, kind, endorsements)
    if device.exists():
        tpm = Tpm.device(device)
        try:
            log = _machine_log(folder, tpm, measured) if measured else None
            return TpmAttester(tpm, log=log, endorsements=endorsements, owned=tpm)
        except BaseException:
            tpm.close()
            raise
    if not software_allowed:
        raise PolicyRefused(
            "nothing on this machine can vouch for it: no confidential guest, no TPM",
            fix="Run on such a machine, or allow a software TPM, which is not hardware-protected",
        )
    return software_attester(folder, measured=measured, endorsements=endorsements)


def software_attester(
    folder: Path, *, measured: tuple[Measured, ...] = (), endorsements: dict[str, bytes] | None = None
) -> TpmAttester:
    """Return an attester over a software TPM, its state in FOLDER/software-tpm. NOT HARDWARE-PROTECTED."""
    software = SoftwareTpm(folder / "software-tpm")
    try:
        log = extend_into(software.tpm, measured) if measured else None
        return TpmAttester(software.tpm, log=log, endorsements=endorsements, owned=software)
    except BaseException:
        software.close()
        raise


def _machine_log(folder: Path, tpm: Tpm, measured: tuple[Measured, ...]) -> StartLog:
    """Go on with the log of this start of the machine: its registers outlive a process.

    The log is on the disk before a register is extended; entries that a killed process did not come to extend
    are dropped by `standing`.
    """
    boot = read_bytes(_BOOT, limit=64, what="machine's start").decode().strip()
    path = folder / f"measured-start.{boot}.jsonl"
    with exclusive(folder / "measured-start.lock"):
        log = StartLog.from_bytes(read_bytes(path, limit=_LARGEST)) if path.exists() else StartLog()
        log = standing(log, tpm)
        write_atomic(path, entered(log, measured).to_bytes(), mode=0o600)
        return extend_into(tpm, measured, log)


def _endorsements(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name, without what follows a dot. Raises InputError."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = path.name.split(".")[0]
        if not re.fullmatch(r"[a-z0-9_]{1,64}", name) or name in found or name == "software":
            raise InputError("an endorsement has a name that cannot be", where=str(path), fix="Rename it")
        found[name] = read_bytes(path, limit=_LARGEST, what="endorsement")
    return found


def _optional(path: Path) -> bytes | None:
    """Return a file of the firmware, or None where there is none or it may not be read."""
    try:
        return read_bytes(path, limit=_LARGEST) or None
    except CloisterError:
        return None
