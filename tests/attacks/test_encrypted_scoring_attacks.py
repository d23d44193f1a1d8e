"""What a server, a thief of files and somebody on the way can do to encrypted scoring, and what they cannot.

Some of these show a limit and not a defence: their names begin with `test_limit`.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from tests.inference.artifacts import make_artifact
from tests.inference.encrypted.rows import encrypted, make_rows

from cloister.crypto import SECRET_ACCESS, Identity, canonical_bytes, sha256
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.inference import ModelArtifact
from cloister.inference.encrypted import ClientKey, score_rows
from cloister.inference.encrypted.client import _NOISE_LIMIT
from cloister.inference.encrypted.container import KeyHeader, RowsHeader, ScoresHeader, blocks, read, write
from cloister.inference.encrypted.parameters import CIRCUITS, HIDDEN, LINEAR
from cloister.inference.encrypted.residues import Polynomial, pack, packed_bytes, unpack
from cloister.inference.encrypted.scheme import SEED_BYTES, scheme_of
from cloister.learning.sections import ModelSection

pytest.importorskip("tenseal")

LINEAR_MODEL = ("number", ModelSection(kind="linear"))
HIDDEN_MODEL = ("number", ModelSection(kind="mlp", hidden=(1,), activation="tanh"))


@pytest.fixture(scope="module")
def artifact() -> ModelArtifact:
    return make_artifact(*LINEAR_MODEL)


@pytest.fixture(scope="module")
def exchanged(artifact: ModelArtifact) -> tuple[bytes, ClientKey, bytes]:
    request, key = encrypted(artifact, make_rows(9))
    return request, key, score_rows(artifact, request)


def secret_of(key: ClientKey) -> Polynomial:
    header, parts = read(key.to_bytes(SECRET_ACCESS), KeyHeader)
    parameters = CIRCUITS[header.card.circuit]
    return unpack(parts.body, parameters.primes, parameters.degree)


def rewritten(data: bytes, body: bytes) -> bytes:
    """A file of scores with another body and the hash of that: what anybody on the way can make."""
    header, _ = read(data, ScoresHeader)
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    return write(ScoresHeader(**{**fields, "body": sha256(body).hex()}), body)


def polynomials_in(request: bytes) -> Iterator[Polynomial]:
    """Every polynomial in a file of rows, in as many moduli as it has."""
    header, parts = read(request, RowsHeader)
    parameters = header.parameters
    one = packed_bytes(parameters.primes, parameters.degree) + SEED_BYTES
    for at in range(0, header.sizes[0], one):
        yield unpack(parts.body[at : at + one - SEED_BYTES], parameters.primes, parameters.degree)
    one = packed_bytes(parameters.data, parameters.degree) + SEED_BYTES
    for block in blocks(header, parts.body):
        for at in range(0, len(block), one):
            yield unpack(block[at : at + one - SEED_BYTES], parameters.data, parameters.degree)


@pytest.mark.parametrize("model", [LINEAR_MODEL, HIDDEN_MODEL], ids=["linear", "hidden"])
def test_what_the_server_gets_holds_no_secret_key(model: tuple[str, ModelSection]) -> None:
    """Every byte of the file is accounted for: relinearisation keys and fresh ciphertexts. None of it is the
    secret key, and none of it decrypts as one."""
    artifact = make_artifact(*model)
    request, key = encrypted(artifact, make_rows(3))
    secret = secret_of(key)
    pieces = list(polynomials_in(request))
    parameters = HIDDEN if model is HIDDEN_MODEL else LINEAR
    assert len(pieces) == 5 + (len(parameters.data) if model is HIDDEN_MODEL else 0)
    for piece in pieces:
        for row, own in zip(piece, secret, strict=False):
            assert not np.array_equal(row, own)
    for row, prime in zip(secret, parameters.primes, strict=True):
        packed = pack(row[None], [prime])
        assert packed[:64] not in request
        assert packed[-64:] not in request

    scheme = scheme_of(parameters.circuit)
    scores = score_rows(artifact, request)
    _, parts = read(scores, ScoresHeader)
    half = len(parts.body) // 2
    c = np.stack(
        [unpack(parts.body[at : at + half], parameters.data[:1], parameters.degree) for at in (0, half)]
    )
    candidates = [piece for piece in pieces if len(piece) == len(parameters.primes)]
    candidates.append(np.vstack([pieces[-1], secret[len(pieces[-1]) :] ^ np.uint64(1)]))
    for candidate in candidates:
        plain = scheme.api.Plaintext()
        scheme.api.Decryptor(scheme.context, scheme.from_secret(candidate)).decrypt(
            scheme.from_polynomials(c), plain
        )
        assert np.abs(np.array(scheme.encoder.decode_complex(plain)).imag).max() > 1.0  # noise
    plain = scheme.api.Plaintext()
    scheme.api.Decryptor(scheme.context, scheme.from_secret(secret)).decrypt(
        scheme.from_polynomials(c), plain
    )
    assert np.abs(np.array(scheme.encoder.decode_complex(plain)).imag).max() < _NOISE_LIMIT


def test_equal_rows_look_different_and_their_number_is_hidden(artifact: ModelArtifact) -> None:
    """Two encryptions of the same rows share nothing; one row and four thousand make files of one size."""
    one, other = (encrypted(artifact, make_rows(9))[0] for _ in range(2))
    (_, left), (_, right) = read(one, RowsHeader), read(other, RowsHeader)
    equal = np.frombuffer(left.body, np.uint8) == np.frombuffer(right.body, np.uint8)
    assert 0.003 < equal.mean() < 0.006  # 1 of 256, by chance; the top byte of a 40-bit prime is uniform too
    assert (
        len(encrypted(artifact, make_rows(1))[0]) == len(encrypted(artifact, make_rows(4096))[0]) == len(one)
    )


def test_an_altered_byte_is_noticed(exchanged: tuple[bytes, ClientKey, bytes]) -> None:
    _, key, scores = exchanged
    for at in np.random.default_rng(0).integers(0, len(scores), 40):
        altered = bytearray(scores)
        altered[at] ^= 1
        with pytest.raises(CloisterError):
            key.open(bytes(altered))


@pytest.mark.parametrize("bit", [0, 3, 30, 54])
@pytest.mark.parametrize("half", [0, 1])
def test_an_altered_ciphertext_does_not_decrypt_even_where_its_hash_was_made_anew(
    exchanged: tuple[bytes, ClientKey, bytes], bit: int, half: int
) -> None:
    _, key, scores = exchanged
    body = bytearray(read(scores, ScoresHeader)[1].body)
    at = half * len(body) // 2 + 7 * 1234
    residue = int.from_bytes(body[at : at + 7], "little") ^ (1 << bit)
    body[at : at + 7] = (residue % LINEAR.primes[0]).to_bytes(7, "little")
    with pytest.raises(IntegrityError, match="do not decrypt"):
        key.open(rewritten(scores, bytes(body)))


def test_another_key_opens_nothing(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    _, key, scores = exchanged
    other = encrypted(artifact, make_rows(9))[1]
    with pytest.raises(IntegrityError, match="answer other rows"):
        other.open(scores)
    forced = ClientKey(key.card, key.request, key.rows, secret_of(other))
    with pytest.raises(IntegrityError, match="do not decrypt"):
        forced.open(scores)


def test_scores_of_other_rows_or_of_another_model_are_refused(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    request, key, _ = exchanged
    later, _ = encrypted(artifact, make_rows(9, seed=5))
    with pytest.raises(IntegrityError, match="answer other rows"):
        key.open(score_rows(artifact, later))
    with pytest.raises(IntegrityError, match="for another model"):
        score_rows(make_artifact(*LINEAR_MODEL, seed=2), request)


def test_a_signature_is_over_these_scores_by_this_server(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    request, key, unsigned = exchanged
    server, eve = Identity.generate("server"), Identity.generate("eve")
    signed = score_rows(artifact, request, server)
    assert key.open(signed, server.public).answers.num_rows == 9
    with pytest.raises(IntegrityError, match="nobody signed"):
        key.open(unsigned, server.public)
    with pytest.raises(IntegrityError, match="known keys"):
        key.open(score_rows(artifact, request, eve), server.public)
    _, parts = read(unsigned, ScoresHeader)
    envelope = read(signed, ScoresHeader)[1].envelope
    header, moved = read(rewritten(unsigned, bytes(parts.body[::-1])), ScoresHeader)
    forged = write(header, bytes(moved.body), envelope)
    with pytest.raises(IntegrityError, match="of other scores"):
        key.open(forged, server.public)


def forged_by_one_half(key: ClientKey, scores: bytes) -> bytes:
    """Scores with 0.5 added to each: a plaintext is added without any key."""
    scheme = scheme_of("linear")
    _, parts = read(scores, ScoresHeader)
    half = len(parts.body) // 2
    c = np.stack([unpack(parts.body[at : at + half], LINEAR.data[:1], LINEAR.degree) for at in (0, half)])
    ciphertext = scheme.from_polynomials(c)
    scheme.evaluator.add_plain_inplace(ciphertext, scheme.encode(0.5, 1, LINEAR.scales[0]))
    body = b"".join(pack(each, LINEAR.data[:1]) for each in scheme.polynomials(ciphertext))
    return rewritten(scores, body)


def test_limit_unsigned_scores_can_be_shifted_on_the_way(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    """CKKS is malleable. `--from` is the defence, and it holds."""
    _, key, scores = exchanged
    forged = forged_by_one_half(key, scores)
    moved = key.open(forged).answers["value"].to_numpy() - key.open(scores).answers["value"].to_numpy()
    np.testing.assert_allclose(moved, 0.5 * 25.0, atol=1e-4)
    with pytest.raises(IntegrityError, match="nobody signed"):
        key.open(forged, Identity.generate("server").public)


def test_limit_a_client_learns_a_linear_model_from_a_few_rows() -> None:
    """f + 1 rows, one system of equations. Scoring often is as good as having the model; the page says so."""
    artifact = make_artifact(*LINEAR_MODEL)
    rows = make_rows(40)
    request, key = encrypted(artifact, rows)
    values = key.open(score_rows(artifact, request)).answers["value"].to_numpy()
    X = artifact.card.features.transform_features(rows)
    unknown = np.column_stack([X, np.ones(len(X))])
    found = np.linalg.lstsq(unknown, (values - 25.0) / 25.0, rcond=None)[0]
    np.testing.assert_allclose(found, artifact.parameters, atol=1e-4)


def test_exact_decryptions_do_not_leave(artifact: ModelArtifact) -> None:
    """Noise, which depends on the key, is rounded away: files of one table under two keys open to the same scores."""
    rows, opened = make_rows(200), []
    for _ in range(2):
        request, key = encrypted(artifact, rows)
        values = key.open(score_rows(artifact, request)).answers["value"].to_numpy()
        steps = ((values - 25.0) / 25.0) * 2.0**20
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
        opened.append(np.round(steps))
    assert (opened[0] == opened[1]).mean() > 0.9


def test_numbers_out_of_range_are_refused_before_seal_sees_them(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    request, key, scores = exchanged
    for data, kind in ((request, RowsHeader), (scores, ScoresHeader)):
        header, parts = read(data, kind)
        body = bytearray(parts.body)
        body[:7] = b"\xff" * 7
        fields = {name: getattr(header, name) for name in header.__struct_fields__}
        altered = write(type(header)(**{**fields, "body": sha256(bytes(body)).hex()}), bytes(body))
        with pytest.raises(IntegrityError, match="out of range"):
            score_rows(artifact, altered) if kind is RowsHeader else key.open(altered)


def test_random_files_end_in_one_of_our_errors(artifact: ModelArtifact) -> None:
    request, key = encrypted(artifact, make_rows(1))
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(request)
        for at in rng.integers(0, 400, 3):
            data[at] = int(rng.integers(0, 256))
        with pytest.raises(CloisterError):
            score_rows(artifact, bytes(data))
    with pytest.raises(InputError):
        key.open(b"cloister-he/1\n"[:5])


def test_a_random_body_of_the_right_shape_scores_and_opens_to_nothing(
    artifact: ModelArtifact, exchanged: tuple[bytes, ClientKey, bytes]
) -> None:
    """Whatever residues and seeds a stranger sends, the server computes on them and nothing breaks."""
    _, key, _ = exchanged
    rng = np.random.default_rng(2)
    parts = []
    for _ in range(5):
        residues = np.stack([rng.integers(0, prime, LINEAR.degree, dtype=np.uint64) for prime in LINEAR.data])
        parts += [pack(residues, LINEAR.data), rng.bytes(SEED_BYTES)]
    body = b"".join(parts)
    request = write(RowsHeader(key.card.digest, "linear", 5, 1, sha256(body).hex()), body)
    header = read(request, RowsHeader)[1].header
    forced = ClientKey(key.card, sha256(header).hex(), 1, secret_of(key))
    with pytest.raises(IntegrityError, match="do not decrypt"):
        forced.open(score_rows(artifact, request))


def test_a_key_does_not_show_itself(exchanged: tuple[bytes, ClientKey, bytes]) -> None:
    key = exchanged[1]
    assert "secret" in repr(key)
    assert "array" not in repr(key)
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            leave(key)
    assert not hasattr(key, "__dict__")
    assert canonical_bytes(key.card)
