"""Evidence of Azure's confidential machines: the chain from hardware to registers, and where it breaks."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from datetime import UTC, datetime

import pytest
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.samples import sample

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, Kind, report_data
from cloister.enclave.kinds import azure, hcl
from cloister.enclave.kinds.urlsafe import from_base64url
from cloister.errors import InputError

AT = datetime(2026, 6, 1, tzinfo=UTC)
SNP0, SNP1 = "azure_snp_vtpm/evidence-v0.json", "azure_snp_vtpm/evidence-v1.json"
TDX0 = "azure_tdx_vtpm/evidence-v0.json"
KINDS: dict[str, Kind] = {SNP0: "azure-snp-vtpm", SNP1: "azure-snp-vtpm", TDX0: "azure-tdx-vtpm"}
ALL = tuple(KINDS)
ASKED = b"challenge"
HCL_AT = 32 + 1184 + 20  # runtime data in an HCL report


def endorsements(name: str) -> dict[str, bytes]:
    return {"ask_ark": sample("snp/amd_ask_ark_milan.pem")} if KINDS[name] == "azure-snp-vtpm" else {}


def appraise(name: str, data: bytes, expected: bytes | None = ASKED, at: datetime = AT, **more) -> Claims:
    given = {"endorsements": endorsements(name), **more}
    return azure.verify(Evidence(KINDS[name], data, **given), at=at, expected=expected)


def changed(name: str, change) -> bytes:
    """Return a document after `change` was made to its fields, decoded to bytes and lists of bytes."""
    document = json.loads(sample(name))
    quote = document.get("quote") or document["tpm_quote"]
    report = "report" if "report" in document else "hcl_report"
    hexadecimal = isinstance(quote["message"], str)
    parts = {
        key: bytes.fromhex(quote[key]) if hexadecimal else bytes(quote[key])
        for key in ("message", "signature")
    }
    parts["pcrs"] = [bytes.fromhex(each) if hexadecimal else bytes(each) for each in quote["pcrs"]]
    text = document[report]
    parts["hcl"] = base64.urlsafe_b64decode(text + "==") if hexadecimal else bytes(text)
    change(parts)
    for key in ("message", "signature"):
        quote[key] = parts[key].hex() if hexadecimal else list(parts[key])
    quote["pcrs"] = [each.hex() if hexadecimal else list(each) for each in parts["pcrs"]]
    document[report] = base64.urlsafe_b64encode(parts["hcl"]).decode() if hexadecimal else list(parts["hcl"])
    return json.dumps(document).encode()


def edit(part: str, at: int):
    def change(parts) -> None:
        data = bytearray(parts[part])
        data[at] ^= 1
        parts[part] = bytes(data)

    return change


@pytest.mark.parametrize("name", ALL)
def test_genuine_evidence_holds(name):
    claims = appraise(name, sample(name))
    assert claims.kind == KINDS[name]
    assert (claims.signature, claims.chain, claims.bindings, claims.freshness) == (True,) * 4
    assert (claims.hardware_rooted, claims.debug, claims.self_reported) == (True, False, False)
    assert claims.event_log is None
    assert {f"pcr{index}" for index in range(24)} <= set(claims.measurements)
    assert claims.properties["vm_secure_boot"] == "true"
    measured = "measurement" if name != TDX0 else "mrtd"
    assert len(claims.measurements[measured]) == 96


@pytest.mark.parametrize("name", ALL)
def test_rebuilt_evidence_is_the_same(name):
    assert appraise(name, changed(name, lambda parts: None)) == appraise(name, sample(name))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("asked", [b"challengf", b"challenge\0", report_data("t", bytes(32), bytes(32)), b""])
def test_another_nonce_is_not_fresh(name, asked):
    claims = appraise(name, sample(name), asked)
    assert claims.freshness is False
    assert "freshness" in claims.reasons
    assert appraise(name, sample(name), None).freshness is None


@pytest.mark.parametrize("name", ALL)
def test_what_breaks_is_named(name):
    signature = appraise(name, changed(name, edit("signature", 0)))
    assert (signature.signature, signature.hardware_rooted) == (False, False)
    assert signature.reasons["signature"] == "the TPM's quote is not signed by its key"
    message = appraise(name, changed(name, edit("message", 60)))
    assert (message.signature, message.hardware_rooted) == (False, False)

    def register(parts) -> None:
        parts["pcrs"][0] = bytes(32)

    registers = appraise(name, changed(name, register))
    assert (registers.signature, registers.bindings, registers.hardware_rooted) == (True, False, False)
    assert registers.reasons["bindings"] == "the registers are not those that were signed"


@pytest.mark.parametrize("name", ALL)
def test_another_key_in_runtime_data_is_not_what_hardware_signed(name):
    def key(parts) -> None:
        data = bytearray(parts["hcl"])
        at = data.index(b'"n":"') + 8
        data[at] = ord("A") if data[at] != ord("A") else ord("B")
        parts["hcl"] = bytes(data)

    claims = appraise(name, changed(name, key))
    assert (claims.signature, claims.bindings, claims.hardware_rooted) == (False, False, False)

    def setting(parts) -> None:
        parts["hcl"] = parts["hcl"].replace(b'"secure-boot":true', b'"secure-boot":null')

    claims = appraise(name, changed(name, setting))
    assert (claims.signature, claims.bindings, claims.hardware_rooted) == (True, False, False)


def test_registers_of_one_machine_under_the_report_of_another():
    # version 0 and 1 are of one machine; its TDX sibling's quote is by another key
    other = json.loads(sample(TDX0))["tpm_quote"]
    document = json.loads(sample(SNP0))
    document["quote"] = other
    claims = appraise(SNP0, json.dumps(document).encode())
    assert claims.signature is False
    assert claims.hardware_rooted is False


def test_evidence_of_another_kind_is_refused():
    for name, other in ((SNP0, TDX0), (SNP1, TDX0), (TDX0, SNP0), (TDX0, SNP1)):
        with pytest.raises(InputError):
            appraise(name, sample(other))
    document = json.loads(sample(TDX0))
    document["hcl_report"] = json.loads(sample(SNP0))["report"]
    with pytest.raises(InputError, match="other hardware"):
        appraise(TDX0, json.dumps(document).encode())


def test_a_quote_of_another_machine_beside_a_td_report():
    document = json.loads(sample(TDX0))
    document["td_quote"] = list(sample("tdx/phala_tdx_quote"))
    claims = appraise(TDX0, json.dumps(document).encode())
    assert claims.bindings is False
    assert "different" in claims.reasons["bindings"]
    assert claims.hardware_rooted is False


def test_without_its_root_nothing_is_rooted():
    claims = appraise(SNP0, sample(SNP0), endorsements={})
    assert claims.chain is not True
    assert claims.hardware_rooted is not True
    early = appraise(SNP0, sample(SNP0), at=datetime(2020, 1, 1, tzinfo=UTC))
    assert early.chain is False
    assert early.hardware_rooted is False


def test_an_event_log_that_does_not_replay():
    claims = appraise(SNP0, sample(SNP0), event_log=sample("tpm/eventlog_ubuntu2404_amd_sevsnp.bin"))
    assert claims.event_log is False


@pytest.mark.parametrize(
    "more",
    [{"endorsements": {"vcek": b""}}, {"runtime_data": b"{}"}, {"endorsements": {"collateral": b""}}],
)
def test_what_belongs_to_another_kind_is_refused(more):
    with pytest.raises(InputError):
        appraise(SNP0, sample(SNP0), **more)


@pytest.mark.parametrize(
    "at", [0, 4, 8, 12, 16, 20, 31, 32 + 1184, 32 + 1188, 32 + 1192, 32 + 1196, 32 + 1200, 2599]
)
def test_every_field_of_the_hcl_header_counts(at):
    for name in (SNP0, TDX0):
        with pytest.raises(InputError):
            appraise(name, changed(name, edit("hcl", at)))


def test_hcl_reports_are_whole():
    report = sample("azure_snp_vtpm/hcl-report.bin")
    parsed = hcl.parse_hcl(report)
    assert parsed.kind == "snp"
    assert parsed.hardware[0x50:0x70] == hashlib.sha256(parsed.raw_runtime).digest()
    for end in (0, 31, 1000, 1215, 1235, 2000):
        with pytest.raises(InputError):
            hcl.parse_hcl(report[:end])


@pytest.mark.parametrize("text", ["AAAB=", "A", "AB", "AA AA", "AA+A", "AAAA=", "ÄÄÄÄ", "AA\n"])
def test_base64_has_one_form(text):
    with pytest.raises(InputError):
        from_base64url(text, "n")


def test_base64_with_and_without_padding():
    assert from_base64url("AA==", "n") == from_base64url("AA", "n") == b"\0"


def held(claims: Claims) -> list[str]:
    return [name for name in Claims.__struct_fields__ if getattr(claims, name) is True]


@pytest.mark.parametrize("name", ALL)
def test_2000_bytes_of_the_document_count_or_are_white_space(name):
    data = sample(name)
    before = appraise(name, data)
    chosen = sorted(random.Random(7).sample(range(len(data)), 2000))  # noqa: S311
    document = json.loads(data)
    open_to_all = {entry for start, end, _ in azure.UNAUTHENTICATED for entry in range(start, end)}
    for at, other in flips(data, iter(chosen)):
        try:
            after = appraise(name, other)
        except InputError:
            continue
        if all(getattr(after, claim) is True for claim in held(before)):
            assert after == before, at
            if chr(data[at]).isspace():
                continue
            report = json.loads(other)["hcl_report"]  # what is left is what only the processor could check
            differ = [
                n for n, (a, b) in enumerate(zip(document["hcl_report"], report, strict=True)) if a != b
            ]
            assert name == TDX0, at
            assert set(differ) <= open_to_all, at


def unnoticed(name: str, step: int) -> set[int]:
    """Return the positions of the HCL report whose change changes nothing."""
    before, found = appraise(name, sample(name)), set()
    for at in range(0, 2600, step):
        try:
            after = appraise(name, changed(name, edit("hcl", at)))
        except InputError:
            continue
        if all(getattr(after, claim) is True for claim in held(before)):
            assert after == before, at
            found.add(at)
    return found


def listed() -> set[int]:
    return {at for start, end, _ in azure.UNAUTHENTICATED for at in range(start, end)}


def test_every_7th_byte_of_the_hcl_report_counts_or_is_listed():
    assert unnoticed(SNP0, 7) == set()
    assert unnoticed(TDX0, 7) == listed() & set(range(0, 2600, 7))


@pytest.mark.slow
def test_every_byte_of_the_hcl_report_counts_or_is_listed():
    assert unnoticed(SNP0, 1) == set()
    assert unnoticed(TDX0, 1) == listed()


def fuzz(name: str, amount: float | int, seed: int) -> None:
    before = appraise(name, sample(name))
    for other in mutations(sample(name), amount, seed):
        try:
            after = appraise(name, other)
        except InputError:
            continue
        if after.hardware_rooted and after.freshness:
            assert after.measurements == before.measurements


@pytest.mark.parametrize("name", ALL)
def test_mutations_are_refused_or_judged(name):
    fuzz(name, 300, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_fuzz(name):
    fuzz(name, fuzz_seconds(), 2)


@pytest.mark.slow
def test_fuzz_hcl_reports():
    for other in mutations(sample("azure_snp_vtpm/hcl-report.bin"), fuzz_seconds(), 3):
        try:
            hcl.parse_hcl(other).runtime.attestation_key()
        except InputError:
            continue
