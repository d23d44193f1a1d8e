"""The broker with evidence of a real attester, the real appraisal and a real policy. NOT HARDWARE-PROTECTED."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.broker.world import KEK, Home, filled, identity, worker

from cloister.enclave import Evidence
from cloister.enclave.appraise import appraiser
from cloister.enclave.attester import Measured, find_attester, measure, why_no_swtpm
from cloister.enclave.attester.attest import TpmAttester
from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.attester.swtpm import SoftwareTpm
from cloister.enclave.broker import BrokerKeys
from cloister.enclave.policy import EnclavePolicy, Reference
from cloister.errors import IntegrityError, PolicyRefused

pytestmark = pytest.mark.skipif(why_no_swtpm() is not None, reason=str(why_no_swtpm()))


@pytest.fixture(scope="module")
def measured() -> tuple[Measured, ...]:
    return measure(plan=b"a plan", policy=b"a policy")


@pytest.fixture
def home(tmp_path: Path, measured: tuple[Measured, ...]) -> Iterator[Home]:
    """A broker that accepts a software TPM, whose package is the one that runs here."""
    made = Home(tmp_path / "broker")
    package = next(each.digest for each in measured if each.name == "package")
    policy = EnclavePolicy(
        kinds=("tpm",),
        allow_software_tee=True,
        allow_self_reported=True,
        measurements=(Reference("this package", {"start:package": package}),),
    )
    made.broker.releases._appraise = appraiser(policy)
    yield made
    made.close()


@pytest.fixture
def attester(tmp_path: Path, measured: tuple[Measured, ...]) -> Iterator[TpmAttester]:
    found = find_attester(tmp_path / "tpm", software_allowed=True, measured=measured)
    assert isinstance(found, TpmAttester)
    yield found
    found.close()


def keys_of(home: Home, attester: object) -> BrokerKeys:
    return BrokerKeys(home.connect, identity("broker").public, worker=worker(attester))  # type: ignore[arg-type]


def test_a_worker_with_a_software_tpm_gets_its_keys_and_everything_says_what_that_is(
    home: Home, attester: TpmAttester
) -> None:
    wrapped = filled(home)
    keys = keys_of(home, attester)
    assert keys.unwrap(KEK, wrapped) == b"k" * 32
    assert keys._worker is not None
    assert keys._worker.hardware is False
    found = home.entries()[-1]["appraised"]
    assert found["protection"] == "not hardware-protected"  # type: ignore[index]
    assert found["self_reported"] is True  # type: ignore[index]


def test_the_default_policy_refuses_it(home: Home, attester: TpmAttester) -> None:
    wrapped = filled(home)
    home.broker.releases._appraise = appraiser(EnclavePolicy())
    with pytest.raises(PolicyRefused, match="not hardware-protected"):
        keys_of(home, attester).unwrap(KEK, wrapped)
    assert home.entries()[-1]["entry"] == "refused"


def test_one_byte_of_the_package_and_the_broker_refuses(
    home: Home, tmp_path: Path, measured: tuple[Measured, ...]
) -> None:
    wrapped = filled(home)
    changed = tuple(
        each._replace(digest="0" + each.digest[1:] if each.digest[0] != "0" else "1" + each.digest[1:])
        if each.name == "package"
        else each
        for each in measured
    )
    other = find_attester(tmp_path / "other", software_allowed=True, measured=changed)
    try:
        with pytest.raises(PolicyRefused, match="none of the accepted images"):
            keys_of(home, other).unwrap(KEK, wrapped)
    finally:
        other.close()
    assert "this package" in str(home.entries()[-1]["reasons"])


class _Altering:
    """An attester whose evidence somebody changes on its way."""

    def __init__(self, inner: TpmAttester) -> None:
        self.inner, self.position = inner, 0

    def attest(self, report_data: bytes) -> Evidence:
        made = self.inner.attest(report_data)
        data = bytearray(made.evidence)
        data[self.position % len(data)] ^= 1
        return Evidence(made.kind, bytes(data), made.endorsements, made.event_log)


def test_altered_evidence_is_refused(home: Home, attester: TpmAttester) -> None:
    wrapped = filled(home)
    altering = _Altering(attester)
    keys = keys_of(home, altering)
    for position in range(0, 2000, 23):
        altering.position = position
        with pytest.raises(PolicyRefused):
            keys.unwrap(KEK, wrapped)
    assert home.owner().inventory().permissions[0].used == 0


def test_evidence_of_a_quote_for_somebody_else_is_stale(home: Home, attester: TpmAttester) -> None:
    wrapped = filled(home)

    class _Another:
        def attest(self, report_data: bytes) -> Evidence:
            return attester.attest(bytes(64))

    with pytest.raises(PolicyRefused, match="freshness"):
        keys_of(home, _Another()).unwrap(KEK, wrapped)


def test_a_counter_of_a_tpm_anchors_the_store(tmp_path: Path) -> None:
    with SoftwareTpm(tmp_path / "tpm") as software:
        home = Home(tmp_path / "broker", NvCounter(software.tpm, "cloister broker test"))
        wrapped = filled(home)
        assert home.worker().unwrap(KEK, wrapped) == b"k" * 32
        home.restart()
        assert home.owner().inventory().permissions[0].used == 1
        home.close()
        home.counter = NvCounter(software.tpm, "another counter")
        with pytest.raises(IntegrityError, match="another TPM"):
            home._open()
