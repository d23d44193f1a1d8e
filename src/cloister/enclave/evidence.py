"""Evidence: what a machine says about itself, as it travels to whoever appraises it (RFC 9334).

One JSON document. What is in it is claimed and not checked; `appraise` checks it. Everything that is needed
to do so offline travels with it: certificates and collateral in `endorsements`, logs that replay to the
measured registers in `event_log`, what report data commits to in `runtime_data`.

`report_data` binds evidence to a purpose, to the verifier's nonce and to a key: the 64 bytes that SNP, TDX
and SGX reports carry are SHA-512 of the canonical form; kinds with room for fewer bytes carry its first 32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal, get_args

import msgspec

from cloister.crypto import canonical_bytes
from cloister.errors import InputError

__all__ = ["MAX_EVIDENCE", "Evidence", "Kind", "report_data"]

Kind = Literal[
    "snp", "tdx", "sgx", "tpm", "azure-snp-vtpm", "azure-tdx-vtpm", "nitro", "nvidia-gpu", "nvidia-switch"
]
"""What produced a piece of evidence."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_EVIDENCE: Final = 8 << 20
"""Bytes of a document, all of its parts included."""
_MAX_PART: Final = 4 << 20
_MAX_DEVICES: Final = 64

_Part = Annotated[bytes, msgspec.Meta(max_length=_MAX_PART)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+\Z")]


class Evidence(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/evidence/v1", tag_field="type"
):
    """One machine's or one device's evidence.

    Attributes:
        kind: what produced it.
        evidence: the signed report, quote or document itself, as its maker defines it.
        endorsements: certificates and collateral by name; which names a kind knows, its module says. An
            unknown name is refused there.
        event_log: what replays to measured registers, as the kind defines it.
        runtime_data: what the report's data field commits to, where that is not `report_data` itself.
        devices: evidence of devices attached to the machine, such as GPUs; devices have none themselves.
    """

    kind: Kind
    evidence: _Part
    endorsements: Annotated[dict[_Name, _Part], msgspec.Meta(max_length=32)] = {}
    event_log: _Part | None = None
    runtime_data: _Part | None = None
    devices: Annotated[tuple[Evidence, ...], msgspec.Meta(max_length=_MAX_DEVICES)] = ()

    def __post_init__(self) -> None:
        if any(device.devices for device in self.devices):
            raise InputError("a device's evidence holds devices of its own", where=self.kind)

    def __repr__(self) -> str:
        return f"<Evidence {self.kind}, {len(self.evidence)} bytes>"

    def to_json(self) -> bytes:
        """Return the document; bytes are base64."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical document, 32 bytes: what grants and tokens name."""
        return hashlib.sha256(canonical_bytes(msgspec.to_builtins(self))).digest()

    @classmethod
    def from_json(cls, data: bytes) -> Evidence:
        """Return the evidence in a document.

        Raises:
            InputError: too large, or not strictly one document.
        """
        if len(data) > MAX_EVIDENCE:
            raise InputError(f"evidence has more than {MAX_EVIDENCE >> 20} MiB", fix="Ask for it again")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"this is not evidence: {error}", fix="Give what `attest` wrote") from None


def report_data(purpose: str, nonce: bytes, key_digest: bytes, **bound: str) -> bytes:
    """Return the 64 bytes that evidence must carry.

    Args:
        purpose: what the evidence is for, such as "cloister/key-release/v1".
        nonce: the verifier's own fresh bytes, 16 to 64; empty only where no verifier asks.
        key_digest: SHA-256 of the public key that is vouched for, 32 bytes.
        bound: what else is committed to, by name.

    Raises:
        InputError: a length is wrong.
    """
    if nonce and not 16 <= len(nonce) <= 64:
        raise InputError(f"a nonce has 16 to 64 bytes, not {len(nonce)}")
    if len(key_digest) != 32:
        raise InputError(f"a key digest has 32 bytes, not {len(key_digest)}")
    stated: Mapping[str, str] = {"purpose": purpose, "nonce": nonce.hex(), "key": key_digest.hex()}
    if stated.keys() & bound.keys():
        raise InputError("what report data is bound to has a name that is taken", where="key")
    stated = {**stated, **bound}
    return hashlib.sha512(canonical_bytes(stated)).digest()
