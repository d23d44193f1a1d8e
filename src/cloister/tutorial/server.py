"""The server of the tutorial: it adds what it cannot read."""

from __future__ import annotations

import msgspec

from cloister.crypto import PublicIdentity
from cloister.errors import InputError, ProtocolError
from cloister.secagg import SecureSumHub
from cloister.tutorial.values import ClientModel, EncryptedModel, Kind
from cloister.tutorial.wire import ATTEMPTS, WIRE, Setting

__all__ = ["Server"]


class Server:
    """Adds what clients send. It holds masked vectors and sums hidden under a key it does not have."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._room = WIRE.join_as_server(self)
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
        if self._sum is None or (self._attempt + 1 >= ATTEMPTS and self._waiting()):
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
        names = WIRE.clients(self._room)
        if len(names) < 2:
            raise InputError(
                "a secure sum needs two clients", fix="Create the second client before the first train"
            )
        members = [
            msgspec.msgpack.decode(WIRE.ask(self._room, name, "identity", b""), type=PublicIdentity)
            for name in names
        ]
        self._epoch += 1
        setting = Setting(self._room, self._kind, self._epoch, tuple(members))
        hub = SecureSumHub(setting.context())
        body = msgspec.msgpack.encode(setting)
        announcements = [
            hub.on_announcement(name, WIRE.ask(self._room, name, "setting", body)) for name in names
        ][-1]
        body = msgspec.msgpack.encode(announcements)
        bundles = [hub.on_deal(name, WIRE.ask(self._room, name, "announcements", body)) for name in names][-1]
        for name, bundle in (bundles or {}).items():
            WIRE.ask(self._room, name, "bundle", bundle)
        self._sum, self._attempt, self._seen, self.members = hub, -1, set(), tuple(names)

    def _unmask(self, model: EncryptedModel) -> EncryptedModel:
        hub = self._secure_sum()
        for name, request in hub.close().items():
            hub.on_answer(name, WIRE.ask(self._room, name, "request", request))
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
