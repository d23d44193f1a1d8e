from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest
from tests.enclave.kinds.intelparts import Maker, p256, qe_report, sgx_extension, sgx_report, td_report
from tests.enclave.pki import AT
from tests.enclave.samples import sample

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence, Kind
from cloister.enclave.kinds.intel import QuotePolicy, quote_refusals, verify, verify_quote
from cloister.errors import InputError

JUNE = datetime(2025, 6, 20, 10, 16, 3, tzinfo=UTC)
FEBRUARY = datetime(2026, 2, 19, 10, 58, 51, tzinfo=UTC)
COS = datetime(2024, 10, 1, tzinfo=UTC)
V5 = datetime(2026, 2, 1, tzinfo=UTC)


def collateral(path: str) -> dict[str, bytes]:
    return {"collateral": sample(path)}


def phala() -> Claims:
    given = collateral("tdx/phala_tdx_quote_collateral.json")
    return verify_quote(sample("tdx/phala_tdx_quote"), given, at=JUNE)


def test_a_tdx_quote_of_an_up_to_date_platform_holds() -> None:
    claims = phala()
    assert (claims.kind, claims.signature, claims.chain, claims.hardware_rooted) == ("tdx", True, True, True)
    assert (claims.collateral_fresh, claims.revocation_checked, claims.tcb_consistent) == (True, True, True)
    assert (claims.tcb_status, claims.advisories, claims.debug) == ("UpToDate", (), False)
    assert claims.self_reported is False
    assert claims.reasons == {}
    assert claims.measurements["mrtd"].startswith("91eb2b44d141d4ec")
    assert claims.platform == "811dca2a26b952e85bb6448b097ba4fd"
    assert claims.properties["fmspc"] == "b0c06f000000"
    assert claims.properties["tcb_date"] == "2024-03-13T00:00:00Z"
    assert claims.properties["collateral_issued"] == "2025-06-19T10:16:03Z"
    assert claims.properties["collateral_expires"] == "2025-07-19T10:00:35Z"
    assert claims.tcb["tcb_evaluation"] == 17


def test_an_sgx_quote_says_what_its_platform_needs() -> None:
    given = collateral("sgx/phala_sgx_quote_collateral.json")
    claims = verify_quote(sample("sgx/phala_sgx_quote"), given, at=JUNE)
    assert (claims.kind, claims.signature, claims.chain) == ("sgx", True, True)
    assert claims.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert claims.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.measurements["mrenclave"].startswith("33d8736db756ed49")
    assert claims.signers["mrsigner"].startswith("815f42f11cf64430")


def test_a_platform_below_every_level_is_not_supported() -> None:
    given = collateral("tdx/phala_tdx_quote_outdated_collateral.json")
    claims = verify_quote(sample("tdx/phala_tdx_quote_outdated"), given, at=FEBRUARY)
    assert (claims.signature, claims.chain, claims.collateral_fresh) == (True, True, True)
    assert (claims.tcb_status, claims.advisories) == ("NotSupported", None)
    assert claims.reasons["tcb_status"] == "the platform is below every level that Intel lists"


def test_quotes_without_collateral_hold_and_nothing_is_known_of_firmware() -> None:
    for path, at in (("tdx/google_quote_v5_sample.dat", V5), ("tdx/google_cos113_quote.dat", COS)):
        claims = verify_quote(sample(path), {}, at=at)
        assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, True, True)
        unknown = (claims.tcb_status, claims.advisories, claims.collateral_fresh, claims.revocation_checked)
        assert unknown == (None, None, None, None)
        assert claims.reasons["tcb_status"] == "no collateral was given"


def test_a_tds_event_log_replays_and_its_nonce_is_what_was_asked_for() -> None:
    log, nonce = sample("tdx/google_cos113_ccel_data.dat"), sample("tdx/google_cos113_nonce.dat")
    evidence = Evidence("tdx", sample("tdx/google_cos113_quote.dat"), event_log=log)
    claims = verify(evidence, at=COS, expected=nonce)
    assert (claims.freshness, claims.event_log, claims.chain) == (True, True, True)


