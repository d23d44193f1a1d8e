"""A processor maker of our own: quotes that say what no genuine sample says, under a root that tests pin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.enclave.pki import AT, Party, constraints, extension, root, usage

from cloister.enclave.kinds import collateral, intel
from cloister.enclave.x509 import fingerprint

SGX_OID = "1.2.840.113741.1.13.1"
PPID, FMSPC, PCEID = bytes(range(16)), bytes.fromhex("00906ed50000"), b"\x00\x00"


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def der(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    size = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + size + body


def sgx_extension(*, without: int = 0) -> bytes:
    base = bytes.fromhex("2a864886f84d010d01")

    def pair(number: bytes, value: bytes) -> bytes:
        return der(0x30, der(0x06, base + number), value)

    tcb = der(0x30, pair(b"\x02\x11", der(0x02, b"\x0b")), pair(b"\x02\x12", der(0x04, bytes(16))))
    pairs = {1: der(0x04, PPID), 2: tcb, 3: der(0x04, PCEID), 4: der(0x04, FMSPC), 5: der(0x0A, b"\x01")}
    return der(0x30, *(pair(bytes([n]), value) for n, value in pairs.items() if n != without))


def sgx_report(**fields: bytes) -> bytes:
    places = {
        "attributes": (48, 16),
        "mrenclave": (64, 32),
        "mrsigner": (128, 32),
        "isv_prod_id": (256, 2),
        "report_data": (320, 64),
    }
    report = bytearray(384)
    report[48] = 0x05
    for name, value in fields.items():
        at, size = places[name]
        assert len(value) == size
        report[at : at + size] = value
    return bytes(report)


QUOTING = {
    True: ("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff", b"\1\0"),
    False: ("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5", b"\2\0"),
}


def qe_report(sgx: bool, **fields: bytes) -> bytes:
    """A report of Intel's quoting enclave for SGX, or for TDX."""
    signer, product = QUOTING[sgx]
    return sgx_report(**{"mrsigner": bytes.fromhex(signer), "isv_prod_id": product, **fields})


def td_report(*, attributes: bytes = bytes(3) + b"\x10" + bytes(4), report_data: bytes = bytes(64)) -> bytes:
    return bytes(120) + attributes + bytes(392) + report_data


@dataclass
class Maker:
    """Root, authority and signers; `quote` makes quotes, `document` their collateral."""

    root: Party = field(default_factory=lambda: root("Twin Root CA", key=p256()))
    extension: bytes = field(default_factory=sgx_extension)

    def __post_init__(self) -> None:
        self.authority = self.root.issue("Twin PCK CA", constraints(True, 0), usage(True), key=p256())
        sgx = extension(SGX_OID, self.extension)
        self.pck_key = p256()
        self.pck = self.authority.issue("Twin PCK", constraints(False), usage(False), sgx, key=self.pck_key)
        self.signer_key = p256()
        self.signer = self.root.issue(
            "Intel SGX TCB Signing", constraints(False), usage(False), key=self.signer_key
        )

    def pin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (intel, collateral):
            monkeypatch.setattr(module, "INTEL_SGX", {fingerprint(self.root.certificate): "twin"})

    def quote(
        self,
        body: bytes,
        *,
        chain: bytes | None = None,
        header: bytes | None = None,
        qe: bytes | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        signed_by: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """Return a quote: SGX version 3 for a body of 384 bytes, else TDX version 4."""
        sgx = len(body) == 384
        intel_id = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        start = bytes.fromhex("0300020000000000" if sgx else "0400020081000000")
        header = header or start + bytes(4) + intel_id + bytes(20)
        attestation = key or p256()
        auth = bytes(range(32))
        committed = hashlib.sha256(point(attestation) + auth).digest() + bytes(32)
        qe = qe or qe_report(sgx, report_data=committed)
        chain = self.pck.pem + self.authority.pem + self.root.pem if chain is None else chain
        certified = b"\x05\x00" + len(chain).to_bytes(4, "little") + chain
        quoting = qe + raw(self.pck_key, qe) + b"\x20\x00" + auth + certified
        if not sgx:
            quoting = b"\x06\x00" + len(quoting).to_bytes(4, "little") + quoting
        data = raw(signed_by or attestation, header + body) + point(attestation) + quoting
        return header + body + len(data).to_bytes(4, "little") + data

    def document(
        self,
        *,
        issued: datetime = AT - timedelta(days=1),
        until: datetime = AT + timedelta(days=29),
        fmspc: bytes = FMSPC,
        tee: str = "TDX",
        revoked: tuple[int, ...] = (),
        root_revoked: tuple[int, ...] = (),
        signer: Party | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """Return collateral as caching services write it."""
        dates = {
            "issueDate": issued.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "nextUpdate": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        about = {"fmspc": fmspc.hex(), "pceId": PCEID.hex(), "tcbEvaluationDataNumber": 17}
        tcb = json.dumps({"id": tee, "version": 3, **dates, **about, "tcbLevels": []})
        identity = json.dumps(
            {"id": {"TDX": "TD_QE", "SGX": "QE"}[tee], "version": 2, **dates, "tcbEvaluationDataNumber": 17}
        )
        signer, key = signer or self.signer, key or self.signer_key
        chain = (signer.pem + self.root.pem).decode()
        return json.dumps(
            {
                "pck_crl_issuer_chain": (self.authority.pem + self.root.pem).decode(),
                "root_ca_crl": self.root.crl(*root_revoked).hex(),
                "pck_crl": self.authority.crl(*revoked).hex(),
                "tcb_info_issuer_chain": chain,
                "tcb_info": tcb,
                "tcb_info_signature": raw(key, tcb.encode()).hex(),
                "qe_identity_issuer_chain": chain,
                "qe_identity": identity,
                "qe_identity_signature": raw(key, identity.encode()).hex(),
            }
        ).encode()
