"""A TPM that answers: its quotes verify, its credential activation succeeds, and it is called software."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.enclave.attester.attest import TpmAttester
from cloister.enclave.attester.swtpm import SoftwareTpm, why_no_swtpm
from cloister.enclave.attester.tpm import Tpm
from cloister.enclave.eventlog import StartLog
from cloister.enclave.evidence import report_data
from cloister.enclave.kinds import tpm as kind
from cloister.enclave.kinds.activation import challenge
from cloister.enclave.kinds.tpmwire import load_spki, parse_public
from cloister.errors import CloisterError

AT = datetime(2026, 6, 1, tzinfo=UTC)
ASKED = report_data("test", bytes(32), bytes(32))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Tpm]:
    missing = why_no_swtpm()
    if missing:
        pytest.skip(missing)
    pytest.importorskip("tpm2_pytss")
    with SoftwareTpm(tmp_path / "swtpm") as software:
        yield software.tpm


def test_its_quote_verifies_and_is_called_software(machine):
    log = StartLog()
    for pcr, name in ((11, "interpreter"), (12, "package"), (11, "plan")):
        machine.extend(pcr, log.extend(pcr, name, "ab" * 32, "3.11"))
    evidence = TpmAttester(machine, log=log).attest(ASKED)
    claims = kind.verify(evidence, at=AT, expected=ASKED)
    assert (claims.signature, claims.bindings, claims.freshness, claims.event_log) == (True,) * 4
    assert claims.measurements["start:plan"] == "ab" * 32
    assert claims.hardware_rooted is False
    assert claims.reasons["hardware_rooted"] == "a software TPM (swtpm)"
    assert claims.self_reported is True
    assert claims.software_only
    assert kind.verify(evidence, at=AT, expected=ASKED[::-1]).freshness is False


def test_what_its_log_leaves_out_is_noticed(machine):
    log = StartLog()
    machine.extend(13, log.extend(13, "package", "ab" * 32))
    machine.extend(13, bytes(32))  # something that is not in the log
    claims = kind.verify(TpmAttester(machine, log=log).attest(ASKED), at=AT, expected=ASKED)
    assert claims.event_log is False


def test_it_answers_a_challenge_to_its_keys(machine):
    offer = challenge(load_spki(machine.spki("ek")), machine.public("ak"))
    assert offer.answers(machine.activate(offer.credential, offer.secret))
    assert not offer.answers(bytes(32))
    assert parse_public(machine.public("ak")).restricted


def test_it_cannot_answer_for_another_key(machine):
    storage = machine.public("storage")
    with pytest.raises(CloisterError, match="restricted signing key"):
        challenge(load_spki(machine.spki("ek")), storage)
    offer = challenge(load_spki(machine.spki("ek")), machine.public("ak"))
    altered = bytearray(offer.credential)
    altered[-1] ^= 1
    with pytest.raises(CloisterError):
        machine.activate(bytes(altered), offer.secret)
    other = challenge(load_spki(machine.spki("ak")), machine.public("ak"))  # encrypted to a key that signs
    with pytest.raises(CloisterError):
        machine.activate(other.credential, other.secret)


def test_it_answers_a_challenge_to_a_key_on_a_curve(machine):
    utils = pytest.importorskip("tpm2_pytss.utils")
    tss, none = machine.tss, machine.tss.ESYS_TR.NONE
    with machine.commands("make a key") as api:
        _, template = utils.create_ek_template("EK-ECC256", utils.NVReadEK(api))
        sensitive = tss.TPM2B_SENSITIVE_CREATE()
        made = api.create_primary(sensitive, template, primary_handle=tss.ESYS_TR.ENDORSEMENT)
        offer = challenge(load_spki(made[1].publicArea.to_der()), machine.public("ak"))
        session = api.start_auth_session(none, none, tss.TPM2_SE.POLICY, None, tss.TPM2_ALG.SHA256)
        api.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        credential = tss.TPM2B_ID_OBJECT.unmarshal(offer.credential)[0]
        secret = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(offer.secret)[0]
        answer = api.activate_credential(machine.key("ak"), made[0], credential, secret, session2=session)
        api.flush_context(session)
        api.flush_context(made[0])
    assert offer.answers(bytes(answer))