def test_an_event_log_that_leaves_an_event_out_does_not_replay() -> None:
    other = Evidence(
        "tdx", sample("tdx/phala_tdx_quote"), event_log=sample("tdx/google_cos113_ccel_data.dat")
    )
    claims = verify(other, at=JUNE, expected=None)
    assert claims.event_log is False
    assert claims.reasons["event_log"] == "the event log does not replay to RTMR 0"


def test_another_nonce_is_not_fresh_and_none_is_unknown() -> None:
    evidence = Evidence("tdx", sample("tdx/phala_tdx_quote"))
    assert verify(evidence, at=JUNE, expected=b"x" * 64).freshness is False
    assert verify(evidence, at=JUNE, expected=b"").freshness is False
    assert verify(evidence, at=JUNE, expected=None).freshness is None


def test_collateral_from_the_future_and_expired_collateral_are_named() -> None:
    given = collateral("sgx/phala_sgx_quote_collateral.json")
    quote = sample("sgx/phala_sgx_quote")
    early = verify_quote(quote, given, at=JUNE - timedelta(days=30))
    late = verify_quote(quote, given, at=JUNE + timedelta(days=60))
    for claims, word in ((early, "from the future"), (late, "expired")):
        assert (claims.signature, claims.chain) == (True, True)
        assert (claims.collateral_fresh, claims.revocation_checked) == (False, False)
        assert (claims.tcb_status, claims.advisories) == (None, None)
        assert word in claims.reasons["collateral_fresh"]
        assert claims.reasons["tcb_status"] == "the collateral does not hold"


def test_before_its_platform_was_certified_a_quote_has_no_chain() -> None:
    given = collateral("tdx/phala_tdx_quote_collateral.json")
    claims = verify_quote(sample("tdx/phala_tdx_quote"), given, at=JUNE - timedelta(days=300))
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert (claims.collateral_fresh, claims.revocation_checked, claims.tcb_status) == (False, None, None)
    assert "valid only from 2025-02-06" in claims.reasons["chain"]


def test_collateral_of_another_platform_decides_nothing() -> None:
    given = collateral("tdx/phala_tdx_quote_collateral.json")
    claims = verify_quote(sample("tdx/google_cos113_quote.dat"), given, at=JUNE)
    assert (claims.tcb_consistent, claims.tcb_status, claims.advisories) == (False, None, None)
    assert claims.reasons["tcb_consistent"] == "the collateral is for another platform"


def test_evidence_of_another_kind_is_refused() -> None:
    for kind, path in (("sgx", "tdx/phala_tdx_quote"), ("tdx", "sgx/phala_sgx_quote")):
        made: Kind = "sgx" if kind == "sgx" else "tdx"
        with pytest.raises(InputError, match="not of"):
            verify(Evidence(made, sample(path)), at=JUNE, expected=None)
    with pytest.raises(InputError, match="not a quote"):
        verify_quote(sample("snp/coco_test-report.bin"), {}, at=JUNE)


def test_unknown_endorsements_and_an_enclaves_event_log_are_refused() -> None:
    with pytest.raises(InputError, match="unknown endorsements: vcek"):
        verify(Evidence("tdx", sample("tdx/phala_tdx_quote"), {"vcek": b"x"}), at=JUNE, expected=None)
    with pytest.raises(InputError, match="no event log"):
        verify(Evidence("sgx", sample("sgx/phala_sgx_quote"), event_log=b"x"), at=JUNE, expected=None)


def test_a_truncated_quote_is_refused_at_every_length() -> None:
    quote = sample("tdx/phala_tdx_quote")
    end = 4936  # zeros follow
    for size in [*range(0, 700), *range(700, end, 97), end - 1]:
        with pytest.raises(InputError):
            verify_quote(quote[:size], {}, at=JUNE)
    assert verify_quote(quote[:end], {}, at=JUNE) == verify_quote(quote, {}, at=JUNE)


