from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import msgspec
import pytest
from tests.enclave.fuzz import fuzz_seconds, mutations
from tests.enclave.kinds.nvidiaparts import MANIFEST, Device, Publisher, coco, hopper, machine, opaque, tag
from tests.enclave.kinds.verdicts import flipped, refused_or_same
from tests.enclave.pki import AT, p384
from tests.enclave.samples import sample

from cloister.enclave.claims import Claims
from cloister.enclave.evidence import Evidence
from cloister.enclave.kinds.nvidia import UNAUTHENTICATED, verify
from cloister.enclave.kinds.spdm import parse_report
from cloister.errors import InputError

YEAR = datetime(2024, 9, 1, tzinfo=UTC)


def with_report(evidence: Evidence, report: bytes) -> Evidence:
    return msgspec.structs.replace(evidence, evidence=report)


def test_a_hopper_gpu_holds() -> None:
    claims = verify(hopper(), at=YEAR, expected=None)
    assert (claims.signature, claims.chain, claims.bindings, claims.hardware_rooted) == (
        True,
        True,
        True,
        True,
    )
    assert (claims.freshness, claims.measurement_match, claims.revocation_checked) == (None, None, None)
    assert claims.properties["driver_version"] == "550.90.07"
    assert claims.properties["vbios_version"] == "96.00.9F.00.01"
    assert claims.platform == "41431d480fe5e87274"
    assert claims.self_reported is False


def test_a_report_in_a_longer_buffer_ends_where_spdm_says() -> None:
    evidence = coco()
    assert evidence.evidence[-1:] == b"\0"
    claims = verify(evidence, at=YEAR, expected=None)
    assert (claims.signature, claims.chain, claims.bindings) == (True, True, True)
    assert claims.properties["driver_version"] == "580.95.05"
    assert verify(with_report(evidence, evidence.evidence[:-1]), at=YEAR, expected=None) == claims
    for more in (b"\x01", bytes(3) + b"x"):
        with pytest.raises(InputError, match="more than zeros"):
            verify(with_report(evidence, evidence.evidence + more), at=YEAR, expected=None)


def test_eight_gpus_and_four_switches_of_one_machine_answer_one_nonce() -> None:
    nonce, gpus = machine("gpu")
    other, switches = machine("switch")
    assert (len(gpus), len(switches), nonce) == (8, 4, other)
    found = [verify(each, at=YEAR, expected=nonce) for each in (*gpus, *switches)]
    assert all(claims.signature and claims.chain and claims.freshness for claims in found)
    assert len({claims.platform for claims in found}) == 12
    assert {claims.properties["vbios_version"] for claims in found} == {"96.00.A5.00.01", "96.10.73.00.01"}
    assert {claims.properties.get("mode") for claims in found[:8]} == {"protected-pcie"}
    assert all(claims.bindings is True for claims in found[:8])
    assert all(claims.bindings is None for claims in found[8:])  # NVSwitches name no firmware id


def test_the_first_32_bytes_of_report_data_are_the_nonce() -> None:
    evidence = hopper()
    nonce = parse_report(evidence.evidence).nonce
    assert verify(evidence, at=YEAR, expected=nonce + b"x" * 32).freshness is True
    assert verify(evidence, at=YEAR, expected=nonce).freshness is True
    for wrong in (nonce[:31], b"x" * 64, bytes(32), b""):
        assert verify(evidence, at=YEAR, expected=wrong).freshness is False


def test_evidence_of_another_device_or_kind_is_refused() -> None:
    _, switches = machine("switch")
    with pytest.raises(InputError, match="nvidia-switch, not of nvidia-gpu"):
        verify(msgspec.structs.replace(switches[0], kind="nvidia-gpu"), at=YEAR, expected=None)
    with pytest.raises(InputError, match="nvidia-gpu, not of nvidia-switch"):
        verify(msgspec.structs.replace(hopper(), kind="nvidia-switch"), at=YEAR, expected=None)
    with pytest.raises(InputError, match="SPDM"):
        verify(with_report(hopper(), sample("snp/coco_test-report.bin")), at=YEAR, expected=None)
    chain = {"chain": sample("tdx/intel_sgx_root_ca.pem")}
    with pytest.raises(InputError, match="not of a device"):
        verify(msgspec.structs.replace(hopper(), endorsements=chain), at=YEAR, expected=None)


def test_parts_that_no_device_has_are_refused() -> None:
    evidence = hopper()
    for changed in (
        msgspec.structs.replace(evidence, endorsements={}),
        msgspec.structs.replace(evidence, endorsements={**evidence.endorsements, "crl": b"x"}),
        msgspec.structs.replace(evidence, event_log=b"x"),
        msgspec.structs.replace(evidence, runtime_data=b"x"),
    ):
        with pytest.raises(InputError):
            verify(changed, at=YEAR, expected=None)
    _, switches = machine("switch")
    given = {**switches[0].endorsements, "driver_rim": b"<x/>"}
    with pytest.raises(InputError, match="no driver_rim"):
        verify(msgspec.structs.replace(switches[0], endorsements=given), at=YEAR, expected=None)


