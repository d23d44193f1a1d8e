"""The report of Azure's paravisor (HCL): a hardware report, and the runtime data that it commits to.

Layout, little-endian: header of 32 bytes | hardware report of 1184 (SNP) or 1024 bytes and zeros (TDX) | 20
bytes about the runtime data | runtime data, JSON | zeros. Source: Microsoft, "Azure confidential VMs guest
attestation", attestation report format; Intel TDX Module Base Architecture Specification, TDREPORT_STRUCT.

The paravisor runs in the protected machine, beside the guest, and holds its virtual TPM. Its runtime data
names that TPM's attestation key; hardware signs the digest. A TDX report is bound to one processor, so that
its quote travels beside it and must be of the same report: `differs_from_quote`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from cloister.crypto import constant_time_equal
from cloister.enclave.kinds.binding import Cursor
from cloister.enclave.kinds.tpmwire import PublicKey, rsa_key
from cloister.enclave.kinds.urlsafe import from_base64url
from cloister.errors import InputError

__all__ = ["TDREPORT_UNAUTHENTICATED", "HclReport", "RuntimeData", "differs_from_quote", "parse_hcl"]

_HARDWARE: Final = 1184
_TDREPORT: Final = 1024
_VARIABLE: Final = 32 + _HARDWARE
_TYPES: Final = {2: "snp", 4: "tdx"}
_SHA256: Final = 1
_MAX_RUNTIME: Final = 32 << 10
TDREPORT_UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = (
    (32 + 16, 32 + 32, "CPUSVN of the TD report: only its processor could check it"),
    (32 + 224, 32 + 256, "MAC of the TD report: only its processor could check it"),
)
"""Ranges of an HCL report of a TDX machine that nothing covers; no claim rests on them."""


class _Key(msgspec.Struct, frozen=True):
    kid: str
    kty: str
    key_ops: tuple[str, ...]
    e: str
    n: str


class RuntimeData(msgspec.Struct, frozen=True, rename="kebab"):
    """What the paravisor states; hardware signs its digest, so that fields that are not known are let by.

    Attributes:
        keys: JSON web keys of the virtual TPM.
        vm_configuration: settings of the machine.
        user_data: 64 bytes, hexadecimal, that the guest chose.
    """

    keys: Annotated[tuple[_Key, ...], msgspec.Meta(max_length=16)]
    vm_configuration: dict[str, bool | int | str | None] = {}
    user_data: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Fa-f]{128}\Z")] = "0" * 128

    def attestation_key(self) -> PublicKey:
        """Return the vTPM's attestation key. Raises InputError: there is not exactly one, RSA, that signs."""
        keys = [key for key in self.keys if key.kid == "HCLAkPub"]
        if len(keys) != 1 or keys[0].kty != "RSA" or keys[0].e != "AQAB" or keys[0].key_ops != ("sign",):
            raise InputError("runtime data does not name one attestation key", where="HCLAkPub")
        return rsa_key(from_base64url(keys[0].n, "HCLAkPub"))

    def properties(self) -> Mapping[str, str]:
        """Return what is stated about the machine, as texts by name."""
        stated = {f"vm_{_plain(name)}": _text(value) for name, value in self.vm_configuration.items()}
        return {**stated, "user_data": self.user_data.lower()}


class HclReport(NamedTuple):
    """A parsed report.

    Attributes:
        kind: what signed it.
        hardware: the SNP report, 1184 bytes, or the TD report, 1024 bytes.
        raw_runtime: the bytes that hardware commits to.
        runtime: what they say.
    """

    kind: Literal["snp", "tdx"]
    hardware: bytes
    raw_runtime: bytes
    runtime: RuntimeData


def parse_hcl(data: bytes) -> HclReport:
    """Return the parts of an HCL report. Raises InputError: malformed, or neither SNP nor TDX."""
    cursor = Cursor(data, "an HCL report")
    magic, version, size = cursor.take(4), cursor.little(4), cursor.little(4)
    request, status, reserved = cursor.little(4), cursor.little(4), cursor.take(12)
    if magic != b"HCLA" or version not in (1, 2) or request != 2 or status or any(reserved):
        raise InputError("this is not an HCL report of a known version")
    hardware = cursor.take(_HARDWARE)
    total, version, kind = cursor.little(4), cursor.little(4), _TYPES.get(cursor.little(4))
    algorithm, length = cursor.little(4), cursor.little(4)
    if version != 1 or algorithm != _SHA256 or kind is None or length > _MAX_RUNTIME:
        raise InputError("an HCL report's runtime data is of an unknown kind")
    if total != length + 20 or size != _VARIABLE + total:
        raise InputError("an HCL report's lengths contradict each other")
    raw = cursor.take(length)
    if any(cursor.rest()) or (kind == "tdx" and any(hardware[_TDREPORT:])):
        raise InputError("an HCL report has something where zeros must be")
    try:
        runtime = msgspec.json.decode(raw, type=RuntimeData)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"an HCL report's runtime data is malformed: {error}") from None
    if kind == "tdx":
        return HclReport("tdx", hardware[:_TDREPORT], raw, runtime)
    return HclReport("snp", hardware, raw, runtime)


def differs_from_quote(report: bytes, fields: Mapping[str, bytes]) -> str:
    """Return what a TD report says otherwise than the quote's body; empty where they agree.

    Args:
        report: TDREPORT_STRUCT, 1024 bytes.
        fields: of the quote, by name, as `intelquote.Quote.fields`.
    """
    module, domain = report[256:495], report[512:1024]
    body = b"".join(fields[name] for name in ("td_attributes", "xfam", "mrtd", "mrconfigid", "mrowner"))
    body += b"".join(fields[name] for name in ("mrownerconfig", "rtmr0", "rtmr1", "rtmr2", "rtmr3"))
    seam = b"".join(fields[name] for name in ("tee_tcb_svn", "mrseam", "mrsignerseam", "seam_attributes"))
    if report[:4] != b"\x81\0\0\0" or any(report[4:16] + report[192:224] + report[495:512]):
        return "a TD report has a field out of range"
    if report[32:80] != hashlib.sha384(module).digest() or report[80:128] != hashlib.sha384(domain).digest():
        return "a TD report's digests are not those of its parts"
    if not constant_time_equal(report[128:192], fields["report_data"]):
        return "the TD report and the quote commit to different runtime data"
    if domain[: len(body)] != body or module[8 : 8 + len(seam)] != seam:
        return "the TD report and the quote are of different machines"
    return ""


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)[:64]


def _text(value: bool | int | str | None) -> str:
    return value[:256] if isinstance(value, str) else msgspec.json.encode(value).decode()
