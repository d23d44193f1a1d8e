"""Quotes, registers and keys of a TPM, against this package's own verifier of quotes."""

from __future__ import annotations

import hashlib
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm

from cloister.crypto import Identity, keyring
from cloister.enclave.attester import SoftwareTpm, Tpm
from cloister.enclave.kinds import activation, tpmwire
from cloister.errors import InputError


def test_a_quote_is_signed_by_the_ak_over_what_was_asked(tpm: Tpm) -> None:
    nonce = os.urandom(32)
    quoted = tpm.quote(nonce, [0, 7, 11])
    attest = tpmwire.parse_attest(quoted.quote)
    ak = tpmwire.parse_public(tpm.public("ak"))
    assert tpmwire.parse_signature(quoted.signature).verifies(ak.key, quoted.quote)
    assert attest.extra == nonce
    assert attest.selection == (("sha256", (0, 7, 11)),)
    assert attest.digest == hashlib.sha256(b"".join(quoted.pcrs[each] for each in (0, 7, 11))).digest()
    assert ak.restricted


def test_an_extend_is_the_hash_of_before_and_value(tpm: Tpm) -> None:
    value = os.urandom(32)
    tpm.extend(12, value)
    assert tpm.pcrs([12]) == {12: hashlib.sha256(bytes(32) + value).digest()}


def test_registers_in_a_quote_are_the_present_ones_after_an_extend(tpm: Tpm) -> None:
    before = tpm.quote(b"").pcrs
    tpm.extend(14, b"\x01" * 32)
    after = tpm.quote(b"").pcrs
    assert {pcr for pcr in before if before[pcr] != after[pcr]} == {14}
    assert after == tpm.pcrs()


def test_threads_share_one(tpm: Tpm) -> None:
    ak = tpmwire.parse_public(tpm.public("ak")).key
    good: list[bool] = []

    def work() -> None:
        for _ in range(20):
            quoted = tpm.quote(b"n" * 16)
            good.append(tpmwire.parse_signature(quoted.signature).verifies(ak, quoted.quote))
            tpm.extend(13, bytes(32))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert good == [True] * 60


def test_credential_activation_shows_that_both_keys_are_in_one_tpm(tpm: Tpm) -> None:
    ek = tpmwire.load_spki(tpm.spki("ek"))
    ak = tpm.public("ak")
    offer = activation.challenge(ek, ak)
    assert offer.answers(tpm.activate(offer.credential, offer.secret))
    at = datetime(2026, 5, 1, tzinfo=UTC)
    verifier = Identity.generate("verifier")
    name = tpmwire.parse_public(ak).name
    statement = activation.certify(verifier, ak_name=name, ek=ek, at=at)
    assert activation.is_activated(statement, keyring([verifier.public]), ak_name=name, ek=ek, at=at)[0]


def test_a_credential_for_another_tpm_or_altered_does_not_open(tpm: Tpm, tmp_path: Path) -> None:
    needs_swtpm()
    ek = tpmwire.load_spki(tpm.spki("ek"))
    with SoftwareTpm(tmp_path / "other") as other:
        offer = activation.challenge(ek, tpm.public("ak"))
        with pytest.raises(InputError, match="did not open a verifier's challenge"):
            other.tpm.activate(offer.credential, offer.secret)
        foreign = activation.challenge(ek, other.tpm.public("ak"))
    with pytest.raises(InputError):  # this EK, and the AK of another TPM
        tpm.activate(foreign.credential, foreign.secret)
    for at in (2, 20, len(offer.credential) - 1):
        altered = bytearray(offer.credential)
        altered[at] ^= 1
        with pytest.raises(InputError):
            tpm.activate(bytes(altered), offer.secret)
    assert offer.answers(tpm.activate(offer.credential, offer.secret))


def test_too_much_to_qualify_is_refused(tpm: Tpm) -> None:
    with pytest.raises(InputError, match="at most 32 bytes"):
        tpm.quote(bytes(33))


def test_no_device_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no TPM"):
        Tpm.device(tmp_path / "tpmrm0")


def test_something_that_is_no_tpm_is_a_clear_error(tmp_path: Path) -> None:
    needs_swtpm()
    path = tmp_path / "tpmrm0"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="the TPM did not"), Tpm.device(path) as tpm:
        tpm.pcrs([0])
