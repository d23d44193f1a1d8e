"""The enclave policy: every rule refuses what it names, and nothing else lets more through."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import Identity
from cloister.enclave.claims import Claims
from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy, GpuRules, Policies, Reference, TpmRules
from cloister.enclave.policyfile import (
    enclave_policy_path,
    load_enclave_policy,
    policy_toml,
    read_enclave_policy,
)
from cloister.errors import InputError, IntegrityError
from cloister.policy import sign_toml

AT = datetime(2026, 11, 1, tzinfo=UTC)
IMAGE = "ab" * 48
GOOD = Claims(
    kind="snp",
    signature=True,
    chain=True,
    tcb_consistent=True,
    debug=False,
    freshness=True,
    bindings=True,
    hardware_rooted=True,
    self_reported=False,
    measurements={"measurement": IMAGE},
    signers={"id_key_digest": "cd" * 48},
    tcb={"snp": 8, "bootloader": 3},
    platform="ef" * 64,
)


def but(claims: Claims = GOOD, **changes: Any) -> Claims:
    return msgspec.structs.replace(claims, **changes)


def refused(policy: EnclavePolicy, claims: Claims) -> list[str]:
    return [reason.split(":")[0] for reason in policy.check(claims, AT)]


ANYBODYS = [
    ("snp", {"host_data": "01"}),
    ("snp", {"report_data": "01", "family_id": "01"}),
    ("tdx", {"rtmr1": "01", "rtmr3": "01", "mrconfigid": "01"}),
    ("azure-snp-vtpm", {"pcr4": "01", "pcr7": "01"}),
    ("azure-tdx-vtpm", {"pcr4": "01", "rtmr2": "01"}),
    ("nitro", {"pcr16": "01", "pcr4": "01"}),
    ("tpm", {"pcr10": "01", "pcr16": "01"}),
    ("tpm", {"pcr4": "01", "pcr11": "01"}),
    ("azure-snp-vtpm", {"measurement": "01", "pcr12": "01"}),
]


@pytest.mark.parametrize(("kind", "values"), ANYBODYS)
def test_what_software_could_have_measured_itself_is_no_image(kind: Any, values: dict[str, str]) -> None:
    # a genuine machine of the attacker's own has these values, too; of a measured start the log was withheld
    claims = but(kind=kind, measurements=values, signers={}, tcb_status="UpToDate", self_reported=False)
    image = Reference("image", values)
    assert refused(EnclavePolicy(measurements=(image,)), claims) == ["measurements"]
    assert refused(EnclavePolicy(measurements=(image,), allow_self_reported=True), claims) == []


@pytest.mark.parametrize(
    ("kind", "values", "signers"),
    [
        ("snp", {"measurement": "01", "host_data": "01"}, {}),
        ("snp", {"host_data": "01"}, {"id_key_digest": "02"}),
        ("tdx", {"mrtd": "01", "rtmr3": "01"}, {}),
        ("sgx", {"mrenclave": "01"}, {}),
        ("azure-snp-vtpm", {"id_key_digest": "01", "pcr4": "01"}, {}),
        ("azure-tdx-vtpm", {"mrtd": "01", "pcr4": "01"}, {}),
        ("nitro", {"pcr0": "01"}, {}),
        ("tpm", {"pcr4": "01", "pcr9": "01"}, {}),
    ],
)
def test_what_was_measured_before_is_an_image(
    kind: Any, values: dict[str, str], signers: dict[str, str]
) -> None:
    claims = but(kind=kind, measurements=values, signers=signers, tcb_status="UpToDate")
    policy = EnclavePolicy(
        measurements=(Reference("image", values),),
        signers={name: (value,) for name, value in signers.items()},
    )
    assert refused(policy, claims) == []


def test_the_default_accepts_sound_fresh_hardware() -> None:
    assert EnclavePolicy().check(GOOD, AT) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"signature": False}, "signature"),
        ({"signature": None}, "signature"),
        ({"chain": None}, "chain"),
        ({"bindings": False}, "bindings"),
        ({"event_log": False}, "event_log"),
        ({"tcb_consistent": False}, "tcb_consistent"),
        ({"revocation_checked": False}, "revocation_checked"),
        ({"collateral_fresh": False}, "collateral_fresh"),
        ({"debug": True}, "debug"),
        ({"debug": None}, "debug"),
        ({"freshness": None}, "freshness"),
        ({"freshness": False}, "freshness"),
        ({"hardware_rooted": False}, "hardware_rooted"),
        ({"hardware_rooted": None}, "hardware_rooted"),
        ({"self_reported": True}, "self_reported"),
        ({"self_reported": None}, "self_reported"),
        ({"tcb_status": "OutOfDate"}, "tcb_statuses"),
        ({"kind": "tdx"}, "tcb_statuses"),  # without collateral its maker's verdict is unknown
        ({"devices": (but(kind="nvidia-gpu", signature=False),)}, "device 0"),
        ({"devices": (but(kind="nvidia-gpu", freshness=None),)}, "device 0"),
        ({"devices": (GOOD,)}, "device 0"),
    ],
)
def test_the_default_refuses(changes: dict[str, Any], rule: str) -> None:
    assert rule in refused(EnclavePolicy(), but(**changes))


def test_what_software_vouches_for_is_named_so() -> None:
    claims = but(kind="tpm", hardware_rooted=False, reasons={"hardware_rooted": "a software TPM (swtpm)"})
    assert EnclavePolicy().check(claims, AT) == [
        "hardware_rooted: a software TPM (swtpm); it is not hardware-protected"
    ]
    soft = EnclavePolicy(allow_software_tee=True)
    assert soft.check(claims, AT) == []
    assert soft.check(but(claims, chain=None), AT) == []
    assert refused(soft, but(claims, chain=False)) == ["chain"]
    assert refused(soft, but(claims, chain=None, hardware_rooted=True)) == ["chain"]
    assert refused(soft, but(chain=None)) == ["chain"]


@pytest.mark.parametrize(
    ("rules", "changes", "rule"),
    [
        ({"kinds": ("tdx",)}, {}, "kinds"),
        ({"tcb_floor": {"snp": 9}}, {}, "tcb_floor"),
        ({"tcb_floor": {"microcode": 1}}, {}, "tcb_floor"),
        ({"rejected_advisories": ("INTEL-SA-1",)}, {"advisories": ("INTEL-SA-1",)}, "rejected_advisories"),
        ({"rejected_advisories": ("X",)}, {"kind": "tdx", "tcb_status": "UpToDate"}, "rejected_advisories"),
        ({"require_revocation": True}, {}, "require_revocation"),
        ({"measurements": (Reference("other", {"measurement": "00"}),)}, {}, "measurements"),
        (
            {"measurements": (Reference("two", {"measurement": IMAGE, "host_data": "00"}),)},
            {},
            "measurements",
        ),
        ({"signers": {"id_key_digest": ("00",)}}, {}, "signers"),
        ({"signers": {"author": ("00",)}}, {}, "signers"),
        ({"platforms": ("00",)}, {}, "platforms"),
        ({"platforms": ("00",)}, {"platform": None}, "platforms"),
        ({"collateral_max_age_days": 5}, {"collateral_fresh": True}, "collateral_max_age_days"),
        ({"gpu": GpuRules(count=1)}, {}, "[gpu] count"),
        ({"gpu": GpuRules(switches=1)}, {}, "[gpu] switches"),
    ],
)
def test_every_rule_refuses(rules: dict[str, Any], changes: dict[str, Any], rule: str) -> None:
    assert rule in refused(EnclavePolicy(**rules), but(**changes))


def test_an_image_is_accepted_when_all_of_its_values_are_there() -> None:
    image = Reference("worker", {"measurement": IMAGE, "id_key_digest": "cd" * 48})
    assert EnclavePolicy(measurements=(Reference("old", {"measurement": "00"}), image)).check(GOOD, AT) == []


def test_a_grace_period_ends() -> None:
    late = but(
        kind="tdx",
        tcb_status="OutOfDate",
        properties={"tcb_date": (AT - timedelta(days=10)).isoformat()},
    )
    assert EnclavePolicy(grace_days=10).check(late, AT) == []
    assert refused(EnclavePolicy(grace_days=9), late) == ["tcb_statuses"]
    assert refused(EnclavePolicy(grace_days=3650), but(late, properties={})) == ["tcb_statuses"]
    assert refused(EnclavePolicy(grace_days=3650), but(late, tcb_status="Revoked")) == ["tcb_statuses"]


def gpu(number: int, **properties: str) -> Claims:
    return but(kind="nvidia-gpu", platform=f"{number:02x}", properties=properties)


def test_gpus_are_counted_once_each() -> None:
    policy = EnclavePolicy(gpu=GpuRules(count=2, drivers=("550.1",)))
    good = gpu(1, driver_version="550.1"), gpu(2, driver_version="550.1")
    assert policy.check(but(devices=good), AT) == []
    assert refused(policy, but(devices=(good[0], good[0]))) == ["[gpu] count", "[gpu] count"]
    assert "device 1" in refused(policy, but(devices=(good[0], gpu(2, driver_version="1"))))
    assert "device 1" in refused(policy, but(devices=(good[0], gpu(2))))


claims_of = st.builds(
    lambda **changes: but(**changes),
    signature=st.sampled_from([True, False, None]),
    debug=st.sampled_from([True, False, None]),
    freshness=st.sampled_from([True, False, None]),
    hardware_rooted=st.sampled_from([True, False, None]),
    kind=st.sampled_from(["snp", "tpm", "tdx"]),
    tcb_status=st.sampled_from([None, "UpToDate", "OutOfDate"]),
)
policy_of = st.builds(
    EnclavePolicy,
    allow_debug=st.booleans(),
    allow_unbound=st.booleans(),
    allow_software_tee=st.booleans(),
    tcb_statuses=st.sampled_from([("UpToDate",), ("UpToDate", "OutOfDate")]),
    platforms=st.sampled_from([(), ("00",), ("ef" * 64,)]),
)


@given(parts=st.lists(policy_of, max_size=3), more=policy_of, claims=claims_of)
def test_another_policy_never_lets_more_through(
    parts: list[EnclavePolicy], more: EnclavePolicy, claims: Claims
) -> None:
    accepted = [not policy.check(claims, AT) for policy in (*parts, more)]
    assert (not Policies((*parts, more)).check(claims, AT)) == all(accepted)


def test_whom_two_policies_believe_about_tpms_both_do() -> None:
    one, two, key = "11" * 32, "22" * 32, "33" * 32
    left = EnclavePolicy(tpm=TpmRules({one: "A", two: "B"}, {one: key, two: key}))
    right = EnclavePolicy(tpm=TpmRules({two: "B"}, {one: key, two: "44" * 32}))
    assert Policies((left,)).tpm == left.tpm
    assert Policies((left, right)).tpm == TpmRules({two: "B"}, {one: key})
    assert Policies((left, EnclavePolicy())).tpm == TpmRules()
    assert Policies(()).tpm == TpmRules()


def test_no_policy_accepts_nothing() -> None:
    assert Policies(()).check(GOOD, AT) != []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kinds = []", "kinds"),
        ('kinds = ["nvidia-gpu"]', "device"),
        ('kinds = ["snp"]\nallow_software_tee = true', "no kind that software makes"),
        ("require_measurement = true", "none is given"),
        ('grace_days = 3\ntcb_statuses = ["UpToDate", "OutOfDate"]', "for ever"),
        ('[gpu]\ndrivers = ["1"]', "no GPU"),
        ('[[measurements]]\nname = "a"\nvalues = {}', "measurements"),
        ('[[measurements]]\nname = "a"\nvalues = { m = "AB" }', "measurements"),
        ("allow_sofware_tee = true", "allow_software_tee"),
        ("[gpu]\ncounts = 3", "count"),
        ('measurements = [{name="a",values={m="00"}},{name="a",values={m="01"}}]', "one name"),
    ],
)
def test_a_policy_that_contradicts_itself_or_is_mistyped_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        read_enclave_policy(text.encode())


def test_a_policy_can_be_written_down() -> None:
    policy = EnclavePolicy(
        kinds=("tpm",),
        allow_software_tee=True,
        tcb_floor={"snp": 3},
        collateral_max_age_days=3,
        measurements=(Reference('a "name"\x7f', {"start:package": "00"}),),
        signers={"id_key_digest": ("00", "11")},
        gpu=GpuRules(count=2, drivers=("1",)),
        tpm=TpmRules({"11" * 32: "maker"}),
    )
    assert read_enclave_policy(policy_toml(policy)) == policy
    assert policy_toml(EnclavePolicy()) == b""


def test_a_home_without_a_policy_has_the_default(tmp_path: Any) -> None:
    owner = Identity.generate("owner")
    assert load_enclave_policy(tmp_path, owner.public) == EnclavePolicy()


def test_a_policy_is_signed_by_its_owner(tmp_path: Any) -> None:
    owner, path = Identity.generate("owner"), enclave_policy_path(tmp_path)
    path.parent.mkdir()
    path.write_text('kinds = ["tpm"]\nallow_software_tee = true\n')
    with pytest.raises(InputError):
        load_enclave_policy(tmp_path, owner.public)
    sign_toml(path, EnclavePolicy, ENCLAVE_POLICY, [owner])
    assert load_enclave_policy(tmp_path, owner.public).allow_software_tee
    path.write_text('kinds = ["tpm"]\nallow_software_tee = true\nallow_debug = true\n')
    with pytest.raises(IntegrityError):
        load_enclave_policy(tmp_path, owner.public)
    path.unlink()
    with pytest.raises(InputError):  # its signature alone is no policy, and not the default either
        load_enclave_policy(tmp_path, owner.public)