def test_after_a_quote_there_may_be_zeros_and_nothing_else() -> None:
    quote = sample("sgx/phala_sgx_quote")
    assert verify_quote(quote + bytes(1000), {}, at=JUNE) == verify_quote(quote, {}, at=JUNE)
    for more in (b"\x01", bytes(100) + b"x"):
        with pytest.raises(InputError, match="more than zeros"):
            verify_quote(quote + more, {}, at=JUNE)


def test_runtime_data_must_hash_to_the_report_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    maker = Maker()
    maker.pin(monkeypatch)
    quote = maker.quote(td_report(report_data=hashlib.sha512(b"key").digest()))
    for data, holds in ((b"key", True), (b"other", False), (None, None)):
        assert verify(Evidence("tdx", quote, runtime_data=data), at=AT, expected=None).bindings is holds
    short = maker.quote(sgx_report(report_data=hashlib.sha256(b"key").digest() + bytes(32)))
    assert verify(Evidence("sgx", short, runtime_data=b"key"), at=AT, expected=None).bindings is True


def test_certificates_in_the_wrong_order_are_no_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    maker.pin(monkeypatch)
    right = verify_quote(maker.quote(td_report()), {}, at=AT)
    assert (right.signature, right.chain) == (True, True)
    mixed = maker.pck.pem + maker.root.pem + maker.authority.pem
    claims = verify_quote(maker.quote(td_report(), chain=mixed), {}, at=AT)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert "out of order" in claims.reasons["chain"]
    with pytest.raises(InputError, match="no SGX extension"):
        verify_quote(maker.quote(td_report(), chain=maker.root.pem + maker.pck.pem), {}, at=AT)


def test_another_root_is_not_pinned() -> None:
    claims = verify_quote(Maker().quote(td_report()), {}, at=AT)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert claims.reasons["chain"] == "'Twin Root CA' is not a pinned root"


