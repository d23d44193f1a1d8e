"""An attester that is none: a key of a test's own in the place of a machine. Importable, not collected."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cloister.enclave import Claims, Evidence, report_data
from cloister.errors import InputError
from cloister.runtime.attestation import Attesting

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
MAKER = b"a key that this test made up"


class AttesterDouble:
    """Makes "evidence" that an `AppraiserDouble` understands: no machine vouches for anything.

    Args:
        hardware: what it pretends; False is what a software TPM would be.
        machine: says which machine it pretends to be.
        maker: what it "signs" with; another maker's evidence is of an unknown root.
    """

    kind = "snp"

    def __init__(self, *, hardware: bool = True, machine: str = "honest", maker: bytes = MAKER) -> None:
        self.hardware = hardware
        self._machine, self._maker = machine, maker
        self.made: list[Evidence] = []

    def attest(self, report_data: bytes) -> Evidence:
        body = bytes([self.hardware]) + report_data + self._machine.encode()
        evidence = Evidence("snp", hmac.digest(self._maker, body, "sha256") + body)
        self.made.append(evidence)
        return evidence


@dataclass
class AppraiserDouble:
    """Appraises what an `AttesterDouble` made.

    Attributes:
        software: whether what no hardware vouches for is accepted.
        unbound: whether it overlooks report data, as a careless policy would.
        machines: accepted machines; empty for any.
        seen: (evidence, time) of every call.
    """

    software: bool = False
    unbound: bool = False
    machines: Sequence[str] = ()
    seen: list[tuple[Evidence, datetime]] = field(default_factory=list)

    def __call__(self, evidence: Evidence, at: datetime, expected: bytes | None) -> tuple[Claims, list[str]]:
        self.seen.append((evidence, at))
        tag, body = evidence.evidence[:32], evidence.evidence[32:]
        if len(body) < 65:
            raise InputError("this is not a double's evidence")
        hardware, carried, machine = bool(body[0]), body[1:65], body[65:].decode()
        signed = hmac.compare_digest(tag, hmac.digest(MAKER, body, "sha256"))
        fresh = carried == expected
        claims = Claims(
            kind=evidence.kind,
            signature=signed,
            chain=signed,
            debug=False,
            freshness=fresh,
            hardware_rooted=hardware and signed,
            self_reported=False,
            measurements={"measurement": sha256(machine.encode()).hexdigest()},
            reasons={} if fresh else {"freshness": "it carries other report data"},
        )
        reasons = [] if signed else ["signature: nobody known made it"]
        if not hardware and not self.software:
            reasons.append("hardware_rooted: it is not hardware-protected")
        if not fresh and not self.unbound:
            reasons.append("freshness: it carries other report data")
        if self.machines and machine not in self.machines:
            reasons.append("measurements: it is none of the accepted images")
        return claims, reasons


def attesting(
    key: bytes,
    purpose: str,
    *,
    attester: AttesterDouble | None = None,
    appraiser: AppraiserDouble | None = None,
    clock: Callable[[], datetime] = lambda: NOON,
    **changes: Any,
) -> Attesting:
    """Return what a party of a test shows, and how it judges."""
    made = attester or AttesterDouble(**changes)

    def evidence_for(challenge: bytes, session: bytes) -> Evidence:
        return made.attest(report_data(purpose, challenge, key, session=session.hex()))

    return Attesting(key, evidence_for, appraiser or AppraiserDouble(), clock)
