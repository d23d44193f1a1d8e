"""NVIDIA's genuine samples; and a maker of our own, of devices and manifests, under roots that tests pin."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.enclave.pki import Party, constraints, extension, p384, root, usage
from tests.enclave.samples import sample

from cloister.enclave.evidence import Evidence, Kind
from cloister.enclave.kinds import nvidia, rim
from cloister.enclave.x509 import fingerprint

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
MANIFEST = "nvidia/Driver_RIM_test_no_gpu.swidtag"


def hopper() -> Evidence:
    report = bytes.fromhex(sample("nvidia/hopperAttestationReport.txt").decode())
    return Evidence("nvidia-gpu", report, {"chain": sample("nvidia/hopperCertChain.txt")})


def coco() -> Evidence:
    report = bytes.fromhex(sample("nvidia/hopper_coco_report1.txt").decode())
    return Evidence("nvidia-gpu", report, {"chain": sample("nvidia/hopper_coco_certs1.txt")})


def machine(devices: str) -> tuple[bytes, list[Evidence]]:
    """Return the nonce and the evidence of all "gpu" or "switch" devices of one machine."""
    kind: Kind = "nvidia-gpu" if devices == "gpu" else "nvidia-switch"
    rows = json.loads(sample(f"nvidia/ppcie_{devices}_evidence.json"))
    found = [
        Evidence(kind, base64.b64decode(row["evidence"]), {"chain": base64.b64decode(row["certificate"])})
        for row in rows
    ]
    (nonce,) = {row["nonce"] for row in rows}
    return bytes.fromhex(nonce), found


def signed(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def opaque(**more: bytes) -> bytes:
    fields = {3: b"550.1\0", 6: bytes.fromhex("009f009601000000"), 11: b"\xaa"}
    fields |= {int(name[1:]): value for name, value in more.items()}
    return b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
        for kind, value in fields.items()
    )


@dataclass
class Device:
    """A GPU of our own."""

    root: Party = field(default_factory=lambda: root("Twin Device CA"))
    common: str = "GH100 A01 GSP FMC LF"
    fwid: bytes = bytes(48)

    def __post_init__(self) -> None:
        self.authority = self.root.issue("GH100 A01 GSP BROM", constraints(True, 0), usage(True))
        digest = bytes.fromhex("3041060960864801650304020204" + "30") + self.fwid
        self.key = p384()
        self.leaf = self.authority.issue(
            self.common, usage(False), extension("2.23.133.5.4.1", digest), key=self.key
        )

    def pin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nvidia, "NVIDIA_DEVICE", {fingerprint(self.root.certificate): "twin"})

    @property
    def chain(self) -> bytes:
        return self.leaf.pem + self.authority.pem + self.root.pem

    def report(self, blocks: dict[int, bytes] | None = None, more: bytes | None = None) -> bytes:
        blocks = {n: bytes([n]) * 48 for n in range(1, 65)} if blocks is None else blocks
        record = b"".join(
            bytes([n, 1]) + (len(v) + 3).to_bytes(2, "little") + b"\x01" + len(v).to_bytes(2, "little") + v
            for n, v in blocks.items()
        )
        more = opaque() if more is None else more
        head = (
            bytes.fromhex("11e001ff") + b"n" * 32 + b"\0" + bytes.fromhex("11600000") + bytes([len(blocks)])
        )
        body = (
            head
            + len(record).to_bytes(3, "little")
            + record
            + b"d" * 32
            + len(more).to_bytes(2, "little")
            + more
        )
        return body + signed(self.key, body)

    def evidence(self, report: bytes | None = None, **endorsements: bytes) -> Evidence:
        return Evidence("nvidia-gpu", report or self.report(), {"chain": self.chain, **endorsements})


@dataclass
class Publisher:
    """Whoever signs manifests of our own."""

    root: Party = field(default_factory=lambda: root("Twin RIM CA"))

    def __post_init__(self) -> None:
        self.key = p384()
        self.signer = self.root.issue("Twin RIM Signer", constraints(False), usage(False), key=self.key)

    def pin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rim, "NVIDIA_RIM", {fingerprint(self.root.certificate): "twin"})

    def sign(self, document: str, chain: list[x509.Certificate] | None = None) -> bytes:
        """Return a document with an enveloped signature in NVIDIA's form."""
        from lxml import etree
        from signxml import CanonicalizationMethod, DigestAlgorithm, SignatureMethod, XMLSigner, methods

        made = XMLSigner(
            method=methods.enveloped,
            signature_algorithm=SignatureMethod.ECDSA_SHA384,
            digest_algorithm=DigestAlgorithm.SHA384,
            c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
        ).sign(
            etree.fromstring(document.encode()),
            key=self.key,
            cert=chain or [self.signer.certificate, self.root.certificate],
        )
        return bytes(etree.tostring(made))


def tag(
    version: str, golden: dict[int, list[bytes]], *, product: str = "GH100", inactive: bool = False
) -> str:
    """Return an unsigned manifest."""
    active = "False" if inactive else "True"
    resources = "".join(
        f'<s:Resource type="Measurement" index="{index}" active="{active}" alternatives="{len(values)}" name="m" size="48" '
        + " ".join(f'h:Hash{n}="{value.hex()}"' for n, value in enumerate(values))
        + "/>"
        for index, values in golden.items()
    )
    return (
        f'<s:SoftwareIdentity xmlns:s="{SWID}" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384" name="{product}">'
        f'<s:Meta colloquialVersion="{version}" product="{product}"/><s:Payload>{resources}</s:Payload></s:SoftwareIdentity>'
    )
