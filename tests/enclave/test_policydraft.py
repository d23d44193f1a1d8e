"""A policy drafted from claims accepts those claims and little else, and widens nothing in silence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cloister.enclave.claims import Claims
from cloister.enclave.policydraft import draft_text, drafted
from cloister.enclave.policyfile import read_enclave_policy

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
SOUND: dict[str, Any] = {"signature": True, "chain": True, "freshness": True, "bindings": True}
SNP = Claims(
    kind="snp",
    **SOUND,
    debug=False,
    hardware_rooted=True,
    self_reported=False,
    measurements={"measurement": "ab12", "host_data": "cd34"},
)
SOFTWARE = Claims(
    kind="tpm",
    signature=True,
    freshness=True,
    bindings=True,
    event_log=True,
    hardware_rooted=False,
    self_reported=True,
    measurements={
        "pcr0": "00" * 32,
        "pcr11": "ab" * 32,
        "start:package": "cd" * 32,
        "start:policy": "ef" * 32,
    },
)


@pytest.mark.parametrize("claims", [SNP, SOFTWARE], ids=["snp", "software"])
def test_what_was_seen_is_accepted_and_another_image_is_not(claims: Claims) -> None:
    policy = drafted(claims, "as seen")
    assert policy.check(claims, NOON) == []
    name = next(iter(policy.measurements[0].values))
    other = msgspec.structs.replace(claims, measurements={**claims.measurements, name: "99"})
    assert any("none of the accepted images" in reason for reason in policy.check(other, NOON))


def test_hardware_pins_the_launch_and_allows_nothing() -> None:
    policy = drafted(SNP, "as seen")
    assert dict(policy.measurements[0].values) == {"measurement": "ab12"}
    assert not any((policy.allow_software_tee, policy.allow_self_reported, policy.allow_debug))
    assert policy.kinds == ("snp",)


def test_software_pins_the_program_and_says_what_it_is() -> None:
    policy = drafted(SOFTWARE, "as seen")
    assert dict(policy.measurements[0].values) == {"start:package": "cd" * 32}
    text = draft_text(policy, ["head", ""])
    assert text.startswith("# head\n#\n")
    assert "allow_software_tee = true       # NOT HARDWARE-PROTECTED" in text


@pytest.mark.parametrize(
    "change",
    [
        {"debug": True},
        {"freshness": None},
        {"chain": False},
        {"signature": False},
        {"hardware_rooted": False},
    ],
)
def test_what_is_wrong_stays_refused(change: dict[str, Any]) -> None:
    claims = msgspec.structs.replace(SNP, **change)
    assert drafted(claims, "as seen").check(claims, NOON)
    assert not drafted(claims, "as seen").allow_software_tee


def test_a_hardware_tpm_that_nobody_vouches_for_is_not_taken_for_software() -> None:
    claims = msgspec.structs.replace(SOFTWARE, chain=False)
    assert not drafted(claims, "as seen").allow_software_tee


def test_devices_are_counted() -> None:
    gpu = Claims(kind="nvidia-gpu", **SOUND)
    switch = Claims(kind="nvidia-switch", **SOUND)
    policy = drafted(msgspec.structs.replace(SNP, devices=(gpu, gpu, switch)), "as seen")
    assert (policy.gpu.count, policy.gpu.switches) == (2, 1)


@pytest.mark.parametrize("claims", [SNP, SOFTWARE, Claims(kind="tdx", measurements={"mrtd": "ab"})])
def test_the_text_reads_back(claims: Claims) -> None:
    gpu = Claims(kind="nvidia-gpu", **SOUND)
    for devices in ((), (gpu,)):
        policy = drafted(msgspec.structs.replace(claims, devices=devices), 'as "seen"')
        assert read_enclave_policy(draft_text(policy, ["x"]).encode()) == policy
