"""Intel's PCK certificate: the platform that its SGX extension names.

Source: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification, rev 1.4, 1.3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from cloister.enclave.kinds.binding import Cursor
from cloister.errors import InputError

__all__ = ["Platform", "platform_of"]

_SGX: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_SEQUENCE: Final = 0x30
_OID: Final = 0x06
_OCTETS: Final = 0x04
_INTEGER: Final = 0x02
_NAMES: Final = {
    bytes.fromhex("2a864886f84d010d01") + bytes([number]): name
    for number, name in ((1, "ppid"), (2, "tcb"), (3, "pceid"), (4, "fmspc"))
}
_PCE_SVN: Final = bytes.fromhex("2a864886f84d010d010211")
_CPU_SVN: Final = bytes.fromhex("2a864886f84d010d010212")


@dataclass(frozen=True, slots=True)
class Platform:
    """What a PCK certificate says of the processor it was issued for.

    Attributes:
        ppid: identifies the processor, 16 bytes.
        fmspc: its family, model, stepping and kind, 6 bytes: collateral is published by it.
        pceid: identifies the provisioning enclave, 2 bytes.
        cpu_svn: security versions of microcode and firmware that the certificate was issued for, 16 bytes.
        pce_svn: the same for the provisioning enclave.
    """

    ppid: bytes
    fmspc: bytes
    pceid: bytes
    cpu_svn: bytes
    pce_svn: int


def platform_of(certificate: x509.Certificate) -> Platform:
    """Return the platform that a PCK certificate names.

    Raises:
        InputError: it has no SGX extension, or one that is malformed.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(_SGX).value
    except x509.ExtensionNotFound:
        raise InputError("the certificate of the quote's platform has no SGX extension") from None
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise InputError("the SGX extension of the quote's certificate cannot be read")
    found = {_NAMES[oid]: value for oid, value in _pairs(_whole(extension.value, _SEQUENCE)) if oid in _NAMES}
    if len(found) != len(_NAMES):
        raise InputError("the SGX extension of the quote's certificate lacks a field")
    tcb = dict(_pairs(found["tcb"]))
    sizes = {"ppid": 16, "pceid": 2, "fmspc": 6}
    if any(len(found[name]) != size for name, size in sizes.items()) or len(tcb.get(_CPU_SVN, b"")) != 16:
        raise InputError("a field of the SGX extension of the quote's certificate has another size")
    return Platform(
        ppid=found["ppid"],
        fmspc=found["fmspc"],
        pceid=found["pceid"],
        cpu_svn=tcb[_CPU_SVN],
        pce_svn=int.from_bytes(tcb.get(_PCE_SVN, b""), "big"),
    )


def _pairs(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (object identifier, content of its value) from a sequence of such pairs in DER."""
    cursor = Cursor(data, "the SGX extension")
    while cursor.at < len(data):
        pair = Cursor(_element(cursor, (_SEQUENCE,)), "the SGX extension")
        oid = _element(pair, (_OID,))
        yield oid, _element(pair, (_SEQUENCE, _OCTETS, _INTEGER, 0x0A, 0x01))
        pair.end()


def _whole(data: bytes, tag: int) -> bytes:
    cursor = Cursor(data, "the SGX extension")
    content = _element(cursor, (tag,))
    cursor.end()
    return content


def _element(cursor: Cursor, tags: tuple[int, ...]) -> bytes:
    """Return the content of the next DER element, which must have one of some tags."""
    tag, size = cursor.little(1), cursor.little(1)
    if tag not in tags or size == 0x80 or size > 0x82:
        raise InputError("the SGX extension of the quote's certificate is malformed")
    if size > 0x80:
        size = int.from_bytes(cursor.take(size & 0x7F), "big")
    return cursor.take(size)
