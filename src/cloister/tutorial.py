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

import secrets
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cloister.cases import find_case
from cloister.crypto import Identity, PublicIdentity, canonical_bytes, open_bytes, seal_bytes, sha256
from cloister.errors import InputError, ProtocolError
from cloister.learning import (
    ClientRows,
    DataSection,
    FeatureMap,
    Model,
    ModelSection,
    TrainingSection,
    build_model,
    train,
)
from cloister.secagg import Encoding, EpochContext, Params, RingVector, Roster, SecureSumHub, SecureSumSite
from cloister.vault import load_schema

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

Array = NDArray[np.float64]
Kind = Literal["logistic", "linear"]

_BITS: Literal[32] = 32
_RANGE = 256.0
_ATTEMPTS = 64
_PAIR = 2


@dataclass(frozen=True, eq=False)
class ClientData:
    """A client's own rows: float64[n, f] and float64[n], and whose they are."""

    X: Array = field(repr=False)
    y: Array = field(repr=False)
    owner: PublicIdentity


@dataclass(frozen=True)
class EncryptedData:
    """Rows sealed to the client that owns them."""

    owner: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True)
class EncryptedModel:
    """The server's model: a sum it cannot read. Round 0 is the start, all zeros, and holds nothing."""

    room: str
    round: int
    survivors: tuple[str, ...] = ()
    total: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class ClientModel:
    """What a client's training gave, masked."""

    room: str
    client: str
    round: int
    masked: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class FinalModel:
    """The opened model.

    Attributes:
        weights: float64[f + 1], one per feature, the constant last; or whatever was submitted by hand.
    """

    weights: Array
    kind: Kind

    def predict(self, X: Any) -> Array:
        """Return 0 or 1 a row (logistic), or the value (linear). X is (n, f)."""
        values = self._scores(X)
        return (values > 0.5).astype(np.float64) if self.kind == "logistic" else values

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of class 1 a row."""
        if self.kind != "logistic":
            raise InputError("a linear model has no probabilities", fix="Use predict")
        return self._scores(X)

    def score(self, X: Any, y: Any) -> float:
        """Return accuracy (logistic) or R2 (linear) on the given rows."""
        y = _vector(y)
        predicted = self.predict(X)
        if self.kind == "logistic":
            return float(np.mean(predicted == y))
        return float(1.0 - np.square(predicted - y).sum() / np.square(y - y.mean()).sum())

    def _scores(self, X: Any) -> Array:
        rows = _features(self.kind, _matrix(X))
        return _shape(self.kind, self.weights.size - 1).predict(self.weights, rows)


class _Wire:
    """Names to parties of one process. A server holds a room's number, not this: bytes go in, bytes come
    out."""

    def __init__(self) -> None:
        self.servers: weakref.WeakValueDictionary[str, Server] = weakref.WeakValueDictionary()
        self.clients: dict[str, weakref.WeakValueDictionary[str, Client]] = {}
        self.open_room = ""

    def join(self, party: Server | Client) -> str:
        """Enter the room that still lacks such a party; otherwise open the next."""
        room = self.open_room
        taken = room in self.servers if isinstance(party, Server) else self._started(room)
        if not room or taken:
            room = self.open_room = secrets.token_hex(8)
            self.clients[room] = weakref.WeakValueDictionary()
        if isinstance(party, Server):
            self.servers[room] = party
        elif party.name in self.clients[room]:
            raise InputError(
                f"there is a client {party.name!r} already", fix="Give every client its own name"
            )
        else:
            self.clients[room][party.name] = party
        return room

    def _started(self, room: str) -> bool:
        server = self.servers.get(room)
        return server is not None and server.started

    def of(self, room: str) -> dict[str, Client]:
        """Return the room's living clients by name, in the order in which they came."""
        return dict(self.clients[room]) if room in self.clients else {}

    def ask(self, room: str, name: str, kind: str, payload: bytes) -> bytes:
        client = self.of(room).get(name)
        if client is None:
            raise ProtocolError("the client is gone", peer=name, fix="Keep every client until the last round")
        return client.answer(kind, payload)

    def server(self, room: str) -> Server:
        server = self.servers.get(room)
        if server is None:
            raise InputError(
                "the server of this model is gone", fix="Keep the object create_server() returned"
            )
        return server


_wire = _Wire()


