"""What an SEV-SNP report states, under the names that claims have."""

from __future__ import annotations

from datetime import datetime

from cloister.enclave.kinds.snpreport import Report
from cloister.enclave.kinds.vcek import KeyFacts, components

__all__ = ["measurements", "product_of", "properties", "signers", "versions"]

_MEASUREMENTS = (
    "measurement",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "report_data",
    "family_id",
    "image_id",
)


def measurements(report: Report) -> dict[str, str]:
    """Return the measurement, and what owner, host and guest put beside it, hexadecimal."""
    return {name: getattr(report, name).hex() for name in _MEASUREMENTS}


def product_of(cpuid: tuple[int, int, int]) -> str | None:
    """Return the product of a processor's family and model; Bergamo and Siena count as Genoa."""
    match cpuid:
        case (0x19, model, _) if model <= 0x0F:
            return "Milan"
        case (0x19, model, _) if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return "Genoa"
        case (0x1A, model, _) if model <= 0x11:
            return "Turin"
    return None


def signers(report: Report) -> dict[str, str]:
    """Return the digests of the keys that signed the guest's identity block, where there was one."""
    found = {}
    if any(report.id_key_digest):
        found["id_key_digest"] = report.id_key_digest.hex()
    if report.author_key:
        found["author_key_digest"] = report.author_key_digest.hex()
    return found


def versions(report: Report, facts: KeyFacts | None) -> dict[str, int]:
    """Return reported versions by component, and the other three sets with a prefix."""
    product = facts.product if facts else product_of(report.cpuid) if report.cpuid else None
    if product is None:
        return {}
    others = {
        f"{prefix}_{name}": value
        for prefix in ("current", "committed", "launch")
        for name, value in components(getattr(report, f"{prefix}_tcb"), product).items()
    }
    return components(report.reported_tcb, product) | others


def properties(report: Report, facts: KeyFacts | None, issued: datetime | None) -> dict[str, str]:
    """Return the other signed facts; `issued` is when the revocation list was, where there is one."""
    found = {
        "report_version": str(report.version),
        "policy": f"{report.policy:#x}",
        "migration_agent": "allowed" if report.migratable else "refused",
        "platform_info": f"{report.platform_info:#x}",
        "vmpl": "host" if report.host_requested else str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "report_id": report.report_id.hex(),
        "signing_key": report.signer,
        "firmware": report.current_version,
        "firmware_committed": report.committed_version,
    }
    if facts is not None:
        found["product"] = facts.product
    if facts is not None and facts.csp is not None:
        found["cloud_provider"] = facts.csp
    if report.mitigations is not None:
        found["launch_mitigations"], found["current_mitigations"] = (f"{v:#x}" for v in report.mitigations)
    if issued is not None:
        found["collateral_issued"] = issued.isoformat()
    return found