def test_another_gpus_chain_does_not_fit_its_report() -> None:
    _, gpus = machine("gpu")
    claims = verify(
        msgspec.structs.replace(gpus[0], endorsements=gpus[1].endorsements), at=YEAR, expected=None
    )
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (False, True, False)
    assert claims.reasons["signature"] == "the report is not signed by the device's certificate"
    assert claims.measurement_match is None


def test_a_truncated_report_is_refused_at_every_length() -> None:
    evidence = hopper()
    for size in range(0, len(evidence.evidence)):
        with pytest.raises(InputError):
            parse_report(evidence.evidence[:size])


def test_a_chain_in_another_order_or_before_its_time_is_no_chain() -> None:
    evidence = hopper()
    blocks = evidence.endorsements["chain"].strip().split(b"-----END CERTIFICATE-----\n")
    certificates = [
        b.removesuffix(b"-----END CERTIFICATE-----") + b"-----END CERTIFICATE-----\n" for b in blocks
    ]
    assert len(certificates) == 5
    mixed = {"chain": b"".join(certificates[i] for i in (0, 2, 1, 3, 4))}
    claims = verify(msgspec.structs.replace(evidence, endorsements=mixed), at=YEAR, expected=None)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (True, False, False)
    assert "out of order" in claims.reasons["chain"]
    early = verify(evidence, at=datetime(2020, 1, 1, tzinfo=UTC), expected=None)
    assert (early.signature, early.chain) == (True, False)
    rootless = {"chain": b"".join(certificates[:4])}
    claims = verify(msgspec.structs.replace(evidence, endorsements=rootless), at=YEAR, expected=None)
    assert (claims.chain, "not a pinned root" in claims.reasons["chain"]) == (False, True)


def test_a_maker_of_devices_that_nobody_pinned_is_not_rooted() -> None:
    claims = verify(Device().evidence(), at=AT, expected=b"n" * 32)
    assert (claims.signature, claims.chain, claims.hardware_rooted, claims.freshness) == (
        True,
        False,
        False,
        True,
    )


def test_the_firmware_id_must_be_the_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(fwid=b"f" * 48)
    device.pin(monkeypatch)
    for named, bound in ((b"f" * 48, True), (b"g" * 48, False)):
        claims = verify(device.evidence(device.report(more=opaque(_20=named))), at=AT, expected=None)
        assert (claims.signature, claims.chain, claims.bindings) == (True, True, bound)
    assert verify(device.evidence(), at=AT, expected=None).bindings is None
    with pytest.raises(InputError, match="48 bytes"):
        verify(device.evidence(device.report(more=opaque(_20=b"f"))), at=AT, expected=None)


def test_a_report_signed_by_another_key_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    device.pin(monkeypatch)
    device.key = p384()
    claims = verify(device.evidence(), at=AT, expected=None)
    assert (claims.signature, claims.chain, claims.hardware_rooted) == (False, True, False)


def test_reports_of_another_form_are_refused() -> None:
    device = Device()
    good = device.report()
    one = device.report({1: bytes(48)})
    bad = {
        "no measurements": device.report({}),
        "index out of order": device.report({2: bytes(48)}),
        "field twice": device.report(more=opaque() + opaque()),
        "opaque cut": device.report(more=opaque()[:-1]),
        "opaque too long": device.report(more=b"\x63\0\x00\x05" + bytes(1280)),
        "text": device.report(more=opaque(_15=b"\x1b[2J")),
        "request": b"\x10" + good[1:],
        "no signature asked for": good[:2] + b"\0" + good[3:],
        "slot": good[:36] + b"\x08" + good[37:],
        "response": good[:37] + b"\x12" + good[38:],
        "reserved": good[:40] + b"\x01" + good[41:],
        "block size": one[:47] + b"\x34" + one[48:],
        "value size": one[:50] + b"\x2f" + one[51:],
        "record length": one[:42] + b"\x38" + one[43:],
    }
    accepted = []
    for what, report in bad.items():
        with contextlib.suppress(InputError):
            verify(device.evidence(report), at=AT, expected=None)
            accepted.append(what)
    assert accepted == []
    assert verify(device.evidence(good), at=AT, expected=None).signature is True


def test_no_sample_matches_the_one_manifest_there_is() -> None:
    evidence = hopper()
    given = {**evidence.endorsements, "driver_rim": sample(MANIFEST)}
    claims = verify(msgspec.structs.replace(evidence, endorsements=given), at=YEAR, expected=None)
    assert claims.measurement_match is None
    assert claims.reasons["measurement_match"] == "driver_rim is for GH100 545.00, not for 550.90.07"
    late = verify(
        msgspec.structs.replace(evidence, endorsements=given),
        at=datetime(2025, 9, 1, tzinfo=UTC),
        expected=None,
    )
    assert late.measurement_match is False
    assert "'HCC RIM L4 Signer' expired" in late.reasons["measurement_match"]