class _Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every client agrees to before an epoch; hashed as the plan."""

    room: str
    kind: Kind
    epoch: int
    members: tuple[PublicIdentity, ...]

    def context(self) -> EpochContext:
        return EpochContext(
            plan_digest=sha256(
                b"cloister tutorial v1", canonical_bytes({"room": self.room, "kind": self.kind})
            ),
            roster=Roster(self.members),
            epoch=self.epoch,
            attempts=_ATTEMPTS,
            params=Params.derive(len(self.members), allow_two=True),
            bits=_BITS,
            hub_view="none",
        )


class Server:
    """Adds what clients send. It holds masked vectors and sums hidden under a key it does not have."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._room = _wire.join(self)
        self._model: EncryptedModel | None = None
        self._epoch = -1
        self._attempt = -1
        self._sum: SecureSumHub | None = None
        self._seen: set[str] = set()
        self.members: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Server({self._kind}, round {self._model.round if self._model else 0}, cannot read its model)"

    @property
    def started(self) -> bool:
        """True once a round has begun; from then on no client joins."""
        return self._sum is not None

    def initialize_model(self) -> EncryptedModel:
        """Return the start: round 0. A second call begins nothing new."""
        if self._model is None:
            self._model = EncryptedModel(self._room, 0)
        return self._model

    def prepare(self, round_number: int) -> int:
        """Make sure the clients have keys for the round (called by `Client.train`); return the attempt's
        number."""
        model = self.initialize_model()
        if round_number != model.round:
            raise InputError(
                f"round {round_number} is over, the server is at round {model.round}",
                fix="Train from the model that update_model returned last",
            )
        if self._sum is None or (self._attempt + 1 >= _ATTEMPTS and self._waiting()):
            self._set_up()
        if self._waiting():
            self._attempt += 1
            self._secure_sum().begin(self._attempt)
            self._seen = set()
        return self._attempt

    def update_model(self, client_model: ClientModel) -> EncryptedModel:
        """Take one client's result; return the server's model, which moves on when every client's result is
        in.

        Raises:
            InputError: the result is of another server or round, or this client's is in already.
        """
        model = self.initialize_model()
        if client_model.room != self._room or client_model.round != model.round:
            raise InputError(
                f"this result is not one of round {model.round} of this server",
                fix="Call update_model once for each client and round",
            )
        if client_model.client in self._seen:
            raise InputError(
                f"{client_model.client!r} has given its result in this round",
                fix="Wait for the other clients",
            )
        self._secure_sum().on_upload(client_model.client, client_model.masked)
        self._seen.add(client_model.client)
        if len(self._seen) == len(self.members):
            self._model = self._unmask(model)
        return self.initialize_model()

    def _waiting(self) -> bool:
        """True between rounds."""
        return self._sum is None or self._attempt < 0 or len(self._seen) == len(self.members)

    def _set_up(self) -> None:
        names = list(_wire.of(self._room))
        if len(names) < 2:
            raise InputError(
                "a secure sum needs two clients", fix="Create the second client before the first train"
            )
        members = [
            msgspec.msgpack.decode(_wire.ask(self._room, name, "identity", b""), type=PublicIdentity)
            for name in names
        ]
        self._epoch += 1
        setting = _Setting(self._room, self._kind, self._epoch, tuple(members))
        hub = SecureSumHub(setting.context())
        body = msgspec.msgpack.encode(setting)
        announcements = [
            hub.on_announcement(name, _wire.ask(self._room, name, "setting", body)) for name in names
        ][-1]
        body = msgspec.msgpack.encode(announcements)
        bundles = [hub.on_deal(name, _wire.ask(self._room, name, "announcements", body)) for name in names][
            -1
        ]
        for name, bundle in (bundles or {}).items():
            _wire.ask(self._room, name, "bundle", bundle)
        self._sum, self._attempt, self._seen, self.members = hub, -1, set(), tuple(names)

    def _unmask(self, model: EncryptedModel) -> EncryptedModel:
        hub = self._secure_sum()
        for name, request in hub.close().items():
            hub.on_answer(name, _wire.ask(self._room, name, "request", request))
        result = hub.result()
        if result is None:
            raise ProtocolError(
                "the clients' answers did not open the sum", fix="Begin again with new clients"
            )
        return EncryptedModel(self._room, model.round + 1, result.survivors, result.total.tobytes())

    def _secure_sum(self) -> SecureSumHub:
        if self._sum is None:
            raise InputError("no client has trained yet", fix="Call client.train first")
        return self._sum


