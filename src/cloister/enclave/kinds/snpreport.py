"""The attestation report of an AMD SEV-SNP guest, versions 2 to 5 (AMD document 56860, ATTESTATION_REPORT).

Fixed offsets, little-endian, 1184 bytes; the last 512 are the signature, an ECDSA P-384 pair in 72 each.
Every reserved byte and bit must be zero as the document says, so each byte here is either signed or refused.
Nothing is checked against anything: that is `snp`'s.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from cloister.errors import InputError

__all__ = ["HOST_REQUEST", "REPORT_BYTES", "Report", "parse_report"]

REPORT_BYTES: Final = 1184
HOST_REQUEST: Final = 0xFFFFFFFF
"""VMPL of a report that the host asked for, and not the guest: its report data is nobody's."""
_SIGNED: Final = 0x2A0
_VERSIONS: Final = range(2, 6)
_ECDSA_P384_SHA384: Final = 1
_SIGNERS: Final = {0: "vcek", 1: "vlek", 7: "none"}
_POLICY_ONE: Final = 1 << 17
_POLICY_KNOWN: Final = (1 << 26) - 1


@dataclass(frozen=True)
class Report:
    """What a report says. Digests and identifiers are bytes as they stand in it, TCB versions 8 bytes.

    Attributes:
        version: of the format.
        guest_svn: the guest's own security version.
        policy: the guest's policy, 64 bits.
        family_id: 16 bytes its owner chose.
        image_id: 16 bytes its owner chose.
        vmpl: privilege level it was asked for from, or `HOST_REQUEST`.
        platform_info: 64 bits about the machine.
        signer: "vcek", "vlek" or "none".
        author_key: whether the author key digest counts.
        chip_key_masked: whether firmware was told not to sign.
        report_data: 64 bytes the guest chose.
        measurement: of the guest's initial memory, 48 bytes.
        host_data: 32 bytes the host chose at launch.
        id_key_digest: SHA-384 of the key that signed the guest's identity block, or zeros.
        author_key_digest: SHA-384 of the key that certified that key, or zeros.
        report_id: 32 bytes of this guest's instance.
        cpuid: family, model and stepping, from version 3.
        chip_id: 64 bytes, zeros where the machine's owner masks it.
        current_tcb: firmware that runs.
        reported_tcb: firmware whose key signs; its host may state an older one than runs.
        committed_tcb: firmware that cannot be rolled back any more.
        launch_tcb: firmware at the guest's start.
        current_version: of the firmware's interface, such as "1.52.4".
        committed_version: the same for what is committed.
        mitigations: vectors at launch and now, from version 5.
        signed: the bytes under the signature.
        signature: the pair (r, s).
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform_info: int
    signer: str
    author_key: bool
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    current_version: str
    committed_version: str
    mitigations: tuple[int, int] | None
    signed: bytes
    signature: tuple[int, int]

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the guest's memory (policy bit 19)."""
        return bool(self.policy >> 19 & 1)

    @property
    def migratable(self) -> bool:
        """Whether a migration agent may move the guest (policy bit 18)."""
        return bool(self.policy >> 18 & 1)

    @property
    def host_requested(self) -> bool:
        """Whether the host asked for the report."""
        return self.vmpl == HOST_REQUEST


def parse_report(data: bytes) -> Report:
    """Return what a report says.

    Args:
        data: 1184 bytes.

    Raises:
        InputError: another length or version, an unknown signature, or reserved bytes that are not zero.
    """
    if len(data) != REPORT_BYTES:
        raise InputError(f"an SNP report has {REPORT_BYTES} bytes, not {len(data)}", fix="Ask for it again")
    version, guest_svn, policy = struct.unpack_from("<IIQ", data, 0)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    platform_info, key_info = struct.unpack_from("<QI", data, 0x40)
    if version not in _VERSIONS:
        raise InputError(f"an SNP report of version {version} is not known here")
    if algorithm != _ECDSA_P384_SHA384:
        raise InputError(f"an SNP report names the unknown signature algorithm {algorithm}")
    if not policy & _POLICY_ONE or policy & ~_POLICY_KNOWN:
        raise InputError("an SNP report has reserved bits set, or not set, in its policy")
    if vmpl > 3 and vmpl != HOST_REQUEST:
        raise InputError(f"an SNP report names the unknown privilege level {vmpl}")
    if key_info >> 5 or key_info >> 2 & 7 not in _SIGNERS:
        raise InputError("an SNP report has an unknown kind of signing key")
    _zeros(data, version)
    return Report(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=vmpl,
        platform_info=platform_info,
        signer=_SIGNERS[key_info >> 2 & 7],
        author_key=bool(key_info & 1),
        chip_key_masked=bool(key_info >> 1 & 1),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if version >= 3 else None,
        chip_id=data[0x1A0:0x1E0],
        current_tcb=data[0x38:0x40],
        reported_tcb=data[0x180:0x188],
        committed_tcb=data[0x1E0:0x1E8],
        launch_tcb=data[0x1F0:0x1F8],
        current_version=f"{data[0x1EA]}.{data[0x1E9]}.{data[0x1E8]}",
        committed_version=f"{data[0x1EE]}.{data[0x1ED]}.{data[0x1EC]}",
        mitigations=struct.unpack_from("<QQ", data, 0x1F8) if version >= 5 else None,
        signed=data[:_SIGNED],
        signature=(
            int.from_bytes(data[_SIGNED : _SIGNED + 72], "little"),
            int.from_bytes(data[_SIGNED + 72 : _SIGNED + 144], "little"),
        ),
    )


def _zeros(data: bytes, version: int) -> None:
    """Raise InputError where a reserved byte of this version is not zero."""
    reserved = (
        (0x4C, 0x50),
        (0x18B if version >= 3 else 0x188, 0x1A0),
        (0x1EB, 0x1EC),
        (0x1EF, 0x1F0),
        (0x208 if version >= 5 else 0x1F8, _SIGNED),
        (_SIGNED + 48, _SIGNED + 72),  # r and s of P-384 have 48 bytes
        (_SIGNED + 120, REPORT_BYTES),
    )
    for start, end in reserved:
        if any(data[start:end]):
            raise InputError(f"an SNP report has reserved bytes that are not zero from offset {start:#x}")
