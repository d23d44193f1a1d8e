"""What an appraisal found out: named claims, each true, false, or null where it was not checked.

Null never counts as true. A verifier of one kind of evidence fills in what its checks showed and says why in
`reasons`; whether that is acceptable is the enclave policy's business, not the verifier's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from cloister.enclave.evidence import Kind

__all__ = ["NOT_PROTECTED", "VERDICTS", "Claims", "Protection", "protection_by"]

Protection = Literal["hardware", "not hardware-protected"]
"""What vouches for something: the one wording of tokens, logs, records and reports."""

NOT_PROTECTED: Final[Literal["not hardware-protected"]] = "not hardware-protected"

VERDICTS: Final = (
    "signature",
    "chain",
    "revocation_checked",
    "collateral_fresh",
    "tcb_consistent",
    "debug",
    "freshness",
    "bindings",
    "event_log",
    "measurement_match",
    "hardware_rooted",
    "self_reported",
)
"""The claims that are true, false or null, in the order in which they are shown."""


def protection_by(hardware: bool) -> Protection:
    """Return what vouches for something, in words."""
    return "hardware" if hardware else NOT_PROTECTED


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The result of appraising one piece of evidence.

    Attributes:
        kind: of the evidence.
        signature: whether the report's signature verifies under the key its chain ends in.
        chain: whether that key's certificates lead, in order and at the time of appraisal, to a root that is
            pinned in this package.
        revocation_checked: whether revocation lists, themselves fresh and signed, name none of the
            certificates; null where no list was given.
        collateral_fresh: whether collateral was in force at the time of appraisal; null without collateral.
        tcb_status: the maker's word on firmware and microcode, such as "UpToDate" or "OutOfDate"; null where
            the maker publishes none that was given.
        tcb_consistent: whether the versions in the report are those its certificate was issued for.
        advisories: identifiers of security advisories that apply; null where nobody was asked.
        debug: whether the machine's owner may look inside. True is bad.
        freshness: whether the evidence carries what the verifier asked for: its nonce, bound to purpose and
            key.
        bindings: whether all parts of the evidence commit to each other: runtime data, quotes, devices.
        event_log: whether the event log replays to the registers that were signed.
        measurement_match: whether the measurements are among the reference values.
        hardware_rooted: whether the chain starts in hardware that its maker vouches for.
        self_reported: whether what was measured was measured by the software that is being judged.
        measurements: signed values by name, hexadecimal.
        signers: who signed the measured image, by name, hexadecimal.
        tcb: versions by component.
        platform: identifier of the machine, hexadecimal, where the evidence has one.
        properties: other facts the signature covers, such as firmware versions, by name.
        issued_at: when the evidence says it was made, RFC 3339 in UTC; null where it does not say.
        reasons: why a claim is false or null, by claim.
        devices: the same for every attached device.
    """

    kind: Kind
    signature: bool | None = None
    chain: bool | None = None
    revocation_checked: bool | None = None
    collateral_fresh: bool | None = None
    tcb_status: str | None = None
    tcb_consistent: bool | None = None
    advisories: tuple[str, ...] | None = None
    debug: bool | None = None
    freshness: bool | None = None
    bindings: bool | None = None
    event_log: bool | None = None
    measurement_match: bool | None = None
    hardware_rooted: bool | None = None
    self_reported: bool | None = None
    measurements: Mapping[str, str] = {}
    signers: Mapping[str, str] = {}
    tcb: Mapping[str, int] = {}
    platform: str | None = None
    properties: Mapping[str, str] = {}
    issued_at: str | None = None
    reasons: Mapping[str, str] = {}
    devices: tuple[Claims, ...] = ()

    @property
    def software_only(self) -> bool:
        """Whether nothing but software vouches for this: it must be shown as not hardware-protected."""
        return self.hardware_rooted is not True

    @property
    def protection(self) -> Protection:
        """What vouches for this, in words."""
        return protection_by(not self.software_only)
