"""Chains: genuine ones hold at their time; every way to forge one is refused, and says which."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.pki import AT, END, START, Party, constraints, extension, p384, root, usage
from tests.enclave.samples import sample

from cloister.enclave import roots
from cloister.enclave.crl import check_crl, load_crl
from cloister.enclave.x509 import check_chain, fingerprint, load_certificate, load_certificates
from cloister.errors import InputError

ROOT = root("root")
MIDDLE = ROOT.issue("middle", constraints(True, 0), usage(True))
LEAF = MIDDLE.issue("leaf", constraints(False), usage(False))
PINS = {fingerprint(ROOT.certificate): "root"}


def check(*chain: Party, at: datetime = AT, pins: dict[str, str] = PINS) -> str:
    """Return the reason to refuse a chain; empty where it holds."""
    leaf, *rest = (party.certificate for party in chain)
    good, reason = check_chain(leaf, rest, pins=pins, at=at)
    assert good == (not reason)
    return reason


def test_a_chain_to_a_pinned_root_holds() -> None:
    assert check(LEAF, MIDDLE, ROOT) == ""
    assert check(MIDDLE.issue("bare leaf"), MIDDLE, ROOT) == ""


@pytest.mark.parametrize("pss", [False, True])
def test_rsa_chains_hold_with_both_paddings(pss: bool) -> None:
    key = rsa.generate_private_key(65537, 2048)
    top = root("rsa", key=key)
    leaf = top.issue("leaf", pss=pss)
    assert check(leaf, top, pins={fingerprint(top.certificate): "rsa"}) == ""
    forged = root("rsa", key=rsa.generate_private_key(65537, 2048)).issue("leaf", pss=pss)
    assert "not signed by 'rsa'" in check(forged, top, pins={fingerprint(top.certificate): "rsa"})


def test_wrong_order_says_so() -> None:
    for chain in [(MIDDLE, LEAF, ROOT), (LEAF, ROOT, MIDDLE), (ROOT, MIDDLE, LEAF), (LEAF, ROOT)]:
        assert "out of order" in check(*chain)


def test_a_root_counts_only_where_it_is_pinned() -> None:
    stranger = root("root")  # the same name, another key
    middle = stranger.issue("middle", constraints(True, 0), usage(True))
    leaf = middle.issue("leaf")
    assert "'root' is not a pinned root" in check(leaf, middle, stranger)
    assert "'middle' is not a pinned root" in check(LEAF, MIDDLE)
    assert "different certificates" in check(LEAF)
    # the pinned root behind the stranger's intermediate does not make it genuine
    assert "'middle' is not signed by 'root'" in check(leaf, middle, ROOT)


def test_signatures_are_checked_at_every_step() -> None:
    other = root("root").issue("middle", constraints(True, 0), usage(True))
    assert "'leaf' is not signed by 'middle'" in check(other.issue("leaf"), MIDDLE, ROOT)


def test_time_is_checked_at_every_step() -> None:
    assert "valid only from" in check(LEAF, MIDDLE, ROOT, at=START - timedelta(seconds=1))
    assert "expired at" in check(LEAF, MIDDLE, ROOT, at=END + timedelta(seconds=1))
    assert check(LEAF, MIDDLE, ROOT, at=START) == check(LEAF, MIDDLE, ROOT, at=END) == ""
    later = MIDDLE.issue("leaf", start=AT + timedelta(days=1))
    assert "'leaf' is valid only from" in check(later, MIDDLE, ROOT)
    old = ROOT.issue("middle", constraints(True), usage(True), end=AT - timedelta(days=1))
    assert "'middle' expired" in check(old.issue("leaf"), old, ROOT)
    gone = root("root", end=AT - timedelta(days=1))
    assert "'root' expired" in check(gone.issue("leaf"), gone, pins={fingerprint(gone.certificate): "root"})
    with pytest.raises(InputError, match="time zone"):
        check(LEAF, MIDDLE, ROOT, at=AT.replace(tzinfo=None))


@pytest.mark.parametrize(
    "extensions",
    [(), (constraints(False),), (constraints(True), usage(False))],
    ids=["no constraints", "no authority", "no keyCertSign"],
)
def test_only_an_authority_issues(extensions: tuple[tuple[x509.ExtensionType, bool], ...]) -> None:
    middle = ROOT.issue("middle", *extensions)
    assert "'middle' is not an authority" in check(middle.issue("leaf"), middle, ROOT)


def test_a_leaf_is_no_authority() -> None:
    assert "not a leaf" in check(MIDDLE, ROOT)


def test_path_length_is_kept() -> None:
    below = MIDDLE.issue("below", constraints(True), usage(True))
    assert "longer than it allows" in check(below.issue("leaf"), below, MIDDLE, ROOT)


def test_a_chain_is_short_and_holds_nothing_twice() -> None:
    assert "different certificates" in check(LEAF, MIDDLE, MIDDLE, ROOT)
    chain = [ROOT]
    for index in range(8):
        chain.insert(0, chain[0].issue(f"m{index}", constraints(True), usage(True)))
    assert "2 to 8" in check(*chain)


def test_weak_keys_and_digests_are_refused() -> None:
    small = MIDDLE.issue("leaf", key=rsa.generate_private_key(65537, 1024))  # noqa: S505
    assert "kind or size" in check(small, MIDDLE, ROOT)
    odd = MIDDLE.issue("leaf", key=ec.generate_private_key(ec.SECP256K1()))
    assert "kind or size" in check(odd, MIDDLE, ROOT)
    sha224 = MIDDLE.issue("leaf", digest=hashes.SHA224())
    assert "algorithm that is not accepted" in check(sha224, MIDDLE, ROOT)


def test_unknown_critical_extensions_are_refused() -> None:
    oid = "1.3.6.1.4.1.99999.1"
    leaf = MIDDLE.issue("leaf", extension(oid, b"\x05\x00", critical=True))
    assert oid in check(leaf, MIDDLE, ROOT)
    rest = [MIDDLE.certificate, ROOT.certificate]
    assert check_chain(leaf.certificate, rest, pins=PINS, at=AT, critical={oid})[0]
    assert check(MIDDLE.issue("leaf", extension(oid, b"\x05\x00")), MIDDLE, ROOT) == ""


def test_names_of_strangers_cannot_write_reports() -> None:
    loud = MIDDLE.issue("\x1b[31mtrusted\n" + "a" * 40, constraints(True), usage(True))
    reason = check(loud.issue("leaf"), loud)
    assert "?[31mtrusted?" in reason
    assert reason.isprintable()


def test_certificates_come_in_der_and_pem() -> None:
    assert load_certificate(LEAF.der) == load_certificate(LEAF.pem) == LEAF.certificate
    assert load_certificates(LEAF.pem + MIDDLE.pem) == (LEAF.certificate, MIDDLE.certificate)
    for bad in (b"", b"0", b"hello", LEAF.der[:-1], LEAF.der + b"\0", LEAF.pem[:-30], b"0" * 70_000):
        with pytest.raises(InputError):
            load_certificates(bad)
    with pytest.raises(InputError, match="not one"):
        load_certificate(LEAF.pem + MIDDLE.pem)
    with pytest.raises(InputError, match="not 1 to 8"):
        load_certificates(LEAF.pem * 9)


def test_revocation_lists() -> None:
    def look(crl: bytes, *, at: datetime = AT) -> str:
        found = [LEAF.certificate, MIDDLE.certificate]
        good, reason = check_crl(load_crl(crl), ROOT.certificate, found, at=at)
        assert good == (not reason)
        return reason

    serial = MIDDLE.certificate.serial_number
    assert look(ROOT.crl()) == ""
    assert look(ROOT.crl(LEAF.certificate.serial_number)) == "", "that one is not the root's to revoke"
    assert "'middle' is revoked" in look(ROOT.crl(1, serial, 2))
    assert "not signed by" in look(ROOT.crl(by=p384()))
    assert "not signed by" in look(MIDDLE.crl(serial))
    assert "not in force" in look(ROOT.crl(), at=START - timedelta(seconds=1))
    assert "not in force" in look(ROOT.crl(), at=END + timedelta(seconds=1))
    scope = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    assert "critical" in look(ROOT.crl(critical=[scope]))
    for bad in (b"", ROOT.der, ROOT.crl()[:-1], b"-----BEGIN X509 CRL-----\n"):
        with pytest.raises(InputError):
            load_crl(bad)


def test_no_flipped_byte_of_a_revocation_list_is_accepted() -> None:
    for position, changed in flips(ROOT.crl(1, 2)):
        try:
            good, _ = check_crl(load_crl(changed), ROOT.certificate, [MIDDLE.certificate], at=AT)
        except InputError:
            continue
        assert not good, position


def test_no_flipped_byte_of_a_chain_is_accepted() -> None:
    for index, party in enumerate((LEAF, MIDDLE, ROOT)):
        for position, changed in flips(party.der):
            chain = [LEAF.certificate, MIDDLE.certificate, ROOT.certificate]
            try:
                chain[index] = load_certificate(changed)
            except InputError:
                continue
            good, reason = check_chain(chain[0], chain[1:], pins=PINS, at=AT)
            assert not good, (index, position)
            assert reason


def test_mutations_raise_nothing_but_input_errors() -> None:
    _fuzz(400)


@pytest.mark.slow
def test_fuzz() -> None:
    _fuzz(fuzz_seconds())


def _fuzz(much: float | int) -> None:
    rest = [MIDDLE.certificate, ROOT.certificate]
    crls = mutations(ROOT.crl(1, 2), 1 << 60, seed=6)
    for changed in mutations(LEAF.der, much, seed=1):
        try:
            found = load_certificates(changed)
            assert changed == LEAF.der or not check_chain(found[0], rest, pins=PINS, at=AT)[0]
        except InputError:
            pass
        with contextlib.suppress(InputError):
            check_crl(load_crl(next(crls)), ROOT.certificate, rest, at=AT)


# Genuine chains

WHEN = datetime.fromisoformat("2025-06-20T10:00:00Z")


def vendor(leaf: bytes, rest: bytes, pins: dict[str, str]) -> tuple[bool, str]:
    chain = (*load_certificates(leaf), *(load_certificates(rest) if rest else ()))
    return check_chain(chain[0], chain[1:], pins=pins, at=WHEN)


@pytest.mark.parametrize(
    ("leaf", "rest"),
    [
        ("snp/gosev_milan_vcek.der", "snp/amd_ask_ark_milan.pem"),
        ("snp/coco_test-vcek.der", "snp/amd_ask_ark_milan.pem"),
        ("snp/virtee_vcek_turin.der", "snp/amd_ask_ark_turin.pem"),
    ],
)
def test_chains_of_amd(leaf: str, rest: str) -> None:
    assert vendor(sample(leaf), sample(rest), roots.AMD_ARK) == (True, "")


@pytest.mark.parametrize("product", ["milan", "genoa", "turin", "milan_vlek"])
def test_amd_signed_its_intermediates(product: str) -> None:
    ask, ark = load_certificates(sample(f"snp/amd_ask_ark_{product}.pem"))
    assert roots.AMD_ARK[fingerprint(ark)] == product.split("_")[0].capitalize()
    # an ASK is an authority, so it is no leaf; all the rest of its chain holds
    assert check_chain(ask, [ark], pins=roots.AMD_ARK, at=WHEN) == (
        False,
        f"'{'SEV-VLEK-Milan' if 'vlek' in product else 'SEV-' + product.capitalize()}' is an authority and not a leaf",
    )


def test_a_vcek_that_amd_did_not_sign() -> None:
    assert vendor(
        sample("snp/coco_test-vcek-invalid-new.der"), sample("snp/amd_ask_ark_milan.pem"), roots.AMD_ARK
    ) == (False, "'SEV-VCEK' is not signed by 'SEV-Milan'")


def test_chains_of_nvidia() -> None:
    devices = json.loads(sample("nvidia/ppcie_gpu_evidence.json"))
    devices += json.loads(sample("nvidia/ppcie_switch_evidence.json"))
    chains = [base64.b64decode(device["certificate"]) for device in devices]
    for chain in [*chains, sample("nvidia/hopperCertChain.txt")]:
        assert vendor(chain, b"", roots.NVIDIA_DEVICE) == (True, "")
        assert vendor(chain, b"", roots.NVIDIA_RIM)[1].endswith("is not a pinned root")
    swid = sample("nvidia/Driver_RIM_test_no_gpu.swidtag").decode()
    rim = [base64.b64decode(each) for each in re.findall("X509Certificate>([^<]+)<", swid)]
    found = [load_certificate(each) for each in rim]
    assert check_chain(found[0], found[1:], pins=roots.NVIDIA_RIM, at=WHEN) == (True, "")
    late = check_chain(found[0], found[1:], pins=roots.NVIDIA_RIM, at=WHEN + timedelta(days=30))
    assert late[1].startswith("'HCC RIM L4 Signer' expired at 2025-06-26")


def test_a_chain_of_intel() -> None:
    quote = sample("tdx/google_cos113_quote.dat")
    pem = quote[quote.index(b"-----BEGIN") : quote.rindex(b"-----END") + 25]
    assert vendor(pem, b"", roots.INTEL_SGX) == (True, "")


@pytest.mark.parametrize(
    ("path", "pins"),
    [
        ("nitro/AWS_NitroEnclaves_Root-G1.pem", roots.AWS_NITRO),
        ("nvidia/verifier_device_root.pem", roots.NVIDIA_DEVICE),
        ("nvidia/verifier_RIM_root.pem", roots.NVIDIA_RIM),
        ("tdx/intel_sgx_root_ca.pem", roots.INTEL_SGX),
        ("tpm/gcp_ekak_root_ca.pem", roots.GCP_EK_AK),
    ],
)
def test_pins_are_those_of_published_roots(path: str, pins: dict[str, str]) -> None:
    found = load_certificate(sample(path))
    assert list(pins) == [fingerprint(found)]
    assert found.subject == found.issuer
    assert found.public_bytes(Encoding.DER)[:1] == b"\x30"
