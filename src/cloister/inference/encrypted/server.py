"""The server's half: a model, encrypted rows in, encrypted scores out.

1. The file is whole, and its rows were encrypted by this very model's card.
2. Ciphertexts are read block by block: every residue is checked, and the layout around them is ours.
3. The circuit runs (see `evaluation`). Nothing here could decrypt.
4. Scores go out under the one modulus that is left; whoever signs, signs the header that names them.

What it does not do: hide the model from the client. From f + 1 scores of chosen rows a linear model's
parameters follow by solving equations; whoever may score often may copy it. Ciphertexts carry noise of the
computation besides (there is no circuit privacy), which adds little to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.crypto import Signer, canonical_bytes, sha256, sign_envelope
from cloister.errors import IntegrityError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.client import SCORES_TYPE
from cloister.inference.encrypted.container import RowsHeader, ScoresHeader, blocks, read, write
from cloister.inference.encrypted.evaluation import Evaluation
from cloister.inference.encrypted.network import Network
from cloister.inference.encrypted.parameters import CIRCUITS, Parameters
from cloister.inference.encrypted.residues import pack, packed_bytes, unpack
from cloister.inference.encrypted.scheme import SEED_BYTES, Scheme, Seeded, scheme_of

__all__ = ["score_rows", "signed"]


def score_rows(
    artifact: ModelArtifact, rows: bytes, signer: Signer | None = None, *, scratch: Path | None = None
) -> bytes:
    """Score encrypted rows.

    Args:
        artifact: the model.
        rows: what `encrypt_rows` returned.
        signer: who vouches for the scores; None for nobody.
        scratch: for `Scheme`, in a walled worker.

    Raises:
        InputError: the model is not scored under encryption, this is no file of rows, or tenseal is absent.
        IntegrityError: the file was altered, or encrypted by another model's card.
    """
    header, parts = read(rows, RowsHeader)  # 1
    network, card = Network.of(artifact), Card.of(artifact)
    due = (card.digest, card.circuit, card.features.width)
    if (header.card, header.circuit, header.features) != due:
        raise IntegrityError(
            "the rows were encrypted for another model", fix="Give their owner this model's card"
        )
    scheme = scheme_of(card.circuit) if scratch is None else Scheme(CIRCUITS[card.circuit], scratch)
    keys = _relinearisation(parts.body[: header.sizes[0]], scheme) if header.sizes[0] else None
    evaluation = Evaluation(network, scheme, keys)
    found = []
    for block in blocks(header, parts.body):
        features = [scheme.from_seeded(one) for one in _seeded(block, scheme.parameters.data, scheme)]  # 2
        found += [_packed(score, scheme) for score in evaluation.scores(features)]  # 3
    body = b"".join(found)
    scores = ScoresHeader(
        sha256(parts.header).hex(),
        card.digest,
        card.circuit,
        card.outputs,
        header.blocks,
        sha256(body).hex(),
    )
    return signed(scores, body, signer)


def signed(header: ScoresHeader, body: bytes, signer: Signer | None) -> bytes:  # 4
    """Return a file of scores, signed where there is a signer."""
    envelope = b"" if signer is None else sign_envelope(SCORES_TYPE, canonical_bytes(header), [signer])
    return write(header, body, envelope)


def _seeded(data: memoryview, primes: tuple[int, ...], scheme: Scheme) -> list[Seeded]:
    degree = scheme.parameters.degree
    size = packed_bytes(primes, degree)
    return [
        Seeded(unpack(data[at : at + size], primes, degree), bytes(data[at + size : at + size + SEED_BYTES]))
        for at in range(0, len(data), size + SEED_BYTES)
    ]


def _relinearisation(data: memoryview, scheme: Scheme) -> Any:
    return scheme.from_relinearisation(_seeded(data, scheme.parameters.primes, scheme))


def _packed(score: Any, scheme: Scheme) -> bytes:
    parameters: Parameters = scheme.parameters
    return b"".join(pack(each, parameters.data[:1]) for each in scheme.polynomials(score))
