"""Who is in the room: servers and clients of this process find each other by a room's number.

A server holds that number and no client: between them go bytes. Parties are held weakly, so a room ends
with them.
"""

from __future__ import annotations

import secrets
import weakref
from typing import Literal, Protocol

import msgspec

from cloister.crypto import PublicIdentity, canonical_bytes, sha256
from cloister.errors import InputError, ProtocolError
from cloister.secagg import EpochContext, Params, Roster
from cloister.tutorial.values import EncryptedModel, FinalModel, Kind

__all__ = ["ATTEMPTS", "BITS", "WIRE", "Setting", "Wire"]

BITS: Literal[32] = 32
ATTEMPTS = 64


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every client agrees to before an epoch; hashed as the plan."""

    room: str
    kind: Kind
    epoch: int
    members: tuple[PublicIdentity, ...]

    def context(self) -> EpochContext:
        """Return the secure sum's context; the hub may see neither sum nor model."""
        return EpochContext(
            plan_digest=sha256(
                b"cloister tutorial v1", canonical_bytes({"room": self.room, "kind": self.kind})
            ),
            roster=Roster(self.members),
            epoch=self.epoch,
            attempts=ATTEMPTS,
            params=Params.derive(len(self.members), allow_two=True),
            bits=BITS,
            hub_view="none",
        )


class ServerEnd(Protocol):
    """What clients ask of a server."""

    @property
    def started(self) -> bool:
        """True once a round has begun."""

    def prepare(self, round_number: int) -> int:
        """Set the round up; return the attempt's number."""


class ClientEnd(Protocol):
    """What a server asks of clients."""

    @property
    def address(self) -> str:
        """What the client is called in messages."""

    def answer(self, kind: str, payload: bytes) -> bytes:
        """Bytes in, bytes out."""

    def open_model(self, model: EncryptedModel) -> FinalModel:
        """Return the model in the clear, to whoever holds the client."""


class Wire:
    """The rooms of a process."""

    def __init__(self) -> None:
        self._servers: weakref.WeakValueDictionary[str, ServerEnd] = weakref.WeakValueDictionary()
        self._clients: dict[str, weakref.WeakValueDictionary[str, ClientEnd]] = {}
        self._open = ""

    def join_as_server(self, server: ServerEnd) -> str:
        """Enter the open room if it lacks a server, else a new one; return its number."""
        room = self._room(full=self._open in self._servers)
        self._servers[room] = server
        return room

    def join_as_client(self, client: ClientEnd) -> str:
        """Enter the open room if its rounds have not begun, else a new one; return its number."""
        server = self._servers.get(self._open)
        room = self._room(full=server is not None and server.started)
        if client.address in self._clients[room]:
            raise InputError(
                f"there is a client {client.address!r} already", fix="Give every client its own name"
            )
        self._clients[room][client.address] = client
        return room

    def clients(self, room: str) -> list[str]:
        """Return the names of the room's living clients, in the order in which they came."""
        return list(self._clients.get(room) or ())

    def client(self, room: str, name: str) -> ClientEnd:
        """Return a client. Raises ProtocolError where it is gone."""
        client = self._clients[room].get(name) if room in self._clients else None
        if client is None:
            raise ProtocolError("the client is gone", peer=name, fix="Keep every client until the last round")
        return client

    def server(self, room: str) -> ServerEnd:
        """Return the room's server. Raises InputError where it is gone."""
        server = self._servers.get(room)
        if server is None:
            raise InputError(
                "the server of this model is gone", fix="Keep the object create_server() returned"
            )
        return server

    def ask(self, room: str, name: str, kind: str, payload: bytes) -> bytes:
        """Carry a question to a client and its answer back."""
        return self.client(room, name).answer(kind, payload)

    def _room(self, *, full: bool) -> str:
        if full or not self._open:
            self._open = secrets.token_hex(8)
            self._clients[self._open] = weakref.WeakValueDictionary()
        return self._open


WIRE = Wire()
