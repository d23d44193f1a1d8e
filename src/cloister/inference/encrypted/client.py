"""The client's half: rows in, ciphertexts out; ciphertexts in, answers out.

1. Rows are read by the card's columns, checked against their bounds, and made numbers in [-1, 1].
2. A fresh key is drawn for this one file. Encryption is symmetric: there is no public key.
3. Column by column, N / 2 rows at a time, values go into the slots of a ciphertext. What is sent of it is one
   polynomial and a seed.
4. For a hidden layer the server also gets relinearisation keys: they let it multiply ciphertexts, and let
   nobody decrypt.

`ClientKey.open`: 1. the file is whole; 2. its signature is the server's, where one is asked for; 3. it
answers the rows of this key, by this card; 4. it decrypts to real numbers. Values in slots are real, so
imaginary parts are noise and nothing else: of a ciphertext that was altered at random, or belongs to another
key, they are as large as the modulus. They are also how the noise is measured.

What it does not do: notice a server that computes something else, or whoever adds a constant on the way to
scores that nobody signed. The server sees how many features and how many blocks there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import (
    SECRET_ACCESS,
    HoldsSecret,
    PublicIdentity,
    SecretAccess,
    keyring,
    open_envelope,
    sha256,
)
from cloister.errors import InputError, IntegrityError
from cloister.inference.encrypted.answers import answers_of, doubtful_rows, rounded
from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.container import (
    BODY_LIMIT,
    KeyHeader,
    RowsHeader,
    ScoresHeader,
    blocks,
    read,
    rows_bytes,
    write,
)
from cloister.inference.encrypted.network import LOCAL_LIMIT
from cloister.inference.encrypted.parameters import CIRCUITS
from cloister.inference.encrypted.residues import Polynomial, pack, packed_bytes, unpack
from cloister.inference.encrypted.scheme import Scheme, Seeded, scheme_of
from cloister.inference.rows import read_rows
from cloister.vault.sources import Source

__all__ = ["SCORES_TYPE", "ClientKey", "Opened", "encrypt_rows"]

SCORES_TYPE: Final = "application/vnd.cloister.he-scores+json"

_NOISE_LIMIT: Final = 2.0**-8
_NOISE_MARGIN: Final = 4.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Opened:
    """What scores decrypted to.

    Attributes:
        answers: one row for each row, in order; columns as of `cloister predict`.
        noise: the largest error that encryption itself left, measured on the imaginary parts.
        error: by how much a score may differ from the model's own: polynomials, noise and rounding together.
        doubtful: rows whose class could be another one within that error.
    """

    answers: pa.Table
    noise: float
    error: float
    doubtful: int


class ClientKey(HoldsSecret):
    """The key to the scores of one file of rows.

    Args:
        card: the card.
        request: hex SHA-256 of the header of those rows.
        rows: how many there are.
        secret: the secret key's polynomial, uint64[moduli, N].
    """

    __slots__ = ("_secret", "card", "request", "rows")

    def __init__(self, card: Card, request: str, rows: int, secret: Polynomial) -> None:
        self.card, self.request, self.rows, self._secret = card, request, rows, secret

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientKey:
        """Return the key in a file's bytes. Raises InputError, IntegrityError where they are none."""
        header, parts = read(data, KeyHeader)
        parameters = CIRCUITS[header.card.circuit]
        secret = unpack(parts.body, parameters.primes, parameters.degree)
        return cls(header.card, header.request, header.rows, secret)

    def to_bytes(self, token: SecretAccess) -> bytes:
        """Return the bytes of its file; they are secret."""
        if token is not SECRET_ACCESS:
            raise TypeError("secret bytes leave only with the token SECRET_ACCESS")
        body = pack(self._secret, CIRCUITS[self.card.circuit].primes)
        return write(KeyHeader(self.card, self.request, self.rows, sha256(body).hex()), body)

    def open(self, scores: bytes, signer: PublicIdentity | None = None) -> Opened:
        """Decrypt scores.

        Args:
            scores: what the server returned.
            signer: whose signature they must have; None demands none.

        Raises:
            InputError: not a file of scores, or tenseal is not installed.
            IntegrityError: cut, altered, not signed by `signer`, or the answer to other rows.
        """
        header, parts = read(scores, ScoresHeader)  # 1
        if signer is not None:  # 2
            _check_signature(parts.header, parts.envelope, signer)
        count = -(-self.rows // CIRCUITS[self.card.circuit].slots)
        due = (self.request, self.card.digest, self.card.circuit, self.card.outputs, count)
        if (header.request, header.card, header.circuit, header.outputs, header.blocks) != due:  # 3
            raise IntegrityError(
                "these scores answer other rows than this key's", fix="Give the key that was made with them"
            )
        scheme = scheme_of(header.circuit)
        decryptor = scheme.api.Decryptor(scheme.context, scheme.from_secret(self._secret))
        found = [_decrypted(block, header.outputs, scheme, decryptor) for block in blocks(header, parts.body)]
        values = np.concatenate(found)
        noise = float(np.abs(values.imag).max())
        if not noise <= _NOISE_LIMIT:  # 4
            raise IntegrityError(
                "the scores do not decrypt: they were altered, or encrypted under another key",
                fix="Get the file again, and give the key that was made with the rows",
            )
        exact = rounded(values.real[: self.rows])
        error = self.card.error + _NOISE_MARGIN * noise + 2.0**-21
        return Opened(answers_of(self.card, exact), noise, error, doubtful_rows(self.card, exact, error))


def encrypt_rows(card: Card, source: Source, reference: Source | None = None) -> tuple[bytes, ClientKey]:
    """Encrypt rows for a model.

    Args:
        card: the model's card.
        source: the rows.
        reference: rows to scale by, where the card says scaling "local".

    Returns:
        The bytes for the server, and the key to what it returns.

    Raises:
        SchemaError: a row breaks the card's columns: line, column.
        InputError: no row, too many rows, no reference, or tenseal is not installed.
    """
    values = _values(card, source, reference)  # 1
    scheme = scheme_of(card.circuit)
    parameters = scheme.parameters
    count = -(-len(values) // parameters.slots)
    if count == 0:
        raise InputError("there is no row to encrypt", fix="Give a file with rows")
    if rows_bytes(card.circuit, values.shape[1], count) > BODY_LIMIT:
        raise InputError(
            f"the rows need more than {BODY_LIMIT >> 20} MiB encrypted", fix="Split the file of rows"
        )
    generator = scheme.api.KeyGenerator(scheme.context)  # 2
    secret = generator.secret_key()
    encryptor = scheme.api.Encryptor(scheme.context, secret)
    parts = []
    if card.circuit == "hidden":  # 4
        for key in scheme.relinearisation(generator.create_relin_keys()):
            parts += [pack(key.first, parameters.primes), key.seed]
    for at in range(0, len(values), parameters.slots):  # 3
        for column in values[at : at + parameters.slots].T:
            sent = _encrypted(column, scheme, encryptor)
            parts += [pack(sent.first, parameters.data), sent.seed]
    body = b"".join(parts)
    header = RowsHeader(card.digest, card.circuit, values.shape[1], count, sha256(body).hex())
    data = write(header, body)
    request = sha256(read(data, RowsHeader)[1].header).hex()
    return data, ClientKey(card, request, len(values), scheme.secret(secret))


def _values(card: Card, source: Source, reference: Source | None) -> Array:
    features = card.features
    if features.scaling == "local":
        if reference is None:
            raise InputError(
                'the model was trained with scaling = "local" and needs rows to scale by',
                fix="Give rows of the same site with --reference",
            )
        features = features.fit(read_rows(reference, features.columns))
    values = features.transform_features(read_rows(source, features.columns))
    limit = LOCAL_LIMIT if features.scaling == "local" else 1.0
    # a bound itself may come out a rounding error beyond 1
    outside = np.abs(values) > limit * (1.0 + 1e-9)
    if outside.any():
        name = features.names[int(np.argwhere(outside)[0][1])]
        raise InputError(
            f"a value of {name!r} lies more than {limit:g} deviations from its mean",
            fix="Leave the row out, or give other rows to scale by",
        )
    return values / limit


def _encrypted(column: Array, scheme: Scheme, encryptor: object) -> Seeded:
    parameters = scheme.parameters
    plain = scheme.encode(column.tolist(), len(parameters.data), parameters.scales[-1])
    return scheme.seeded(encryptor.encrypt_symmetric(plain))  # type: ignore[attr-defined]


def _decrypted(block: memoryview, outputs: int, scheme: Scheme, decryptor: object) -> NDArray[np.complex128]:
    """Return the values of a block, complex128[N / 2, outputs]."""
    primes, degree = scheme.parameters.data[:1], scheme.parameters.degree
    size = packed_bytes(primes, degree)
    columns = []
    for at in range(0, len(block), 2 * size):
        halves = (block[at : at + size], block[at + size : at + 2 * size])
        polynomials = np.stack([unpack(half, primes, degree) for half in halves])
        plain = scheme.api.Plaintext()
        decryptor.decrypt(scheme.from_polynomials(polynomials), plain)  # type: ignore[attr-defined]
        columns.append(np.array(scheme.encoder.decode_complex(plain)))
    return np.stack(columns, axis=1)


def _check_signature(header: bytes, envelope: bytes, signer: PublicIdentity) -> None:
    if not envelope:
        raise IntegrityError(
            "nobody signed these scores", fix=f"Ask {signer.name} to score them and to sign with its identity"
        )
    if open_envelope(envelope, SCORES_TYPE, keyring([signer])) != header:
        raise IntegrityError("the signature is of other scores", fix="Get the file again")
