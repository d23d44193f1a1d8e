"""The facts of trusted execution in a report: who showed what evidence, which keys came of it, who was
refused.

Invariant: the report is "hardware" only where every accepted attestation is; one made by software makes it
"not hardware-protected", and the page says so on every sheet.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloister.enclave.claims import Protection
from cloister.report.kinds import Count, Digest

__all__ = ["Attestation", "Enclave"]


_Text = Annotated[str, msgspec.Meta(max_length=1000)]


class Attestation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One piece of evidence that somebody judged.

    Args:
        who: whose it was: a site's worker, or what stood in its place.
        asked_by: who judged it.
        kind: of evidence ("snp", "tdx", "tpm", ...).
        protection: what vouches for it.
        reasons: why it was refused; empty where it was accepted.
        keys: data keys released on it.
        package: what was measured as the package, hexadecimal; null where nothing was.
        changed: what had been changed in it before, in the report's language; empty where nothing was.
    """

    who: str
    asked_by: str
    kind: str
    protection: Protection
    reasons: tuple[_Text, ...] = ()
    keys: Count = 0
    package: Digest | None = None
    changed: str = ""

    @property
    def accepted(self) -> bool:
        """Whether no policy refused it."""
        return not self.reasons


class Enclave(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What trusted execution did in a run.

    Args:
        protection: the weakest of the accepted attestations.
        attestations: in the order they were judged.
        policy: digest of the enclave policy that judged.
        walls: what confines a worker, by name ("seccomp", ...): in force, or why not.
        log_entries: releases and refusals in the brokers' logs.
    """

    protection: Protection
    attestations: tuple[Attestation, ...]
    policy: Digest
    walls: dict[str, str] = {}
    log_entries: Count = 0

    def __post_init__(self) -> None:
        soft = any(each.protection != "hardware" for each in self.attestations if each.accepted)
        if self.protection == "hardware" and (soft or not self.attestations):
            raise ValueError("what software vouches for is not hardware-protected")
        if any(each.reasons and each.keys for each in self.attestations):
            raise ValueError("keys were released to who was refused")
