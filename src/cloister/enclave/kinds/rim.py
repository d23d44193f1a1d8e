"""NVIDIA's reference manifests: which measurements a driver or firmware should have, signed.

A manifest is a SWID tag (ISO/IEC 19770-2) with an enveloped XML signature:

1. signature: `rimxml` opens the document, and gives back only what its first certificate signed;
2. chain: that certificate to the pinned root of NVIDIA, at the time of appraisal;
3. what is read: product, version, and reference values by index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cloister.enclave.kinds.rimxml import SWID, open_signed
from cloister.enclave.roots import NVIDIA_RIM
from cloister.enclave.x509 import check_chain
from cloister.errors import InputError

__all__ = ["UNAUTHENTICATED", "Rim", "compare", "verify_rim"]

UNAUTHENTICATED: Final[tuple[tuple[int, int, str], ...]] = ()
"""No position is always free; `rimxml` says what XML leaves open, and that nothing is read from there."""

_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_BYTES: Final = 48
_MAX_INDEX: Final = 255
_MAX_ALTERNATIVES: Final = 64


@dataclass(frozen=True, slots=True)
class Rim:
    """A manifest, checked. What is not signed is empty, and so are reference values without a chain.

    Attributes:
        signature: whether it is signed by the certificate that comes with it.
        chain: whether that leads to the pinned root, at the time of appraisal.
        product: the chip it is for, such as "GH100".
        version: of the driver or firmware it is for.
        golden: the active reference values by index from 0; any one of an index's values will do.
        reasons: why a claim is false.
    """

    signature: bool
    chain: bool
    product: str = ""
    version: str = ""
    golden: Mapping[int, frozenset[bytes]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def verify_rim(data: bytes, *, at: datetime) -> Rim:
    """Return what a manifest says, and whether it holds.

    Args:
        data: the XML document.
        at: the time of appraisal; the signer's certificates must be in force then.

    Raises:
        InputError: not a manifest of the one known shape, or lxml or signxml is not there.
    """
    chain, signed = open_signed(data)  # 1
    trusted, why = check_chain(chain[0], chain[1:], pins=NVIDIA_RIM, at=at)  # 2
    reasons = {"chain": why} if why else {}
    if signed is None:
        reasons["signature"] = "the manifest is not what its signer signed"
        return Rim(signature=False, chain=trusted, reasons=reasons)
    meta = _only(signed, "Meta")  # 3
    return Rim(
        signature=True,
        chain=trusted,
        product=_attribute(meta, "product"),
        version=_attribute(meta, "colloquialVersion"),
        golden=_golden(_only(signed, "Payload")) if trusted else {},
        reasons=reasons,
    )


def compare(
    measurements: Mapping[int, bytes], manifests: Sequence[Rim], *, skip: Collection[int] = ()
) -> tuple[bool | None, str]:
    """Return whether a device's measurements are the reference values, and why not or why unknown.

    Args:
        measurements: of the report, by index from 1.
        manifests: all that the device needs; the caller has checked them.
        skip: indices from 0 that do not count.
    """
    if not manifests:
        return None, "no manifest was given"
    golden: dict[int, frozenset[bytes]] = {}
    for manifest in manifests:
        if both := golden.keys() & manifest.golden.keys():
            return False, f"two manifests have measurement {min(both)}"
        if not manifest.golden:
            return None, f"the manifest of {manifest.version} holds no reference value that counts"
        golden |= manifest.golden
    wrong = sorted(
        index
        for index, values in golden.items()
        if index not in skip and measurements.get(index + 1, b"") not in values
    )
    if wrong:
        return False, f"measurements {', '.join(map(str, wrong[:8]))} are not the reference values"
    return True, ""


def _golden(payload: Any) -> Mapping[int, frozenset[bytes]]:
    golden: dict[int, frozenset[bytes]] = {}
    seen: set[int] = set()
    for resource in payload:
        if resource.tag != SWID + "Resource" or resource.get("type") != "Measurement":
            raise InputError("a manifest's payload has more than measurements", where="RIM")
        index = _number(resource, "index", _MAX_INDEX)
        if index in seen:
            raise InputError(f"a manifest has measurement {index} twice", where="RIM")
        seen.add(index)
        count = _number(resource, "alternatives", _MAX_ALTERNATIVES)
        values = frozenset(_value(resource, _HASH + str(each)) for each in range(count))
        active = _attribute(resource, "active")
        if active not in ("True", "False") or not values or _number(resource, "size", _BYTES) != _BYTES:
            raise InputError(f"a manifest's measurement {index} is malformed", where="RIM")
        if active == "True":
            golden[index] = values
    return golden


def _value(resource: Any, name: str) -> bytes:
    text = _attribute(resource, name)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != _BYTES or len(text) != 2 * _BYTES:
        raise InputError("a manifest's reference value is not SHA-384", where="RIM")
    return value


def _number(element: Any, name: str, most: int) -> int:
    text = _attribute(element, name)
    if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) <= most):
        raise InputError(f"a manifest's {name} is not a number up to {most}", where="RIM")
    return int(text)


def _attribute(element: Any, name: str) -> str:
    value = element.get(name)
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable():
        raise InputError(f"a manifest lacks {name.rpartition('}')[2]}", where="RIM")
    return value


def _only(root: Any, name: str) -> Any:
    found = root.findall(SWID + name)
    if len(found) != 1:
        raise InputError(f"a manifest has {len(found)} elements {name}, not one", where="RIM")
    return found[0]
