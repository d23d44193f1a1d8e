from __future__ import annotations

import hashlib
import hmac
import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import framed, hkdf
from cloister.vault.pseudonym import KeyedHash, Pseudonyms

SECRET = b"s" * 32


def apply(
    values: list[object], *, secret: bytes = SECRET, purposes: tuple[str, ...] = ("p",), column: str = "id"
) -> list[str]:
    return Pseudonyms(secret, purposes).apply(column, pa.array(values)).to_pylist()  # type: ignore[no-any-return]


def test_they_are_hmac_sha256_under_a_key_for_column_and_purpose() -> None:
    key = hkdf(SECRET, info=framed(b"cloister pseudonym v1", b"id", b"p", b"q"))
    expected = hmac.new(key, b"Ann", hashlib.sha256).hexdigest()
    assert apply(["Ann"], purposes=("q", "p")) == [expected]


def test_the_same_person_is_the_same_and_null_is_null() -> None:
    one, none, two = apply(["Ann", None, "Ann"])
    assert one == two
    assert none is None


def test_text_and_integer_are_the_same_identifier() -> None:
    assert apply(["17"]) == apply([17])


@pytest.mark.parametrize(
    "other", [{"secret": b"t" * 32}, {"purposes": ("q",)}, {"purposes": ("p", "q")}, {"column": "id2"}]
)
def test_another_owner_purpose_or_column_has_unrelated_ones(other: dict[str, object]) -> None:
    assert apply(["Ann"]) != apply(["Ann"], **other)  # type: ignore[arg-type]


def test_the_secret_is_neither_shown_nor_pickled() -> None:
    for held in (Pseudonyms(SECRET, ["p"]), KeyedHash(SECRET)):
        assert "sss" not in repr(held)
        with pytest.raises(TypeError):
            pickle.dumps(held)


@given(st.binary(), st.binary(min_size=32, max_size=32))
def test_the_prepared_key_gives_plain_hmac(message: bytes, key: bytes) -> None:
    keyed = KeyedHash(key)
    for _ in range(2):
        assert keyed.digest(message) == hmac.digest(key, message, "sha256")
