"""What AMD writes into the certificates of report-signing keys (AMD document 57230, VCEK and VLEK).

A VCEK belongs to one chip and one firmware version, a VLEK to one cloud provider and one firmware version.
Both say so in extensions under 1.3.6.1.4.1.3704.1. The chain to AMD's root is checked elsewhere; here the
extensions are read, strictly: each once, DER integers of one byte, no unknown one in AMD's arc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from cloister.errors import InputError

__all__ = ["KeyFacts", "components", "read_facts"]

_ARC: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT: Final = "2"
_HWID: Final = "4"
_CSP: Final = "5"
_VERSIONS: Final[Mapping[str, str]] = {
    "3.1": "bootloader",
    "3.2": "tee",
    "3.3": "snp",
    "3.4": "spl4",
    "3.5": "spl5",
    "3.6": "spl6",
    "3.7": "spl7",
    "3.8": "microcode",
    "3.9": "fmc",
}
_LEGACY: Final = ("bootloader", "tee", "spl4", "spl5", "spl6", "spl7", "snp", "microcode")
_TURIN: Final = ("fmc", "bootloader", "tee", "snp", "spl5", "spl6", "spl7", "microcode")
_FAMILY: Final[Mapping[str, str]] = {
    "Milan": "Milan",
    "Genoa": "Genoa",
    "Bergamo": "Genoa",
    "Siena": "Genoa",
    "Turin": "Turin",
}


@dataclass(frozen=True)
class KeyFacts:
    """What a certificate says of its key.

    Attributes:
        role: "vcek" or "vlek".
        product: "Milan", "Genoa" or "Turin".
        tcb: the firmware it is for, 8 bytes as a report of that product has them.
        hwid: the chip it is for: 64 bytes, 8 on Turin; None for a VLEK.
        csp: the cloud provider it is for; None for a VCEK.
    """

    role: str
    product: str
    tcb: bytes
    hwid: bytes | None
    csp: str | None


def components(tcb: bytes, product: str) -> dict[str, int]:
    """Return the firmware versions in 8 bytes by component, those that are reserved left out."""
    names = _TURIN if product == "Turin" else _LEGACY
    return {name: value for name, value in zip(names, tcb, strict=True) if not name.startswith("spl")}


def read_facts(certificate: x509.Certificate) -> KeyFacts:
    """Return what a VCEK's or VLEK's certificate says.

    Raises:
        InputError: it is neither, or lacks an extension, or has one that cannot be read.
    """
    found = _extensions(certificate)
    try:
        name = _ia5(found.pop(_PRODUCT))
        product = _FAMILY[name.partition("-")[0]]
        hwid = found.pop(_HWID, None)
        csp = found.pop(_CSP, None)
        found.pop("1")  # version of this structure; it changes nothing that is read
        versions = {_VERSIONS[arc]: _byte(value) for arc, value in found.items()}
        tcb = bytes(versions.pop(part) for part in (_TURIN if product == "Turin" else _LEGACY))
    except KeyError:
        raise InputError("a certificate lacks AMD's extensions, or has unknown ones", where="vcek") from None
    if any(versions.values()) or (hwid is None) == (csp is None):
        raise InputError("a certificate has AMD's extensions of another product or role", where="vcek")
    if hwid is None:
        return KeyFacts("vlek", product, tcb, None, None if csp is None else _ia5(csp))
    return KeyFacts("vcek", product, tcb, _chip(hwid, 8 if product == "Turin" else 64), None)


def _extensions(certificate: x509.Certificate) -> dict[str, bytes]:
    """Return AMD's extensions by what follows its arc."""
    return {
        extension.oid.dotted_string.removeprefix(_ARC): extension.value.value
        for extension in certificate.extensions
        if extension.oid.dotted_string.startswith(_ARC)
        and isinstance(extension.value, x509.UnrecognizedExtension)
    }


def _chip(value: bytes, size: int) -> bytes:
    """Return a chip's identifier of `size` bytes: bare, as AMD writes it, or as the DER it should be."""
    bare = value.removeprefix(bytes((0x04, size))) if len(value) == size + 2 else value
    if len(bare) != size:
        raise InputError(f"a VCEK names its chip in {len(value)} bytes, not {size}", where="vcek")
    return bare


def _byte(der: bytes) -> int:
    """Return a DER INTEGER from 0 to 255."""
    if len(der) >= 3 and der[0] == 0x02 and der[1] == len(der) - 2 <= 2:
        value = int.from_bytes(der[2:], "big", signed=True)
        if 0 <= value <= 255 and (len(der) == 3 or value >= 128):
            return value
    raise InputError("a certificate has a firmware version that is no small integer", where="vcek")


def _ia5(der: bytes) -> str:
    """Return a DER IA5String of at most 64 printable characters."""
    if len(der) >= 2 and der[0] == 0x16 and der[1] == len(der) - 2 <= 64:
        text = der[2:].decode("ascii", "replace")
        if text.isascii() and text.isprintable():
            return text
    raise InputError("a certificate has a name that is no short ASCII string", where="vcek")
