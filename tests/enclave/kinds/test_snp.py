"""SEV-SNP: genuine reports verify, altered and forged ones do not, and each refusal names its reason."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.pki import AT, END, START, Party, constraints, extension, root, usage
from tests.enclave.samples import sample

from cloister.enclave import Claims, Evidence, report_data
from cloister.enclave.kinds import snp
from cloister.enclave.kinds.snpreport import HOST_REQUEST, parse_report
from cloister.enclave.kinds.vcek import read_facts
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.x509 import fingerprint, load_certificate
from cloister.errors import InputError

WHEN = datetime(2025, 6, 20, tzinfo=UTC)


def coco() -> tuple[bytes, dict[str, bytes]]:
    """A genuine Milan report, version 2."""
    return sample("snp/coco_test-report.bin"), {
        "vcek": sample("snp/coco_test-vcek.der"),
        "ask_ark": sample("snp/amd_ask_ark_milan.pem"),
    }


def holds(claims: Claims) -> bool:
    checked = (claims.tcb_consistent, claims.bindings, claims.freshness, claims.revocation_checked)
    return claims.signature is True and claims.chain is True and False not in checked


def test_a_genuine_report() -> None:
    report, endorsements = coco()
    claims = snp.verify(Evidence("snp", report, endorsements), at=WHEN, expected=report[0x50:0x90])
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, True, True)
    assert (claims.tcb_consistent, claims.bindings, claims.freshness) == (True, True, True)
    assert (claims.debug, claims.self_reported) == (False, False)
    # what nobody checked is null, and says why
    for claim in ("tcb_status", "advisories", "revocation_checked", "collateral_fresh"):
        assert getattr(claims, claim) is None
        assert claims.reasons[claim]
    assert claims.measurements["measurement"] == report[0x90:0xC0].hex()
    assert claims.signers == {"id_key_digest": report[0xE0:0x110].hex()}
    assert claims.platform == report[0x1A0:0x1E0].hex()
    assert {name: claims.tcb[name] for name in ("bootloader", "tee", "snp", "microcode")} == {
        "bootloader": 3,
        "tee": 0,
        "snp": 8,
        "microcode": 0x73,
    }
    assert claims.tcb["current_microcode"] == 0xCE
    assert claims.properties["product"] == "Milan"
    assert claims.properties["policy"] == "0x3001f"


def test_the_debug_bit_is_a_claim() -> None:
    report = sample("snp/gosev_milan_report.bin")
    endorsements = {
        "vcek": sample("snp/gosev_milan_vcek.der"),
        "ask_ark": sample("snp/amd_ask_ark_milan.pem"),
    }
    claims = snp.verify(Evidence("snp", report, endorsements), at=WHEN, expected=report[0x50:0x90])
    assert holds(claims)
    assert claims.debug is True


def test_the_default_policy_judges_the_samples() -> None:
    policy = EnclavePolicy()
    report, endorsements = coco()
    good = snp.verify_report(report, endorsements, at=WHEN, expected=report[0x50:0x90])
    assert policy.check(good, WHEN) == []
    debug = sample("snp/gosev_milan_report.bin")
    leaf = {**endorsements, "vcek": sample("snp/gosev_milan_vcek.der")}
    found = snp.verify_report(debug, leaf, at=WHEN, expected=debug[0x50:0x90])
    assert policy.check(found, WHEN) == ["debug: the machine's owner may look inside"]
    unsigned = {**endorsements, "vcek": sample("snp/coco_test-vcek-invalid-new.der")}
    reasons = policy.check(snp.verify_report(report, unsigned, at=WHEN), WHEN)
    assert "chain: 'SEV-VCEK' is not signed by 'SEV-Milan'" in reasons


def test_a_vcek_that_amd_did_not_sign() -> None:
    report, endorsements = coco()
    endorsements["vcek"] = sample("snp/coco_test-vcek-invalid-new.der")
    claims = snp.verify_report(report, endorsements, at=WHEN)
    assert (claims.chain, claims.hardware_rooted) == (False, False)
    assert claims.reasons["chain"] == "'SEV-VCEK' is not signed by 'SEV-Milan'"


def test_a_turin_certificate_endorses_no_milan_report() -> None:
    report, _ = coco()
    turin = {"vcek": sample("snp/virtee_vcek_turin.der"), "ask_ark": sample("snp/amd_ask_ark_turin.pem")}
    claims = snp.verify_report(report, turin, at=WHEN)
    assert claims.chain is True
    assert (claims.signature, claims.tcb_consistent, claims.bindings) == (False, False, False)
    assert claims.reasons["signature"] == "the VCEK did not sign this report"
    facts = read_facts(load_certificate(turin["vcek"]))
    assert (facts.role, facts.product, facts.tcb.hex()) == ("vcek", "Turin", "0000000000000009")
    assert facts.hwid == bytes.fromhex("1e550a8ee5cf9f4d")


def test_the_vlek_chain_endorses_no_vcek() -> None:
    report, endorsements = coco()
    claims = snp.verify_report(
        report, {**endorsements, "ask_ark": sample("snp/amd_ask_ark_milan_vlek.pem")}, at=WHEN
    )
    assert claims.chain is False
    assert "'SEV-VLEK-Milan' follows" in claims.reasons["chain"]
    wrong = snp.verify_report(
        report, {**endorsements, "ask_ark": sample("snp/amd_ask_ark_genoa.pem")}, at=WHEN
    )
    assert "'SEV-Genoa' follows" in wrong.reasons["chain"]


def test_certificates_travel_apart_or_together() -> None:
    report, endorsements = coco()
    vcek, chain = endorsements["vcek"], endorsements["ask_ark"]
    middle = chain.index(b"-----BEGIN", 10)
    apart = {"vcek": vcek, "ask": chain[:middle], "ark": chain[middle:]}
    assert holds(snp.verify_report(report, apart, at=WHEN))
    swapped = {"vcek": vcek, "ask": chain[middle:], "ark": chain[:middle]}
    assert "out of order" in snp.verify_report(report, swapped, at=WHEN).reasons["chain"]
    alone = snp.verify_report(report, {"vcek": vcek}, at=WHEN)
    assert alone.chain is False
    without = snp.verify_report(report, {"ask_ark": chain}, at=WHEN)
    assert (without.signature, without.chain, without.hardware_rooted) == (None, None, None)
    with pytest.raises(InputError, match="no endorsement 'root'"):
        snp.verify_report(report, {**endorsements, "root": chain}, at=WHEN)
    with pytest.raises(InputError, match="a VCEK and a VLEK"):
        snp.verify_report(report, {**endorsements, "vlek": vcek}, at=WHEN)


@pytest.mark.parametrize(("days", "word"), [(-3000, "valid only from"), (9000, "expired")])
def test_certificates_of_another_time(days: int, word: str) -> None:
    report, endorsements = coco()
    claims = snp.verify_report(report, endorsements, at=WHEN + timedelta(days=days))
    assert claims.chain is False
    assert word in claims.reasons["chain"]


def test_freshness() -> None:
    report, endorsements = coco()
    field = report[0x50:0x90]
    wrong = [bytes(64), field[:63] + b"\1", field[:32], b"\0" + field, b"", report_data("p", b"", bytes(32))]
    for expected in wrong:
        claims = snp.verify_report(report, endorsements, at=WHEN, expected=expected)
        assert claims.freshness is False
        assert "other report data" in claims.reasons["freshness"]
    assert snp.verify_report(report, endorsements, at=WHEN, expected=field).freshness is True
    assert snp.verify_report(report, endorsements, at=WHEN).freshness is None


def test_other_and_cut_evidence() -> None:
    report, endorsements = coco()
    quote, document = sample("sgx/phala_sgx_quote"), sample("nitro/dstack_nitro_attestation.bin")
    others = [quote, quote[:1184], document, document[:1184], bytes(1184), b"\xff" * 1184]
    for data in [*others, *(report[:length] for length in range(1184)), report + b"\0"]:
        with pytest.raises(InputError):
            snp.verify_report(data, endorsements, at=WHEN)
    with pytest.raises(InputError, match="event log"):
        snp.verify(Evidence("snp", report, endorsements, event_log=b"x"), at=WHEN, expected=None)
    for name in endorsements:
        for data in (b"", report, endorsements[name][:-40]):
            with pytest.raises(InputError):
                snp.verify_report(report, {**endorsements, name: data}, at=WHEN)


def test_no_flipped_byte_of_a_report_is_accepted() -> None:
    report, endorsements = coco()
    assert snp.UNAUTHENTICATED == ()
    for position, changed in flips(report):
        try:
            claims = snp.verify_report(changed, endorsements, at=WHEN)
        except InputError:
            continue
        assert not holds(claims), position


def test_no_flipped_byte_of_a_certificate_is_accepted() -> None:
    report, endorsements = coco()
    pem = endorsements.pop("ask_ark")
    middle = pem.index(b"-----BEGIN", 10)
    endorsements["ask"] = _der(pem[:middle])
    endorsements["ark"] = _der(pem[middle:])
    for name, der in list(endorsements.items()):
        for position, changed in flips(der):
            try:
                claims = snp.verify_report(report, {**endorsements, name: changed}, at=WHEN)
            except InputError:
                continue
            assert claims.chain is False, (name, position)


def _der(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return load_certificate(pem).public_bytes(Encoding.DER)


def test_mutations_raise_nothing_but_input_errors() -> None:
    _fuzz(300)


@pytest.mark.slow
def test_fuzz() -> None:
    _fuzz(fuzz_seconds())


def _fuzz(much: float | int) -> None:
    report, endorsements = coco()
    vcek = mutations(endorsements["vcek"], 1 << 60, seed=3)
    for index, changed in enumerate(mutations(report, much, seed=2)):
        for data, leaf in ((changed, endorsements["vcek"]), (report, next(vcek))):
            try:
                claims = snp.verify_report(data, {**endorsements, "vcek": leaf}, at=WHEN)
            except InputError:
                continue
            assert not holds(claims) or (data == report and leaf == endorsements["vcek"]), index


# Versions 3 to 5, Genoa, Turin and VLEK: no genuine sample has them, so a vendor of our own signs them

LEGACY = {1: 3, 2: 0, 4: 0, 5: 0, 6: 0, 7: 0, 3: 8, 8: 0xCE}
LEGACY_TCB = bytes([3, 0, 0, 0, 0, 0, 8, 0xCE])
TURIN = {9: 1, 1: 2, 2: 3, 3: 4, 5: 0, 6: 0, 7: 0, 8: 0x80}
TURIN_TCB = bytes([1, 2, 3, 4, 0, 0, 0, 0x80])
CHIP = hashlib.sha512(b"chip").digest()
RSA = rsa.generate_private_key(65537, 2048)


class Vendor:
    """ARK, ASK or ASVK, and a signing key, of one product and role."""

    def __init__(self, product: str, role: str, *, hwid: bytes = CHIP, csp: bytes = b"cloud", **changed: str):
        stated = changed.get("stated", product)
        self.ark = root(f"ARK-{product}", key=RSA)
        self.ask = self.ark.issue(
            changed.get("ask") or f"SEV-{product}" if role == "vcek" else f"SEV-VLEK-{product}",
            constraints(True, 0),
            usage(True),
            key=RSA,
            pss=True,
        )
        versions = TURIN if product == "Turin" else LEGACY
        parts = [_ext("1", b"\x02\x01\x01"), _ext("2", _ia5(stated.encode()))]
        parts += [_ext(f"3.{index}", _integer(value)) for index, value in versions.items()]
        parts.append(_ext("4", hwid) if role == "vcek" else _ext("5", _ia5(csp)))
        self.leaf = self.ask.issue(f"SEV-{role.upper()}", *parts, pss=True)
        self.role = role
        self.tcb = TURIN_TCB if product == "Turin" else LEGACY_TCB
        self.pins = {fingerprint(self.ark.certificate): product}

    def endorsements(self, **more: bytes) -> dict[str, bytes]:
        return {self.role: self.leaf.der, "ask": self.ask.der, "ark": self.ark.pem, **more}

    def report(self, version: int = 3, *, cpuid: bytes = b"\x19\x11\x01", **fields: bytes | int) -> bytes:
        """Return a signed report; `at_OFFSET` fields overwrite bytes at a hexadecimal offset before signing."""
        data = bytearray(0x2A0)
        struct.pack_into("<IIQ", data, 0, version, 0, 0x30000)
        struct.pack_into("<II", data, 0x30, 0, 1)
        struct.pack_into("<I", data, 0x48, 4 if self.role == "vlek" else 0)
        data[0x50:0x90] = b"\7" * 64
        for offset in (0x38, 0x180, 0x1E0, 0x1F0):
            data[offset : offset + 8] = self.tcb
        if version >= 3:
            data[0x188:0x18B] = cpuid
        data[0x1A0:0x1E0] = bytes(64) if self.role == "vlek" else CHIP
        for place, value in fields.items():
            start = int(place.removeprefix("at_"), 16)
            raw = value if isinstance(value, bytes) else bytes([value])
            data[start : start + len(raw)] = raw
        return bytes(data) + self.sign(bytes(data))

    def sign(self, data: bytes) -> bytes:
        key = self.leaf.key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)


def _ext(arc: str, value: bytes):  # type: ignore[no-untyped-def]
    return extension(f"1.3.6.1.4.1.3704.1.{arc}", value)


def _ia5(text: bytes) -> bytes:
    return bytes([0x16, len(text)]) + text


def _integer(value: int) -> bytes:
    return b"\x02\x02\0" + bytes([value]) if value > 127 else b"\x02\x01" + bytes([value])


Trust = Callable[[Vendor], Vendor]


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Trust:
    def pin(vendor: Vendor) -> Vendor:
        monkeypatch.setattr(snp, "AMD_ARK", vendor.pins)
        return vendor

    return pin


def check(vendor: Vendor, report: bytes, **more: bytes) -> Claims:
    return snp.verify_report(report, vendor.endorsements(**more), at=AT, expected=b"\7" * 64)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("product", "cpuid", "hwid"),
    [
        ("Milan", b"\x19\x01\x01", CHIP),
        ("Genoa", b"\x19\xa0\x02", CHIP),
        ("Turin", b"\x1a\x02\x01", CHIP[:8]),
    ],
)
def test_every_version_of_every_product(
    trust: Trust, version: int, product: str, cpuid: bytes, hwid: bytes
) -> None:
    vendor = trust(Vendor(product, "vcek", hwid=hwid, stated=f"{product}-B1"))
    chip = hwid.ljust(64, b"\0")
    claims = check(vendor, vendor.report(version, cpuid=cpuid, at_1A0=chip))
    assert holds(claims), claims.reasons
    assert (claims.hardware_rooted, claims.bindings, claims.tcb_consistent) == (True, True, True)
    wanted = {"Turin": {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 0x80}}.get(
        product, {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 0xCE}
    )
    assert {name: value for name, value in claims.tcb.items() if "_" not in name} == wanted
    assert claims.properties["report_version"] == str(version)


def test_mitigation_vectors_are_of_version_5(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    claims = check(vendor, vendor.report(5, at_1F8=3, at_200=7))
    assert (claims.properties["launch_mitigations"], claims.properties["current_mitigations"]) == (
        "0x3",
        "0x7",
    )
    with pytest.raises(InputError, match="reserved"):
        check(vendor, vendor.report(4, at_1F8=3))


def test_a_vlek(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vlek"))
    claims = check(vendor, vendor.report())
    assert holds(claims), claims.reasons
    assert claims.hardware_rooted is True
    assert claims.bindings is None, "a VLEK names no chip"
    assert claims.platform is None
    assert claims.properties["cloud_provider"] == "cloud"
    # the report must name the kind of key that signed it
    lying = check(vendor, vendor.report(at_48=0))
    assert lying.signature is False
    assert lying.reasons["signature"] == "the report names a VCEK, the certificate is a VLEK's"


def test_a_guest_that_an_agent_may_move_counts_as_one_under_debug(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    claims = check(vendor, vendor.report(at_a=0x07))
    assert (claims.signature, claims.debug) == (True, True)
    assert "migration agent" in claims.reasons["debug"]
    assert "debug: the machine's owner may look inside" in EnclavePolicy().check(claims, AT)
    assert check(vendor, vendor.report()).debug is False


def test_a_vlek_and_a_vcek_are_not_each_others(trust: Trust) -> None:
    vcek = trust(Vendor("Genoa", "vcek"))
    assert "the report names a VLEK" in check(vcek, vcek.report(at_48=4)).reasons["signature"]
    for unsigned in (0x1C, 0x02):  # no key at all, or one that firmware was told to mask
        assert "not signed" in check(vcek, vcek.report(at_48=unsigned)).reasons["signature"]
    mixed = trust(Vendor("Genoa", "vcek", ask="SEV-VLEK-Genoa"))
    claims = check(mixed, mixed.report())
    assert claims.chain is False
    assert "AMD's chain of a VCEK" in claims.reasons["chain"]


def test_products_are_not_each_others(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek", stated="Milan-B0"))
    assert "root is of Genoa" in check(vendor, vendor.report()).reasons["chain"]
    genoa = trust(Vendor("Genoa", "vcek"))
    claims = check(genoa, genoa.report(cpuid=b"\x19\x01\x01"))
    assert claims.tcb_consistent is False
    assert claims.reasons["tcb_consistent"] == "the report is of Milan, the key of Genoa"
    unknown = check(genoa, genoa.report(cpuid=b"\x20\x01\x01"))
    assert "unknown processor" in unknown.reasons["tcb_consistent"]
    siena = trust(Vendor("Genoa", "vcek", stated="Siena-A0"))
    assert holds(check(siena, siena.report()))


def test_firmware_and_chip_must_be_the_certificates(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    older = check(vendor, vendor.report(at_186=7))
    assert older.tcb_consistent is False
    assert "the report states firmware" in older.reasons["tcb_consistent"]
    other = check(vendor, vendor.report(at_1A0=b"\1" * 64))
    assert other.bindings is False
    assert "another chip" in other.reasons["bindings"]
    masked = check(vendor, vendor.report(at_1A0=bytes(64)))
    assert masked.bindings is None
    assert "masks" in masked.reasons["bindings"]


def test_what_the_host_asked_for_is_not_the_guests(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    claims = check(vendor, vendor.report(at_30=HOST_REQUEST.to_bytes(4, "little")))
    assert claims.freshness is False
    assert "the host asked" in claims.reasons["freshness"]


def test_runtime_data_is_bound(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vlek"))
    for field in (hashlib.sha512(b"key").digest(), hashlib.sha256(b"key").digest() + bytes(32)):
        report = vendor.report(at_50=field)
        bound = snp.verify_report(report, vendor.endorsements(), at=AT, runtime_data=b"key")
        assert bound.bindings is True
        other = snp.verify_report(report, vendor.endorsements(), at=AT, runtime_data=b"yek")
        assert other.bindings is False
        assert "no digest of the runtime data" in other.reasons["bindings"]


@pytest.mark.parametrize(
    "fields",
    [
        {"at_0": 1},
        {"at_0": 6},
        {"at_a": 0x01},  # policy without its bit that must be one
        {"at_f": 0x80},
        {"at_30": 4},
        {"at_34": 2},
        {"at_48": 0x20},
        {"at_48": 0x08},
        {"at_4c": 1},
        {"at_18b": 1},
        {"at_1eb": 1},
        {"at_1ef": 1},
        {"at_29f": 1},
    ],
    ids=str,
)
def test_reserved_fields_are_refused_even_signed(trust: Trust, fields: dict[str, int]) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    with pytest.raises(InputError):
        check(vendor, vendor.report(**fields))


def test_signatures_that_are_numbers_but_no_signatures(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    report = vendor.report()
    order = int(
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
    )
    r, s = parse_report(report).signature
    for pair in [(0, 0), (r, 0), (0, s), (order, order), (s, r), (r, s ^ 1)]:
        data = report[:0x2A0] + b"".join(v.to_bytes(72, "little") for v in pair) + bytes(368)
        assert check(vendor, data).signature is False


def test_revocation(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    report = vendor.report()
    good = check(vendor, report, crl=vendor.ark.crl())
    assert (good.revocation_checked, good.collateral_fresh) == (True, True)
    assert good.properties["collateral_issued"] == START.isoformat()
    revoked = check(vendor, report, crl=vendor.ark.crl(vendor.ask.certificate.serial_number))
    assert (revoked.revocation_checked, revoked.chain) == (False, True)
    assert "is revoked" in revoked.reasons["revocation_checked"]
    forged = check(vendor, report, crl=vendor.ark.crl(by=rsa.generate_private_key(65537, 2048)))
    assert forged.revocation_checked is False
    future = check(vendor, report, crl=vendor.ark.crl(start=AT + timedelta(days=1), end=END))
    assert (future.revocation_checked, future.collateral_fresh) == (False, False)
    with pytest.raises(InputError):
        check(vendor, report, crl=b"none")


def test_roots_of_strangers(trust: Trust) -> None:
    trust(Vendor("Genoa", "vcek"))
    stranger = Vendor("Genoa", "vcek")
    claims = check(stranger, stranger.report(), crl=stranger.ark.crl())
    assert claims.signature is True
    assert (claims.chain, claims.hardware_rooted) == (False, False)
    assert claims.revocation_checked is None, "a stranger's list says nothing"
    assert "not a pinned root" in claims.reasons["hardware_rooted"]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [("1", b"\x02\x01\0"), ("2", _ia5(b"Rome-B0"))],
        [("2", b"\x16\x05Gen")],
        [("2", _ia5(b"Genoa")), ("4", CHIP[:8])],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("5", _ia5(b"csp"))],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("3.1", b"\x02\x01\xff")],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("3.1", b"\x02\x02\x00\x01")],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("3.1", b"\x02\x02\x01\x00")],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("3.9", b"\x02\x01\x01")],
        [("2", _ia5(b"Genoa")), ("4", CHIP), ("9", b"\x02\x01\x01")],
    ],
)
def test_certificates_without_amds_extensions(trust: Trust, parts: list[tuple[str, bytes]]) -> None:
    vendor = trust(Vendor("Genoa", "vcek"))
    stated = {"1": b"\x02\x01\0", **{f"3.{i}": _integer(v) for i, v in LEGACY.items()}} if parts else {}
    leaf: Party = vendor.ask.issue("SEV-VCEK", *(_ext(*part) for part in {**stated, **dict(parts)}.items()))
    with pytest.raises(InputError):
        check(vendor, vendor.report(), vcek=leaf.der)


def test_a_chip_in_proper_der_is_read_too(trust: Trust) -> None:
    vendor = trust(Vendor("Genoa", "vcek", hwid=b"\x04\x40" + CHIP))
    assert check(vendor, vendor.report()).bindings is True
