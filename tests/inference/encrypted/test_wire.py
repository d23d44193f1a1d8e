"""Parameters, residues and containers; and an independent reading of what is on the wire."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.encrypted.rows import encrypted, in_the_clear, make_rows

from cloister.crypto import SECRET_ACCESS, canonical_bytes, sha256
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.inference.encrypted import Card, ClientKey, score_rows
from cloister.inference.encrypted.container import (
    KeyHeader,
    RowsHeader,
    ScoresHeader,
    read,
    rows_bytes,
    write,
)
from cloister.inference.encrypted.parameters import CIRCUITS, LINEAR, Circuit, Parameters
from cloister.inference.encrypted.residues import pack, packed_bytes, unpack
from cloister.inference.encrypted.scheme import scheme_of
from cloister.learning.sections import ModelSection

pytest.importorskip("tenseal")


@pytest.mark.parametrize(("circuit", "standard"), [("linear", 218), ("hidden", 438)])
def test_parameters_are_seals_own_primes_and_within_the_standard(circuit: Circuit, standard: int) -> None:
    parameters, api = CIRCUITS[circuit], scheme_of(circuit).api
    sizes = [prime.bit_length() for prime in parameters.primes]
    made = [each.value() for each in api.CoeffModulus.Create(parameters.degree, sizes)]
    assert list(parameters.primes) == made
    assert (
        parameters.bits
        <= standard
        == api.CoeffModulus.MaxBitCount(parameters.degree, api.SEC_LEVEL_TYPE.TC128)
    )
    assert all(abs(scale / 2.0**40 - 1.0) < 1e-3 for scale in parameters.scales)
    assert len(scheme_of(circuit).parms_ids) == len(parameters.data)


def test_weak_parameters_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="128 bits"):
        Parameters("linear", 8192, (*LINEAR.primes, *LINEAR.primes))
    with pytest.raises(ValueError, match="128 bits"):
        Parameters("linear", 8192, (97, 193))


def test_residues_round_trip_in_as_few_bytes_as_they_need() -> None:
    rng = np.random.default_rng(0)
    polynomial = np.stack([rng.integers(0, prime, 8192, dtype=np.uint64) for prime in LINEAR.primes])
    polynomial[:, 0] = np.array(LINEAR.primes, dtype=np.uint64) - np.uint64(1)
    data = pack(polynomial, LINEAR.primes)
    assert len(data) == packed_bytes(LINEAR.primes, 8192) == 8192 * (7 + 5 + 7)
    assert np.array_equal(unpack(data, LINEAR.primes, 8192), polynomial)
    polynomial[1, 77] = LINEAR.primes[1]
    with pytest.raises(IntegrityError, match="out of range"):
        unpack(pack(polynomial, LINEAR.primes), LINEAR.primes, 8192)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(IntegrityError, match="another length"):
            unpack(wrong, LINEAR.primes, 8192)


def inverse_ntt(values: list[int], prime: int) -> list[int]:
    """Coefficients of the polynomial modulo X^N + 1 with these values, in SEAL's order, at the odd powers of the
    smallest primitive 2N-th root of unity. By recursion over the definition, with Python's integers."""
    degree = len(values)
    root = next(
        x
        for g in range(2, 1000)
        if pow(x := pow(g, (prime - 1) // (2 * degree), prime), degree, prime) == prime - 1
    )
    psi = min(pow(root, odd, prime) for odd in range(1, 2 * degree, 2))
    bits = degree.bit_length() - 1
    natural = [values[int(f"{at:0{bits}b}"[::-1], 2)] for at in range(degree)]

    def transform(sequence: list[int], omega: int) -> list[int]:
        if len(sequence) == 1:
            return sequence
        even, odd = (transform(sequence[part::2], omega * omega % prime) for part in (0, 1))
        twisted, power = [], 1
        for value in odd:
            twisted.append(value * power % prime)
            power = power * omega % prime
        pairs = list(zip(even, twisted, strict=True))
        return [(a + b) % prime for a, b in pairs] + [(a - b) % prime for a, b in pairs]

    inverse = pow(psi, -1, prime)
    scale, found = pow(degree, -1, prime), []
    for value in transform(natural, inverse * inverse % prime):
        found.append(value * scale % prime)
        scale = scale * inverse % prime
    return found


def test_scores_decrypt_by_the_definition_of_ckks() -> None:
    """Without SEAL: c0 + c1 s modulo q, inverse NTT, evaluation at powers of three of a root of unity."""
    artifact, rows = make_artifact("number", ModelSection(kind="linear")), make_rows(3)
    request, key = encrypted(artifact, rows)
    _, scores = read(score_rows(artifact, request), ScoresHeader)
    header, parts = read(key.to_bytes(SECRET_ACCESS), KeyHeader)
    assert header.rows == 3
    prime, degree = LINEAR.primes[0], LINEAR.degree
    half = len(scores.body) // 2
    c0, c1 = (unpack(scores.body[at : at + half], [prime], degree)[0].tolist() for at in (0, half))
    secret = unpack(parts.body, LINEAR.primes, degree)[0].tolist()
    plain = inverse_ntt([(a + b * s) % prime for a, b, s in zip(c0, c1, secret, strict=True)], prime)
    centred = np.array([value - prime if value > prime // 2 else value for value in plain], dtype=np.float64)
    powers = [pow(3, slot, 2 * degree) for slot in range(3)]
    found = [
        float((centred * np.exp(1j * np.pi * power * np.arange(degree) / degree)).sum().real)
        / LINEAR.scales[0]
        for power in powers
    ]
    values = artifact.card.features.label_values(np.array(found))
    np.testing.assert_allclose(values, in_the_clear(artifact, rows)["value"].to_numpy(), atol=1e-5)
    small = inverse_ntt(secret, prime)
    assert set(small) == {0, 1, prime - 1}  # a ternary secret, as the standard's table assumes


@pytest.fixture(scope="module")
def files() -> tuple[bytes, bytes, bytes]:
    artifact = make_artifact("number", ModelSection(kind="linear"))
    request, key = encrypted(artifact, make_rows(2))
    return request, score_rows(artifact, request), key.to_bytes(SECRET_ACCESS)


def test_a_key_round_trips(files: tuple[bytes, bytes, bytes]) -> None:
    _, scores, data = files
    key = ClientKey.from_bytes(data)
    assert key.to_bytes(SECRET_ACCESS) == data
    assert key.open(scores).answers.num_rows == 2
    with pytest.raises(TypeError, match="SECRET_ACCESS"):
        key.to_bytes(None)  # type: ignore[arg-type]


def test_files_of_another_kind_are_refused_by_name(files: tuple[bytes, bytes, bytes]) -> None:
    request, scores, key = files
    with pytest.raises(InputError, match="another kind: rows"):
        read(request, ScoresHeader)
    with pytest.raises(InputError, match="another kind: scores"):
        read(scores, RowsHeader)
    with pytest.raises(InputError, match="another kind: key"):
        score_rows(make_artifact("number", ModelSection(kind="linear")), key)
    with pytest.raises(InputError, match="not a file of encrypted scoring"):
        read(b"PK", RowsHeader)


def test_every_cut_is_noticed(files: tuple[bytes, bytes, bytes]) -> None:
    for data, kind in zip(files, (RowsHeader, ScoresHeader, KeyHeader), strict=True):
        for end in (*range(0, 700, 7), len(data) // 2, len(data) - 1):
            with pytest.raises(CloisterError):
                read(data[:end], kind)
        with pytest.raises(IntegrityError):
            read(data + b"\0", kind)


def rebuilt(data: bytes, head: bytes) -> bytes:
    length = int.from_bytes(data[14:18], "big")
    return data[:14] + len(head).to_bytes(4, "big") + head + data[18 + length :]


def test_headers_are_canonical_strict_and_account_for_the_body(files: tuple[bytes, bytes, bytes]) -> None:
    request = files[0]
    header, parts = read(request, RowsHeader)
    good = parts.header
    assert rebuilt(request, good) == request
    for old, new in (
        (b'"blocks":1', b'"blocks":2'),
        (b'"blocks":1', b'"blocks":1.0'),
        (b'"blocks":1', b'"blocks":1,"blocks":1'),
        (b'"blocks":1', b'"blocks":0'),
        (b'"blocks":1', b'"blocks": 1'),
        (b'"blocks":1', b'"blocks":999999999999'),
        (b'"linear"', b'"hidden"'),
        (b'"features":5', b'"features":4'),
        (b'"type"', b'"more":1,"type"'),
        (b'"type":"cloister/he/rows/v1"', b'"type":"cloister/he/rows/v2"'),
    ):
        assert old in good
        with pytest.raises(CloisterError):
            read(rebuilt(request, good.replace(old, new)), RowsHeader)
    assert len(parts.body) == rows_bytes("linear", 5, 1)
    assert write(header, bytes(parts.body)) == request
    assert sha256(parts.body).hex() == header.body


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme_of.cache_clear()
    monkeypatch.setitem(sys.modules, "tenseal", None)
    artifact = make_artifact("number", ModelSection(kind="linear"))
    assert canonical_bytes(Card.of(artifact))  # a card needs none
    with pytest.raises(InputError, match=r"Install cloister\[he\]"):
        encrypted(artifact, make_rows(1))