def matching(
    monkeypatch: pytest.MonkeyPatch, driver: str, firmware: str, more: bytes | None = None
) -> Claims:
    device, publisher = Device(), Publisher()
    device.pin(monkeypatch)
    publisher.pin(monkeypatch)
    report = device.report(more=more)
    given = {"driver_rim": publisher.sign(driver), "vbios_rim": publisher.sign(firmware)}
    return verify(device.evidence(report, **{k: v for k, v in given.items() if v}), at=AT, expected=None)


def block(number: int) -> bytes:
    return bytes([number]) * 48


def test_measurements_are_compared_with_both_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tag("550.1", {0: [block(1)], 8: [bytes(48), block(9)]})
    firmware = tag("96.00.9F.00.01", {35: [block(36)]})
    assert matching(monkeypatch, driver, firmware).measurement_match is True
    wrong = matching(monkeypatch, driver, tag("96.00.9F.00.01", {35: [block(9)], 63: [block(9)]}))
    assert wrong.measurement_match is False
    assert wrong.reasons["measurement_match"] == "measurements 35, 63 are not the reference values"
    beyond = matching(monkeypatch, driver, tag("96.00.9F.00.01", {64: [bytes(48)]}))
    assert beyond.measurement_match is False


def test_what_cannot_be_compared_is_unknown_and_never_true(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, firmware = tag("550.1", {0: [block(1)]}), tag("96.00.9F.00.01", {35: [block(36)]})
    for one, two, why in (
        (tag("551", {0: [block(1)]}), firmware, "driver_rim is for GH100 551, not for 550.1"),
        (driver, tag("96.00.9F.00.01", {0: [block(1)]}, product="GB100"), "vbios_rim is for GB100"),
        (driver, tag("96.00.9F.00.01", {9: [block(1)]}, inactive=True), "no reference value that counts"),
    ):
        claims = matching(monkeypatch, one, two)
        assert claims.measurement_match is None
        assert why in claims.reasons["measurement_match"]
    conflict = matching(monkeypatch, driver, tag("96.00.9F.00.01", {0: [block(1)]}))
    assert conflict.measurement_match is False
    assert conflict.reasons["measurement_match"] == "two manifests have measurement 0"


def test_one_measurement_counts_only_where_the_decoder_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, firmware = (
        tag("550.1", {0: [block(1)]}),
        tag("96.00.9F.00.01", {34: [block(35)], 35: [bytes(48)]}),
    )
    assert matching(monkeypatch, driver, firmware).measurement_match is False
    assert matching(monkeypatch, driver, firmware, opaque(_11=b"\x55")).measurement_match is True


def test_a_manifest_of_another_signer_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    device, publisher = Device(), Publisher()
    device.pin(monkeypatch)
    given = {"driver_rim": publisher.sign(tag("550.1", {0: [block(1)]}))}
    claims = verify(device.evidence(**given), at=AT, expected=None)
    assert (claims.chain, claims.measurement_match) == (True, False)
    assert "'Twin RIM CA' is not a pinned root" in claims.reasons["measurement_match"]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("which", ["hopper", "coco", "gpu", "switch"])
def test_one_bit_of_a_report_or_its_chain_changes_nothing_unnoticed(which: str, count: int) -> None:
    assert UNAUTHENTICATED == ()
    evidence = (
        {"hopper": hopper, "coco": coco}[which]() if which in ("hopper", "coco") else machine(which)[1][0]
    )
    before = verify(evidence, at=YEAR, expected=None)
    cut = len(evidence.evidence)

    def rejoined(data: bytes) -> Claims:
        changed = msgspec.structs.replace(evidence, evidence=data[:cut], endorsements={"chain": data[cut:]})
        return verify(changed, at=YEAR, expected=None)

    whole = evidence.evidence + evidence.endorsements["chain"].rstrip(b"\n")
    for position, altered in flipped(whole, count):
        assert refused_or_same(rejoined, before, altered) is True, position


@pytest.mark.slow
@pytest.mark.parametrize("which", ["gpu", "switch"])
def test_fuzz_no_bytes_make_a_report_raise_but_input_errors(which: str) -> None:
    evidence = machine(which)[1][0]
    for altered in mutations(evidence.evidence, fuzz_seconds() / 2, seed=9):
        with contextlib.suppress(InputError):
            verify(with_report(evidence, altered), at=YEAR, expected=None)


@pytest.mark.slow
def test_fuzz_no_bytes_make_a_devices_chain_raise_but_input_errors() -> None:
    evidence = hopper()
    for altered in mutations(evidence.endorsements["chain"], fuzz_seconds() / 3, seed=10):
        with contextlib.suppress(InputError):
            changed = msgspec.structs.replace(evidence, endorsements={"chain": altered})
            verify(changed, at=YEAR, expected=None)
