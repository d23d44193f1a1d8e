"""CBOR: the vectors of RFC 8949, a decoder of others as judge, and what must be refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.enclave.fuzz import fuzz_seconds, mutations

from cloister.enclave.cbor import Value, decode, encode
from cloister.errors import InputError

# RFC 8949, appendix A, as far as this part of CBOR goes
VECTORS: list[tuple[str, Value]] = [
    ("00", 0),
    ("01", 1),
    ("0a", 10),
    ("17", 23),
    ("1818", 24),
    ("1819", 25),
    ("1864", 100),
    ("1903e8", 1000),
    ("1a000f4240", 1000000),
    ("1b000000e8d4a51000", 1000000000000),
    ("1bffffffffffffffff", 18446744073709551615),
    ("3bffffffffffffffff", -18446744073709551616),
    ("20", -1),
    ("29", -10),
    ("3863", -100),
    ("3903e7", -1000),
    ("f4", False),
    ("f5", True),
    ("f6", None),
    ("40", b""),
    ("4401020304", bytes([1, 2, 3, 4])),
    ("60", ""),
    ("6161", "a"),
    ("6449455446", "IETF"),
    ("62225c", '"\\'),
    ("62c3bc", "ü"),
    ("63e6b0b4", "水"),
    ("64f0908591", "\U00010151"),
    ("80", []),
    ("83010203", [1, 2, 3]),
    ("8301820203820405", [1, [2, 3], [4, 5]]),
    ("98190102030405060708090a0b0c0d0e0f101112131415161718181819", list(range(1, 26))),
    ("a0", {}),
    ("a201020304", {1: 2, 3: 4}),
    ("a26161016162820203", {"a": 1, "b": [2, 3]}),
    ("826161a161626163", ["a", {"b": "c"}]),
]
STREAMED: list[tuple[str, Value]] = [
    ("9fff", []),
    ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
    ("83018202039f0405ff", [1, [2, 3], [4, 5]]),
    ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ("826161bf61626163ff", ["a", {"b": "c"}]),
]


@pytest.mark.parametrize(("raw", "value"), VECTORS)
def test_published_vectors(raw: str, value: Value) -> None:
    assert decode(bytes.fromhex(raw), "it") == value
    assert type(decode(bytes.fromhex(raw), "it")) is type(value)
    assert encode(value).hex() == raw


@pytest.mark.parametrize(("raw", "value"), STREAMED)
def test_indefinite_lengths_only_where_allowed(raw: str, value: Value) -> None:
    assert decode(bytes.fromhex(raw), "it", streamed=True) == value
    with pytest.raises(InputError, match="indefinite"):
        decode(bytes.fromhex(raw), "it")


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "1817",  # not the shortest form
        "190018",
        "1a00000018",
        "1b0000000000000018",
        "5801" + "00",
        "42" + "00",
        "8201",
        "a101",
        "9b7fffffffffffffff",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff",
        "0000",  # goes on
        "a201010102",  # a key twice
        "a1f501",  # a key that is no number
        "a1400100",
        "a18001",
        "61ff",  # no UTF-8
        "f7",  # undefined
        "f0",
        "f820",
        "f90000",  # floats
        "fb3ff0000000000000",
        "ff",
        "1c",
        "1f",
        "5f4101ff",
        "c0613",
        "c100",
        "c249010000000000000000",
        "d8234161",
        "81" * 20 + "00",
        "9f" * 20,
        "bf01ff",
    ],
)
def test_everything_else_is_refused(raw: str) -> None:
    data = bytes.fromhex(raw + "0" * (len(raw) % 2))
    for streamed in (False, True):
        with pytest.raises(InputError):
            decode(data, "it", streamed=streamed)


def test_a_tag_stands_at_the_front_alone() -> None:
    assert decode(b"\xd2\x80", "it", tag=18) == decode(b"\x80", "it", tag=18) == []
    for bad in (b"\xd1\x80", b"\xd2\xd2\x80", b"\xd2", b"\x81\xd2\x80"):
        with pytest.raises(InputError):
            decode(bad, "it", tag=18)
    with pytest.raises(InputError):
        decode(b"\xd2\x80", "it")
    with pytest.raises(InputError, match="too large"):
        encode(1 << 64)


keys = st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.binary() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@given(values)
def test_another_decoder_reads_what_is_written_here(value: Value) -> None:
    cbor2 = pytest.importorskip("cbor2")
    written = encode(value)
    assert decode(written, "it") == value
    assert cbor2.loads(written) == value


def test_what_is_read_here_another_decoder_reads_alike() -> None:
    _compare(2000)


@pytest.mark.slow
def test_fuzz() -> None:
    _compare(fuzz_seconds())


def _compare(much: float | int) -> None:
    cbor2 = pytest.importorskip("cbor2")
    start = encode({"pcrs": {0: b"\1" * 9, 1: [1, -300, None, True]}, "text": "ü", "more": {"a": [{}, []]}})
    for changed in mutations(start, much, seed=5):
        for streamed in (False, True):
            try:
                value = decode(changed, "it", streamed=streamed)
            except InputError:
                continue
            reader = io.BytesIO(changed)
            assert cbor2.CBORDecoder(reader).decode() == value
            if not streamed:
                assert encode(value) == changed
