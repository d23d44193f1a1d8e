"""The attestation document of an AWS Nitro enclave and the COSE_Sign1 around it, read strictly.

COSE_Sign1 is [protected, unprotected, payload, signature] (RFC 9052, section 4.2), with or without tag 18.
AWS writes the document as a map of indefinite length, under the signature; the frame around it has none.
Unprotected headers would be covered by no signature, so there must be none. Fields and sizes are those of the
CDDL in AWS's attestation_process.md; a field that it does not have is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cloister.enclave.cbor import Value, decode
from cloister.errors import InputError

__all__ = ["Document", "Signed", "parse_document"]

_WHAT: Final = "a Nitro document"
_MAX_BYTES: Final = 64 << 10
_COSE_SIGN1: Final = 18
_ES384: Final[Value] = {1: -35}
_NEEDED: Final = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
_OPTIONAL: Final = frozenset({"public_key", "user_data", "nonce"})
_MAX_CERTIFICATES: Final = 7
_MAX_TIME: Final = 253_402_300_799_999
"""The end of the year 9999 in milliseconds: the last time that can be written."""


@dataclass(frozen=True)
class Signed:
    """What COSE_Sign1 holds: serialised protected header, payload, and r and s of 48 bytes each."""

    protected: bytes
    payload: bytes
    signature: bytes


@dataclass(frozen=True)
class Document:
    """What the hypervisor signed.

    Attributes:
        module_id: of the enclave, with the instance's in it.
        issued_at: when, by the hypervisor's clock.
        pcrs: registers by number, 48 bytes each.
        certificate: of the signing key, DER.
        cabundle: certificates from the root down to the signing key's issuer, DER.
        public_key: what the enclave wants others to encrypt to, or None.
        user_data: what the enclave chose, or None.
        nonce: what somebody asked the enclave to have signed, or None.
    """

    module_id: str
    issued_at: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def debug(self) -> bool | None:
        """Whether the enclave was started in debug mode: zeros in PCR 0; None where there is none."""
        return None if 0 not in self.pcrs else not any(self.pcrs[0])


def parse_document(data: bytes) -> tuple[Signed, Document]:
    """Return the signed parts and the document in them.

    Raises:
        InputError: not COSE_Sign1 under ES384, or not a document as its CDDL has it.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"{_WHAT} has more than {_MAX_BYTES >> 10} KiB")
    match decode(data, _WHAT, tag=_COSE_SIGN1):
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise InputError(f"{_WHAT} is no COSE_Sign1", fix="Cut off what a tool put before it")
    if unprotected or len(signature) != 96 or decode(protected, "its protected header") != _ES384:
        raise InputError(f"{_WHAT} is not signed with ES384 alone")
    return Signed(protected, payload, signature), _document(decode(payload, _WHAT, streamed=True))


def _document(fields: Value) -> Document:
    if not isinstance(fields, dict) or not _NEEDED <= set(fields) <= _NEEDED | _OPTIONAL:
        raise InputError(f"{_WHAT} lacks fields, or has unknown ones")
    module_id, milliseconds = fields["module_id"], fields["timestamp"]
    if not isinstance(module_id, str) or not 1 <= len(module_id) <= 256 or not module_id.isprintable():
        raise InputError(f"{_WHAT} names no module")
    if fields["digest"] != "SHA384":
        raise InputError(f"{_WHAT} has another digest than SHA384")
    if type(milliseconds) is not int or not 0 < milliseconds <= _MAX_TIME:
        raise InputError(f"{_WHAT} has no time")
    bundle = fields["cabundle"]
    if not isinstance(bundle, list) or not 1 <= len(bundle) <= _MAX_CERTIFICATES:
        raise InputError(f"{_WHAT} has no chain of certificates, or a longer one than is read")
    return Document(
        module_id=module_id,
        issued_at=datetime.fromtimestamp(milliseconds // 1000, UTC).replace(
            microsecond=milliseconds % 1000 * 1000
        ),
        pcrs=_registers(fields["pcrs"]),
        certificate=_bytes(fields["certificate"], "certificate", least=1),
        cabundle=tuple(_bytes(each, "cabundle", least=1) for each in bundle),
        public_key=_optional(fields, "public_key"),
        user_data=_optional(fields, "user_data"),
        nonce=_optional(fields, "nonce"),
    )


def _registers(value: Value) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    if not isinstance(value, dict) or not 1 <= len(value) <= 32:
        raise InputError(f"{_WHAT} has no registers, or too many")
    for index, register in value.items():
        if not isinstance(index, int) or not 0 <= index < 32:
            raise InputError(f"{_WHAT} has a register that is none")
        if not isinstance(register, bytes) or len(register) != 48:
            raise InputError(f"{_WHAT} has no 48 bytes in register {index}")
        found[index] = register
    return found


def _optional(fields: Mapping[int | str, Value], name: str) -> bytes | None:
    value = fields.get(name)
    return None if value is None else _bytes(value, name)


def _bytes(value: Value, name: str, *, least: int = 0) -> bytes:
    if not isinstance(value, bytes) or not least <= len(value) <= 1024:
        raise InputError(f"{_WHAT} has no {least} to 1024 bytes in {name}")
    return value
