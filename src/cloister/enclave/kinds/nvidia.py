"""NVIDIA Hopper GPUs and NVSwitches: from a device's SPDM report to claims.

Evidence is the report as the driver hands it out. Endorsements: `chain`, the device's certificates in PEM,
leaf first and root last; `driver_rim` and `vbios_rim`, signed reference manifests (`rim`). In this order:

1. the report is well formed (`spdm`), its certificates are in canonical PEM;
2. chain: the device's leaf to the pinned root of NVIDIA, at the time of appraisal;
3. signature: the leaf's key signed request and response;
4. freshness: the request's nonce is what the verifier asked for;
5. bindings: the firmware id in the report, where it names one, is that of the leaf's extension;
6. measurement_match: against the manifests of these versions, if all that are needed are there and hold.

Certificates of devices do not expire; NVIDIA answers about revocation online only, so that revocation_checked
is null. Whether developer tools may look inside is no part of the report: debug is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, Kind
from cloister.enclave.kinds.binding import carries, ecdsa, load_canonical
from cloister.enclave.kinds.rim import Rim, compare, verify_rim
from cloister.enclave.kinds.spdm import FIRMWARE_ID, NVDEC, Report, parse_report
from cloister.enclave.roots import NVIDIA_DEVICE
from cloister.enclave.x509 import check_chain
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "verify"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""No byte of a report or its chain can change unnoticed."""

_NAMES: Final = frozenset({"chain", "driver_rim", "vbios_rim"})
_PRODUCTS: Final[Mapping[str, tuple[Kind, str]]] = {
    "GH100": ("nvidia-gpu", "GH100"),
    "LS_10": ("nvidia-switch", "LS10"),
}
"""By how the leaf's name begins: what it is, and what manifests call it."""
_MANIFESTS: Final[Mapping[str, Mapping[str, str]]] = {
    "nvidia-gpu": {"driver_rim": "driver_version", "vbios_rim": "vbios_version"},
    "nvidia-switch": {"vbios_rim": "vbios_version"},
}
"""Which manifests a device needs, and the property that must be the manifest's version."""
_FWID: Final = frozenset({"2.23.133.5.4.1", "2.23.133.5.4.1.1"})
_SHA384_DIGEST: Final = bytes.fromhex("060960864801650304020204" + "30")
_NVDEC_OFF: Final = b"\x55"
_NVDEC_INDEX: Final = 35
"""What is measured there counts only where the decoder is on (nvtrust, verifier.py)."""


def verify(evidence: Evidence, *, at: datetime, expected: bytes | None) -> Claims:
    """Return what a GPU's or NVSwitch's evidence shows.

    Args:
        evidence: a report, its chain, and manifests where there are some.
        at: the time of appraisal.
        expected: the nonce; its first 32 bytes are compared.

    Raises:
        InputError: malformed, of another kind than it says, without a chain, or with unknown parts.
    """
    given = evidence.endorsements
    if unknown := given.keys() - _NAMES:
        raise InputError(f"unknown endorsements: {', '.join(sorted(unknown))}", where=evidence.kind)
    if "chain" not in given or evidence.event_log is not None or evidence.runtime_data is not None:
        raise InputError("a device's evidence is a report and its `chain`, without logs", where=evidence.kind)
    report = parse_report(evidence.evidence)  # 1
    chain = load_canonical(given["chain"], "chain")
    kind, product = _product(chain[0])
    if kind != evidence.kind:
        raise InputError(f"this is evidence of {kind}, not of {evidence.kind}")
    properties = {**report.properties(), "product": product}
    trusted, why = check_chain(chain[0], chain[1:], pins=NVIDIA_DEVICE, at=at)  # 2
    signed = ecdsa(chain[0].public_key(), report.signature, report.signed, size=48)  # 3
    fresh = carries(report.nonce, expected)  # 4
    bound = _bound(report, chain[0])  # 5
    match, matching = _matches(kind, report, properties, given, at)  # 6
    return Claims(
        kind=kind,
        signature=signed,
        chain=trusted,
        freshness=fresh,
        bindings=bound,
        measurement_match=match if signed and trusted else None,
        hardware_rooted=trusted and signed,
        self_reported=False,
        platform=_serial(chain),
        properties=properties,
        reasons={
            claim: reason
            for claim, reason in (
                ("chain", why),
                ("signature", "" if signed else "the report is not signed by the device's certificate"),
                ("hardware_rooted", "" if trusted and signed else "signature or chain does not hold"),
                ("freshness", {True: "", None: "nobody asked"}.get(fresh, "the nonce is another one")),
                ("bindings", _BINDING[bound]),
                ("measurement_match", matching if signed and trusted else "the report does not hold"),
                ("revocation_checked", "NVIDIA answers about revocation online only"),
                ("debug", "the report does not say"),
            )
            if reason
        },
    )


_BINDING: Final = {
    True: "",
    False: "the firmware in the report is not the one in the device's certificate",
    None: "the report names no firmware id",
}


def _product(leaf: x509.Certificate) -> tuple[Kind, str]:
    names = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    name = str(names[0].value) if len(names) == 1 else ""
    found = _PRODUCTS.get(name[:5])
    if found is None:
        raise InputError("the certificate is not of a device that is known", where="chain")
    return found


def _serial(chain: Sequence[x509.Certificate]) -> str | None:
    """Return the device's identifier, from the certificate of its boot code; the leaf's is its firmware's."""
    if len(chain) < 2:
        return None
    found = chain[1].subject.get_attributes_for_oid(x509.NameOID.SERIAL_NUMBER)
    value = str(found[0].value).lower() if len(found) == 1 else ""
    known = len(value) % 2 == 0 and value and not value.strip("0123456789abcdef")
    return value if known else None


def _bound(report: Report, leaf: x509.Certificate) -> bool | None:
    wanted = report.opaque.get(FIRMWARE_ID)
    if wanted is None:
        return None
    if len(wanted) != 48:
        raise InputError(f"a firmware id has 48 bytes, not {len(wanted)}")
    values = [e.value for e in leaf.extensions if e.oid.dotted_string in _FWID]
    return any(
        isinstance(v, x509.UnrecognizedExtension) and v.value.endswith(_SHA384_DIGEST + wanted)
        for v in values
    )


def _matches(
    kind: Kind, report: Report, properties: Mapping[str, str], given: Mapping[str, bytes], at: datetime
) -> tuple[bool | None, str]:
    """Return whether a device's measurements are NVIDIA's reference values, and why not or why unknown."""
    needed = _MANIFESTS[kind]
    if needless := (given.keys() & {"driver_rim", "vbios_rim"}) - needed.keys():
        raise InputError(f"such a device has no {', '.join(sorted(needless))}", where=kind)
    manifests: list[Rim] = []
    missing = ""
    for name, version in needed.items():
        if name not in given:
            missing = missing or f"no {name} was given"
            continue
        manifest = verify_rim(given[name], at=at)
        if not (manifest.signature and manifest.chain):
            return False, f"{name}: {next(iter(manifest.reasons.values()), 'it does not hold')}"
        found = properties.get(version, "")
        if manifest.product != properties["product"] or manifest.version.lower() != found.lower():
            missing = missing or f"{name} is for {manifest.product} {manifest.version}, not for {found}"
        manifests.append(manifest)
    if missing:
        return None, missing
    skip = {_NVDEC_INDEX} if report.opaque.get(NVDEC) == _NVDEC_OFF else set()
    return compare(report.measurements, manifests, skip=skip)
