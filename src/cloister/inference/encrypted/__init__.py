"""Scoring under encryption: the server computes on rows that it cannot read.

CKKS (Cheon, Kim, Kim and Song 2017) in Microsoft SEAL, through TenSEAL's bindings. The client encrypts rows
under a key that stays with it; the server, which has the model, adds and multiplies ciphertexts, and returns
encrypted scores. No enclave is needed, and no trust in the server's machine for what the rows are.

    model                                          scored under encryption
    linear (a number), logistic, softmax           yes, exactly but for noise of about 1e-8
    mlp with one hidden layer, scaling "bounds"    yes, its activation a polynomial; error bounded and told
    mlp with more layers, or scaling "local"       no
    torch                                          no

Order of use: `Card.of` at the server; `encrypt_rows` at the client; `score_rows_walled` at the server
(`score_rows` does it in this process);
`ClientKey.open` at the client. `compare` measures cost and accuracy for whoever has both.

Limits, all of which `docs/encrypted-scoring.md` explains: the client learns scores, hence in time the model;
a dishonest server may compute something else; exact scores must not get back to the server.
"""

from cloister.inference.encrypted.card import Card
from cloister.inference.encrypted.client import ClientKey, Opened, encrypt_rows
from cloister.inference.encrypted.container import FILE_LIMIT
from cloister.inference.encrypted.report import Report, compare
from cloister.inference.encrypted.server import score_rows
from cloister.inference.encrypted.walled import score_rows_walled

__all__ = [
    "FILE_LIMIT",
    "Card",
    "ClientKey",
    "Opened",
    "Report",
    "compare",
    "encrypt_rows",
    "score_rows",
    "score_rows_walled",
]
