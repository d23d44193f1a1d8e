from __future__ import annotations

import msgspec
import pytest
from tests.crypto.vectors import read

from cloister.crypto import ScryptCost, hkdf, scrypt
from cloister.crypto.kdf import _derive
from cloister.errors import InputError, PassphraseError

CHEAP = ScryptCost(n=16, r=1, p=1)


def test_hkdf_vectors() -> None:
    for vector in read("hkdf")["vectors"]:
        secret, salt, info = (bytes.fromhex(vector[name]) for name in ("secret", "salt", "info"))
        assert hkdf(secret, info=info, salt=salt, length=vector["length"]).hex() == vector["okm"]


def test_scrypt_vectors() -> None:
    for vector in read("scrypt")["vectors"]:
        cost = ScryptCost(n=vector["n"], r=vector["r"], p=vector["p"])
        assert _derive(vector["passphrase"].encode(), vector["salt"].encode(), cost).hex() == vector["key"]


def test_hkdf_separates_by_info_salt_and_secret() -> None:
    base = hkdf(b"s", info=b"a")
    assert len({base, hkdf(b"s", info=b"b"), hkdf(b"s", info=b"a", salt=b"x"), hkdf(b"t", info=b"a")}) == 4


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_hkdf_length_is_bounded(length: int) -> None:
    with pytest.raises(InputError):
        hkdf(b"s", info=b"i", length=length)


def test_hkdf_needs_a_secret() -> None:
    with pytest.raises(InputError):
        hkdf(b"", info=b"i")


def test_the_default_cost_is_the_documented_one() -> None:
    assert ScryptCost() == ScryptCost(n=2**17, r=8, p=1)


@pytest.mark.parametrize(
    "cost",
    [
        {"n": 3},
        {"n": 0},
        {"n": 1},
        {"n": -2},
        {"n": 2**21},
        {"r": 0},
        {"r": 33},
        {"p": 0},
        {"p": 17},
        {"n": 2**19, "r": 32},
    ],
)
def test_stored_costs_are_bounded(cost: dict[str, int]) -> None:
    with pytest.raises(InputError, match="out of bounds"):
        msgspec.json.decode(msgspec.json.encode({"n": 2**17, "r": 8, "p": 1} | cost), type=ScryptCost)


def test_composed_and_decomposed_letters_are_one_passphrase() -> None:
    salt = bytes(16)
    assert scrypt("Gr\u00fc\u00dfe", salt, CHEAP) == scrypt("Gru\u0308\u00dfe", salt, CHEAP)
    assert scrypt("a", salt, CHEAP) != scrypt("b", salt, CHEAP)
    assert scrypt("a", salt, CHEAP) != scrypt("a", bytes(15) + b"1", CHEAP)


@pytest.mark.parametrize("passphrase", ["", b"", "x" * 1025])
def test_passphrases_are_bounded(passphrase: str | bytes) -> None:
    with pytest.raises(PassphraseError):
        scrypt(passphrase, bytes(16), CHEAP)


def test_short_salts_are_refused() -> None:
    with pytest.raises(InputError, match="salt"):
        scrypt("x", bytes(15), CHEAP)
