"""Reports of SEV-SNP and TDX guests through the kernel's configfs-tsm.

Source: Linux, Documentation/ABI/testing/configfs-tsm (6.7). A folder below /sys/kernel/config/tsm/report is
one request: what is written to `inblob` is what `outblob` then reports, in the format that `provider` names;
`auxblob` is the host's certificate table on SNP (GHCB 2.03, section 4.1.8.1); `generation` counts writes.

Steps of a report:
1. make a folder of its own, so that nobody else writes to the same request;
2. write the 64 bytes; read provider, report and table;
3. see by `generation` that nobody wrote in between, whatever step 1 promised;
4. remove the folder, also where a step failed.

The table comes from the host and is not trusted: a verifier checks the certificates in it.
"""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path
from typing import Final, NamedTuple

from cloister.enclave.evidence import Kind
from cloister.errors import InputError, IntegrityError

__all__ = ["TSM_REPORTS", "Configfs", "TsmReport", "TsmReports", "certificates"]

TSM_REPORTS: Final = Path("/sys/kernel/config/tsm/report")
_KINDS: Final[dict[str, Kind]] = {"sev_guest": "snp", "tdx_guest": "tdx"}
_LARGEST: Final = 1 << 20
_ENTRY: Final = 24  # GUID, offset and length of one certificate
_NAMES: Final = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "vcek",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "vlek",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ask",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ark",
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): "crl",
}


class TsmReport(NamedTuple):
    """What the machine reported.

    Attributes:
        kind: "snp" or "tdx".
        report: the signed report or quote.
        certificates: what the host gave along, by name; not trusted.
    """

    kind: Kind
    report: bytes
    certificates: dict[str, bytes]


class Configfs:
    """The four things that are done with a configfs folder; tests put a twin in its place."""

    def make(self, folder: Path) -> None:
        """Make a request."""
        folder.mkdir()

    def write(self, attribute: Path, data: bytes) -> None:
        """Write an attribute, in one write."""
        descriptor = os.open(attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def read(self, attribute: Path) -> bytes:
        """Read an attribute. Raises OSError, also where this machine has no such attribute."""
        with attribute.open("rb") as file:
            return file.read(_LARGEST)

    def remove(self, folder: Path) -> None:
        """Drop a request."""
        folder.rmdir()


class TsmReports:
    """Asks for reports.

    Args:
        root: where the kernel takes requests.
        configfs: how to speak to it.
    """

    def __init__(self, root: Path = TSM_REPORTS, configfs: Configfs | None = None) -> None:
        self.root: Final = root
        self._files = configfs or Configfs()

    def kind(self) -> Kind | None:
        """Return what kind of guest this is, or None where it is none, or may not ask."""
        if not self.root.is_dir():
            return None
        try:
            with _Request(self.root, self._files) as request:
                return _KINDS.get(request.text("provider"))
        except OSError:
            return None

    def report(self, data: bytes) -> TsmReport:
        """Return a fresh report.

        Args:
            data: the 64 bytes it must carry.

        Raises:
            InputError: this machine gives none, or `data` has another length.
            IntegrityError: somebody else wrote to the request.
        """
        if len(data) != 64:
            raise InputError(f"a report carries 64 bytes, not {len(data)}")
        try:
            with _Request(self.root, self._files) as request:  # 1
                return self._asked(request, data)
        except OSError as error:
            raise InputError(
                f"the machine gives no report: {os.strerror(error.errno or 0)}",
                where=str(self.root),
                fix="It takes root, a confidential guest, and Linux 6.7 or newer with configfs mounted",
            ) from None

    @staticmethod
    def _asked(request: _Request, data: bytes) -> TsmReport:
        before = request.number("generation")
        request.write("inblob", data)  # 2
        report = request.read("outblob")
        provider = request.text("provider")
        table = request.optional("auxblob")
        if request.number("generation") != before + 1:  # 3
            raise IntegrityError("somebody else wrote to a request for a report", fix="Ask again")
        if provider not in _KINDS or not report:
            raise InputError(
                "the machine's reports are of a format that is not known here", where=provider[:64]
            )
        kind = _KINDS[provider]
        return TsmReport(kind, report, certificates(table) if kind == "snp" else {})


class _Request:
    """One folder of configfs-tsm."""

    def __init__(self, root: Path, files: Configfs) -> None:
        self._folder = root / f"cloister-{secrets.token_hex(8)}"
        self._files = files

    def __enter__(self) -> _Request:
        self._files.make(self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.remove(self._folder)

    def write(self, name: str, data: bytes) -> None:
        self._files.write(self._folder / name, data)

    def read(self, name: str) -> bytes:
        return self._files.read(self._folder / name)

    def optional(self, name: str) -> bytes:
        try:
            return self.read(name)
        except OSError:
            return b""

    def text(self, name: str) -> str:
        return self.read(name).decode("ascii", errors="replace").strip()

    def number(self, name: str) -> int:
        text = self.text(name)
        if not text.isdigit() or len(text) > 20:
            raise InputError("the kernel's count of writes is no number", where=name)
        return int(text)


def certificates(table: bytes) -> dict[str, bytes]:
    """Return the certificates in a host's table (GHCB 2.03, 4.1.8.1), DER, by the names endorsements have.

    An empty table is what a host gives that has none. Entries that are not known here are left out.

    Raises:
        InputError: an entry points outside the table, the end is missing, or a name comes twice.
    """
    found: dict[str, bytes] = {}
    at = 0
    while table:
        entry = table[at : at + _ENTRY]
        if len(entry) < _ENTRY:
            raise InputError("a certificate table does not end", where=f"byte {at}")
        if not any(entry):
            break
        name = _NAMES.get(uuid.UUID(bytes=entry[:16]))
        begin, length = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if begin + length > len(table) or not length:
            raise InputError("a certificate is not within its table", where=f"byte {at}")
        if name in found:
            raise InputError("a certificate table names a certificate twice", where=name or "")
        if name is not None:
            found[name] = table[begin : begin + length]
        at += _ENTRY
    return found
