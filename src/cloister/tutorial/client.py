"""A client of the tutorial: it opens its rows in `train`, and masks what it sends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load

from cloister.cases import find_case
from cloister.crypto import Identity, open_bytes, sha256
from cloister.errors import InputError, ProtocolError
from cloister.learning import ClientRows, DataSection, FeatureMap, TrainingSection, train
from cloister.secagg import Encoding, RingVector, SecureSumSite
from cloister.tutorial.values import (
    Array,
    ClientData,
    ClientModel,
    EncryptedData,
    EncryptedModel,
    FinalModel,
    Kind,
    features_of,
    matrix,
    pair,
    shape_of,
    vector,
)
from cloister.tutorial.wire import BITS, WIRE, Setting
from cloister.vault import load_schema

__all__ = ["Client"]

_RANGE = 256.0
"""The largest weight that fits into the sum."""


class Client:
    """One participant: keys, rows, training."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._identity = Identity.generate(_address(name))
        self._data: ClientData | None = None
        self._sum: SecureSumSite | None = None
        self._setting: Setting | None = None
        self._opened: dict[int, Array] = {}
        self._attempts: dict[int, tuple[int, SecureSumSite, Encoding]] = {}
        self._room = WIRE.join_as_client(self)

    def __repr__(self) -> str:
        return f"Client({self.name}, {0 if self._data is None else len(self._data.y)} rows)"

    @property
    def address(self) -> str:
        """What the client is called in messages: its name, in the letters that identities may have."""
        return self._identity.name

    @property
    def data(self) -> ClientData:
        """The client's rows. Assign (X, y), or one table whose last column is the label; without that the
        client gets a share of scikit-learn's breast-cancer rows."""
        if self._data is None:
            X, y = _example_rows(WIRE.clients(self._room).index(self.address))
            self._data = ClientData(X, y, self._identity.public)
        return self._data

    @data.setter
    def data(self, rows: Any) -> None:
        X, y = pair(rows)
        features, labels = matrix(X), vector(y)
        if len(features) != len(labels) or not len(labels):
            raise InputError(
                f"{len(features)} rows and {len(labels)} labels", fix="Give one label for each row"
            )
        self._data = ClientData(features, labels, self._identity.public)

    def train(
        self,
        encrypted_data: EncryptedData,
        model: EncryptedModel,
        *,
        steps: int = 100,
        batch: int = 32,
        learning_rate: float = 0.05,
    ) -> ClientModel:
        """Open the rows, train from the model, return the result masked.

        Args:
            encrypted_data: what `encrypt_data` made of this client's data.
            model: the server's current model.
            steps: batches of local training.
            batch: rows a batch.
            learning_rate: of SGD.
        """
        X, y = self._open_rows(encrypted_data)
        WIRE.server(model.room).prepare(model.round)
        X = features_of(self._kind(), X)
        if self._kind() == "logistic" and not np.isin(y, (0.0, 1.0)).all():
            raise InputError(
                "a logistic model needs labels 0 and 1", fix='Use create_server("linear") for numbers'
            )
        start = self._open(model, X.shape[1] + 1)
        section = TrainingSection(rounds=1, batch=batch, local_steps=steps, learning_rate=learning_rate)
        trained = train(shape_of(self._kind(), X.shape[1]), start, ClientRows.stack([(X, y)]), section)[0]
        return self.submit(trained, model)

    def submit(self, weights: Sequence[float] | Array, model: EncryptedModel) -> ClientModel:
        """Mask weights that were trained elsewhere; what `train` ends with.

        Args:
            weights: float64[d], this client's result of the round.
            model: the server's current model.
        """
        attempt = WIRE.server(model.room).prepare(model.round)
        values = vector(weights)
        start = self._open(model, values.size)
        secure_sum, setting = self._epoch()
        encoding = Encoding(bits=BITS, parties=len(setting.members), value_range=_RANGE)
        if encoding.clamped(values):
            raise InputError(f"a weight exceeds {_RANGE:g} in size", fix="Lower the learning rate")
        self._attempts[model.round] = attempt, secure_sum, encoding
        return ClientModel(
            model.room, self.address, model.round, secure_sum.upload(attempt, encoding.encode(values), start)
        )

    def answer(self, kind: str, payload: bytes) -> bytes:
        """Answer the server: bytes in, bytes out, by the rules of the secure sum."""
        if kind == "identity":
            return msgspec.msgpack.encode(self._identity.public)
        if kind == "setting":
            self._setting = msgspec.msgpack.decode(payload, type=Setting)
            self._sum = SecureSumSite(self._setting.context(), self._identity)
            return self._sum.announce()
        secure_sum, _ = self._epoch()
        if kind == "announcements":
            return secure_sum.deal(msgspec.msgpack.decode(payload, type=list[bytes]))
        if kind == "bundle":
            secure_sum.finish_setup(payload)
            return b""
        return secure_sum.answer(payload)

    def open_model(self, model: EncryptedModel) -> FinalModel:
        """Return the model in the clear; this client must have taken part in the round before it."""
        return FinalModel(self._open(model, None).copy(), self._kind())

    def _open(self, model: EncryptedModel, size: int | None) -> Array:
        if model.room != self._room:
            raise InputError(
                "this model is of another server", fix="Use the model of the client's own server"
            )
        if model.round not in self._opened:
            self._opened[model.round] = self._decode(model, size)
        opened = self._opened[model.round]
        if size is not None and opened.size != size:
            raise InputError(
                f"the model has {opened.size} weights, {size} were given",
                fix="Give every client the same features",
            )
        return opened

    def _decode(self, model: EncryptedModel, size: int | None) -> Array:
        if model.round == 0:
            if size is None:
                raise InputError("nothing is trained yet", fix="Run at least one round")
            return np.zeros(size)
        if model.round - 1 not in self._attempts:
            raise InputError("this client took no part in the last round", fix="Train in every round")
        attempt, secure_sum, encoding = self._attempts[model.round - 1]
        total: RingVector = np.frombuffer(model.total, dtype=encoding.dtype)
        opened = secure_sum.open_sum(attempt, model.survivors, total, self._opened[model.round - 1])
        return encoding.decode_sum(opened, len(model.survivors)) / len(model.survivors)

    def _open_rows(self, data: EncryptedData) -> tuple[Array, Array]:
        if not isinstance(data, EncryptedData):
            raise InputError("train takes encrypted data", fix="Call encrypt_data(client.data) first")
        if data.owner != self._identity.fingerprint:
            raise InputError("these rows are sealed to another client", fix="Give every client its own rows")
        arrays = load(open_bytes(data.sealed, self._identity))
        return arrays["X"], arrays["y"]

    def _epoch(self) -> tuple[SecureSumSite, Setting]:
        if self._sum is None or self._setting is None:
            raise ProtocolError("the set-up has not begun", peer="server")
        return self._sum, self._setting

    def _kind(self) -> Kind:
        return self._epoch()[1].kind


def _address(name: str) -> str:
    """Return a name that is safe in messages; names that differ in more than case get different ones."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain == name.lower():
        return plain
    return f"{plain[:40]}-{sha256(name.encode()).hex()[:8]}".lstrip("-")


def _example_rows(position: int) -> tuple[Array, Array]:
    """Return the demo's training rows for the client at this position, scaled by public bounds."""
    case = find_case("diagnosis")
    schema = load_schema(case.schema_toml.encode())
    data = DataSection(schema=schema.digest().hex(), features=schema.features, label=case.label)
    rows = case.load(None).sites[case.sites[position % len(case.sites)]].train
    return FeatureMap.build(schema, data, case.model).transform(rows)