class Client:
    """One participant: keys, rows, training."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._identity = Identity.generate(name.lower())
        self._data: ClientData | None = None
        self._sum: SecureSumSite | None = None
        self._setting: _Setting | None = None
        self._opened: dict[int, Array] = {}
        self._attempts: dict[int, tuple[int, SecureSumSite, Encoding]] = {}
        self.name = self._identity.name
        self._room = _wire.join(self)

    def __repr__(self) -> str:
        return f"Client({self.name}, {0 if self._data is None else len(self._data.y)} rows)"

    @property
    def data(self) -> ClientData:
        """The client's rows. Assign (X, y), or one table whose last column is the label; without that the
        client gets a share of scikit-learn's breast-cancer rows."""
        if self._data is None:
            X, y = _example_rows(list(_wire.of(self._room)).index(self.name))
            self._data = ClientData(X, y, self._identity.public)
        return self._data

    @data.setter
    def data(self, rows: Any) -> None:
        X, y = _pair(rows)
        features, labels = _matrix(X), _vector(y)
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
        _wire.server(model.room).prepare(model.round)
        X = _features(self._kind(), X)
        if self._kind() == "logistic" and not np.isin(y, (0.0, 1.0)).all():
            raise InputError(
                "a logistic model needs labels 0 and 1", fix='Use create_server("linear") for numbers'
            )
        start = self._open(model, X.shape[1] + 1)
        section = TrainingSection(rounds=1, batch=batch, local_steps=steps, learning_rate=learning_rate)
        trained = train(_shape(self._kind(), X.shape[1]), start, ClientRows.stack([(X, y)]), section)[0]
        return self.submit(trained, model)

    def submit(self, weights: Sequence[float] | Array, model: EncryptedModel) -> ClientModel:
        """Mask weights that were trained elsewhere; what `train` ends with.

        Args:
            weights: float64[d], this client's result of the round.
            model: the server's current model.
        """
        attempt = _wire.server(model.room).prepare(model.round)
        values = _vector(weights)
        start = self._open(model, values.size)
        secure_sum, setting = self._epoch()
        encoding = Encoding(bits=_BITS, parties=len(setting.members), value_range=_RANGE)
        if encoding.clamped(values):
            raise InputError(f"a weight exceeds {_RANGE:g} in size", fix="Lower the learning rate")
        self._attempts[model.round] = attempt, secure_sum, encoding
        return ClientModel(
            model.room, self.name, model.round, secure_sum.upload(attempt, encoding.encode(values), start)
        )

    def answer(self, kind: str, payload: bytes) -> bytes:
        """Answer the server: bytes in, bytes out, by the rules of the secure sum."""
        if kind == "identity":
            return msgspec.msgpack.encode(self._identity.public)
        if kind == "setting":
            self._setting = msgspec.msgpack.decode(payload, type=_Setting)
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

    def _epoch(self) -> tuple[SecureSumSite, _Setting]:
        if self._sum is None or self._setting is None:
            raise ProtocolError("the set-up has not begun", peer="server")
        return self._sum, self._setting

    def _kind(self) -> Kind:
        return self._epoch()[1].kind


def create_server(kind: Kind = "logistic") -> Server:
    """Return a server for a logistic (two classes, 0 and 1) or linear model."""
    if kind not in ("logistic", "linear"):
        raise InputError(f"kind = {kind!r}", fix='Use "logistic" or "linear"')
    return Server(kind)


def create_client(name: str) -> Client:
    """Return a client with fresh keys. Names are letters, digits, '-' and '_', and count without regard to
    case."""
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
    client = next(iter(_wire.of(model.room).values()), None)
    if client is None:
        raise InputError("no client of this model is left", fix="Keep the clients until the model is opened")
    return client.open_model(model)


def _shape(kind: Kind, features: int) -> Model:
    return build_model(ModelSection(kind=kind), features)


def _example_rows(position: int) -> tuple[Array, Array]:
    """Return the demo's training rows for the client at this position in its room, scaled by public bounds."""
    case = find_case("diagnosis")
    schema = load_schema(case.schema_toml.encode())
    data = DataSection(schema=schema.digest().hex(), features=schema.features, label=case.label)
    rows = case.load(None).sites[case.sites[position % len(case.sites)]].train
    return FeatureMap.build(schema, data, case.model).transform(rows)


def _features(kind: Kind, X: Array) -> Array:
    """Return what the model sees of the rows; see the module's docstring."""
    return np.arcsinh(X) if kind == "logistic" else X


def _pair(rows: Any) -> tuple[Any, Any]:
    if isinstance(rows, tuple | list) and len(rows) == _PAIR:
        return rows[0], rows[1]
    table = _matrix(rows)
    if table.shape[1] < _PAIR:
        raise InputError("the table has no feature beside its label", fix="Assign client.data = X, y")
    return table[:, :-1], table[:, -1]


def _matrix(X: Any) -> Array:
    try:
        rows = np.ascontiguousarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("X holds something that is not a number", fix="Give a table of numbers") from None
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError("X must be a finite table (n, f)", fix="Reshape it, and leave out missing values")
    return rows


def _vector(y: Any) -> Array:
    try:
        values = np.ascontiguousarray(y, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("a label or weight is not a number", fix="Give a list of numbers") from None
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(
            "labels or weights must be one finite list", fix="Flatten it, and leave out missing values"
        )
    return values
