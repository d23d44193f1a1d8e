"""Federated learning in forty lines: two clients, one server, everything real.

    server = create_server()
    a, b = create_client("A"), create_client("B")
    a.data, b.data = (X_a, y_a), (X_b, y_b)
    sealed = [encrypt_data(client.data) for client in (a, b)]
    model = server.initialize_model()
    for _ in range(10):
        updates = [client.train(rows, model) for client, rows in zip((a, b), sealed)]
        for update in updates:
            model = server.update_model(update)
    final = decrypt_model(model)
    final.predict(X), final.score(X, y)

What is real in it:
- `encrypt_data` seals rows to their client's key (AES-256-GCM, the key by ML-KEM-768 and X25519); `train`
  alone opens them;
- what `train` returns is masked by the secure sum of `cloister.secagg`; the server adds and cannot read;
- the sum stays hidden from the server too (hub_view = "none"): `decrypt_model` opens it with the key that the
  clients share.

What it is not:
- With two clients each can compute the other's result from the average and its own: colluders = 0, t = m = 2.
  That is arithmetic, no defect, and the reason why a study proper needs three sites. More clients may join
  here too.
- Clients and server live in one process, and clients take each other's identities from it. Between
  organisations use a study.

Features of a logistic model go through asinh first: a public function, the same at every client, that leaves
small values nearly as they are and tames large ones, so that nobody has to agree on scales. It is no
substitute for a schema with bounds, which a study proper has.

A round is complete when `update_model` has seen every client's result once. Results are averaged with equal
weights.
"""

from __future__ import annotations

from safetensors.numpy import save

from cloister.crypto import seal_bytes
from cloister.errors import InputError
from cloister.tutorial.client import Client
from cloister.tutorial.server import Server
from cloister.tutorial.values import (
    ClientData,
    ClientModel,
    EncryptedData,
    EncryptedModel,
    FinalModel,
    Kind,
)
from cloister.tutorial.wire import WIRE

__all__ = [
    "Client",
    "ClientData",
    "ClientModel",
    "EncryptedData",
    "EncryptedModel",
    "FinalModel",
    "Server",
    "create_client",
    "create_server",
    "decrypt_model",
    "encrypt_data",
]


def create_server(kind: Kind = "logistic") -> Server:
    """Return a server for a logistic (two classes, 0 and 1) or linear model."""
    if kind not in ("logistic", "linear"):
        raise InputError(f"kind = {kind!r}", fix='Use "logistic" or "linear"')
    return Server(kind)


def create_client(name: str) -> Client:
    """Return a client with fresh keys. Any name will do; no two in one room may differ in case alone."""
    return Client(name)


def encrypt_data(data: ClientData) -> EncryptedData:
    """Seal a client's rows to that client.

    Args:
        data: `client.data`; it says whose key to use.
    """
    if not isinstance(data, ClientData):
        raise InputError(
            "encrypt_data takes client.data", fix="Assign client.data = X, y and pass client.data"
        )
    return EncryptedData(data.owner.fingerprint, seal_bytes(save({"X": data.X, "y": data.y}), [data.owner]))


def decrypt_model(model: EncryptedModel) -> FinalModel:
    """Open a model with the key its clients share, at the first of them that can."""
    names = WIRE.clients(model.room)
    if not names:
        raise InputError("no client of this model is left", fix="Keep the clients until the model is opened")
    return WIRE.client(model.room, names[0]).open_model(model)
