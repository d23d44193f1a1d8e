"""TPM structures: what is read is what was written, and everything else is an InputError."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.enclave.fuzz import fuzz_seconds, mutations
from tests.enclave.kinds import tpmparts as parts

from cloister.enclave.kinds import tpmwire
from cloister.errors import InputError

PCRS = {"sha256": {0: bytes(32), 23: b"\x17" * 32}, "sha384": {7: bytes(48)}}


def structures() -> list[tuple[bytes, object]]:
    area = parts.public_area(parts.rsa_key())
    quote = parts.attest(area, PCRS, b"nonce")
    return [
        (quote, tpmwire.parse_attest),
        (area, tpmwire.parse_public),
        (parts.public_area(parts.ec_key()), tpmwire.parse_public),
        (parts.sign(parts.rsa_key(), quote), tpmwire.parse_signature),
        (parts.sign(parts.ec_key(), quote), tpmwire.parse_signature),
    ]


def test_a_quote_is_read_as_it_was_written():
    area = parts.public_area(parts.rsa_key())
    quote = tpmwire.parse_attest(parts.attest(area, PCRS, b"nonce", resets=9))
    assert quote.extra == b"nonce"
    assert quote.selection == (("sha256", (0, 23)), ("sha384", (7,)))
    assert (quote.resets, quote.safe, quote.firmware) == ((9, 0), True, 0x0102030405060708)
    assert quote.signer == tpmwire.qualified_name(b"\x40\0\0\x0b", tpmwire.parse_public(area).name)


def test_what_is_cut_short_or_longer_is_refused():
    for data, parse in structures():
        parse(data)
        for end in range(len(data)):
            with pytest.raises(InputError):
                parse(data[:end])
        with pytest.raises(InputError):
            parse(data + b"\0")


def test_weak_keys_and_signatures_are_refused():
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505  # what must be refused
    modulus = small.public_key().public_numbers().n.to_bytes(128)
    area = parts.public_area(parts.rsa_key())
    with pytest.raises(InputError):
        tpmwire.parse_public(area[:18] + b"\x04\0" + area[20:24] + parts.sized(modulus))
    with pytest.raises(InputError):
        tpmwire.parse_public(area[:20] + b"\0\0\0\x03" + area[24:])
    with pytest.raises(InputError):  # SHA-1
        tpmwire.parse_signature(b"\0\x14\0\x04" + parts.sized(bytes(256)))
    with pytest.raises(InputError):  # HMAC: a key that a verifier cannot have
        tpmwire.parse_signature(b"\0\x05\0\x0b" + bytes(32))
    off = bytearray(parts.public_area(parts.ec_key()))
    off[-1] ^= 1
    with pytest.raises(InputError, match="curve"):
        tpmwire.parse_public(bytes(off))
    for key in (small, ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())):
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(InputError):
            tpmwire.load_spki(spki)


def test_a_bank_is_selected_once():
    area = parts.public_area(parts.rsa_key())
    data = parts.attest(area, {"sha256": {0: bytes(32)}, "sha384": {7: bytes(48)}}, b"")
    with pytest.raises(InputError):
        tpmwire.parse_attest(data.replace(b"\0\x0c\x03", b"\0\x0b\x03"))


def fuzz(amount: float | int, seed: int) -> None:
    for data, parse in structures():
        for changed in mutations(data, amount, seed):
            try:
                parse(changed)
            except InputError:
                continue


def test_mutations_are_refused_or_read():
    fuzz(1000, 1)


@pytest.mark.slow
def test_fuzz():
    fuzz(fuzz_seconds() / len(structures()), 2)