def test_debug_is_seen_in_tds_and_in_enclaves(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    maker.pin(monkeypatch)
    for bits in (0x01, 0x02, 0x80):  # the debug bit, and the reserved bits of TD under debug
        attributes = bytes([bits, 0, 0, 0x10, 0, 0, 0, 0])
        assert verify_quote(maker.quote(td_report(attributes=attributes)), {}, at=AT).debug is True
    assert verify_quote(maker.quote(td_report()), {}, at=AT).debug is False
    sgx = maker.quote(sgx_report(attributes=b"\x07" + bytes(15)))
    assert verify_quote(sgx, {}, at=AT).debug is True
    assert verify_quote(maker.quote(sgx_report()), {}, at=AT).debug is False


def test_every_link_of_the_signatures_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    maker.pin(monkeypatch)
    others = Maker(root=maker.root)
    cases = {
        "not signed by the attestation key": maker.quote(td_report(), signed_by=p256()),
        "for another attestation key": maker.quote(td_report(), qe=qe_report(False)),
        "not signed by the PCK certificate": maker.quote(
            td_report(), chain=others.pck.pem + others.authority.pem + maker.root.pem
        ),
    }
    for why, quote in cases.items():
        claims = verify_quote(quote, {}, at=AT)
        assert (claims.signature, claims.chain, claims.hardware_rooted) == (False, True, False), why
        assert why in claims.reasons["signature"]


def test_a_quoting_enclave_in_debug_mode_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from tests.enclave.kinds.intelparts import point

    maker, key = Maker(), p256()
    maker.pin(monkeypatch)
    committed = hashlib.sha256(point(key) + bytes(range(32))).digest() + bytes(32)
    qe = qe_report(False, report_data=committed, attributes=b"\x07" + bytes(15))
    claims = verify_quote(maker.quote(td_report(), qe=qe, key=key), {}, at=AT)
    assert claims.reasons["signature"] == "the quoting enclave runs in debug mode"


def test_a_quoting_enclave_of_the_platforms_owner_vouches_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # whoever owns a platform can launch an enclave of his own, and have the provisioning enclave certify its
    # report under the genuine PCK certificate: its quotes would say whatever he likes
    import hashlib

    from tests.enclave.kinds.intelparts import point

    maker, key = Maker(), p256()
    maker.pin(monkeypatch)
    committed = hashlib.sha256(point(key) + bytes(range(32))).digest() + bytes(32)
    for body, sgx in ((td_report(), False), (sgx_report(), True)):
        for qe in (
            qe_report(sgx, report_data=committed, mrsigner=b"\5" * 32),
            qe_report(sgx, report_data=committed, isv_prod_id=b"\3\0"),
            qe_report(not sgx, report_data=committed),
        ):
            claims = verify_quote(maker.quote(body, qe=qe, key=key), {}, at=AT)
            assert (claims.signature, claims.chain, claims.hardware_rooted) == (False, True, False)
            assert claims.reasons["signature"] == "the quoting enclave is not Intel's"


def test_a_td_that_may_be_migrated_counts_as_one_under_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    maker.pin(monkeypatch)
    claims = verify_quote(maker.quote(td_report(attributes=bytes(3) + b"\x30" + bytes(4))), {}, at=AT)
    assert claims.debug is True
    assert "migrated" in claims.reasons["debug"]


def test_a_platform_certificate_must_name_its_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for without in (1, 2, 3, 4):
        maker = Maker(extension=sgx_extension(without=without))
        maker.pin(monkeypatch)
        with pytest.raises(InputError, match="SGX extension"):
            verify_quote(maker.quote(td_report()), {}, at=AT)


def test_certificates_in_another_form_of_pem_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    chain = maker.pck.pem + b"\n" + maker.authority.pem + maker.root.pem
    with pytest.raises(InputError, match="canonical PEM"):
        verify_quote(maker.quote(td_report(), chain=chain), {}, at=AT)


def test_the_options_of_a_quote_policy_are_exposed() -> None:
    quote, given = sample("sgx/phala_sgx_quote"), collateral("sgx/phala_sgx_quote_collateral.json")
    needed = ("ConfigurationAndSWHardeningNeeded",)

    def refusals(policy: QuotePolicy) -> str:
        return " ".join(quote_refusals(quote, given, at=JUNE, policy=policy))

    assert "ConfigurationAndSWHardeningNeeded is not acceptable" in refusals(QuotePolicy())
    assert refusals(QuotePolicy(statuses=needed)) == ""
    assert "INTEL-SA-00615" in refusals(QuotePolicy(needed, rejected_advisories=("INTEL-SA-00615",)))
    assert "below minimum 18" in refusals(QuotePolicy(needed, min_tcb_evaluation=18))
    assert "SGX type 0" in refusals(QuotePolicy(needed, sgx_types=(1,)))
    with pytest.raises(InputError, match="cannot be"):
        refusals(QuotePolicy(("Splendid",)))
    with pytest.raises(InputError, match="needs collateral"):
        quote_refusals(quote, {}, at=JUNE, policy=QuotePolicy())


def test_a_strict_quote_policy_refuses_platforms_that_may_grow() -> None:
    quote, given = sample("tdx/phala_tdx_quote"), collateral("tdx/phala_tdx_quote_collateral.json")
    steps = [
        (QuotePolicy(), "Dynamic platform"),
        (QuotePolicy(dynamic_platform=True), "Cached keys"),
        (QuotePolicy(dynamic_platform=True, cached_keys=True), "SMT"),
    ]
    for policy, why in steps:
        assert why in quote_refusals(quote, given, at=JUNE, policy=policy)[0]
    accepted = QuotePolicy(dynamic_platform=True, cached_keys=True, smt=True)
    assert quote_refusals(quote, given, at=JUNE, policy=accepted) == []
    late = quote_refusals(quote, given, at=JUNE + timedelta(days=60), policy=accepted)
    assert late == ["TCBInfo expired"]


def test_without_dcap_qvl_collateral_is_refused_and_quotes_alone_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(InputError, match=r"Install cloister\[enclave\]"):
        phala()
    assert verify_quote(sample("tdx/phala_tdx_quote"), {}, at=JUNE).chain is True
