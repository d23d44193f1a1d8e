"""Who may ask a service: a file of clients' names and of hashes of their tokens.

    [[clients]]
    name = "ward-7"
    token_sha256 = "..."       of the token's text

A token is "clst-" and 32 random bytes in base64url; it is shown once, when it is made. The worker gets
names and hashes, and checks every client's, in constant time, whichever fits. A hash of 32 random bytes
tells nobody the token, yet whoever can write the file can let anybody in: it is the operator's alone.
"""

from __future__ import annotations

import base64
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cloister.crypto import constant_time_equal, sha256
from cloister.errors import InputError
from cloister.files import exclusive, read_bytes, write_atomic
from cloister.types import RandomBytes, check_name

__all__ = ["MAX_CLIENTS", "Client", "Register", "add_client", "list_clients", "remove_client"]

MAX_CLIENTS: Final = 1000
_MAX_FILE: Final = 1 << 20
_PREFIX: Final = "clst-"
_HEADER: Final = (
    "# Who may ask this service. Written by `cloister clients`; tokens are not kept, only their hashes.\n"
)


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who may ask.

    Attributes:
        name: as logs and applications show it.
        token_sha256: hexadecimal.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    token_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    clients: Annotated[list[Client], msgspec.Meta(max_length=MAX_CLIENTS)] = []


def list_clients(path: Path) -> list[Client]:
    """Return the clients in a file, in its order.

    Raises:
        InputError: it cannot be read, is no such file, or names somebody or one token twice.
    """
    data = read_bytes(path, limit=_MAX_FILE, what="file of clients")
    try:
        found = msgspec.convert(tomllib.loads(data.decode()), _File).clients
        for client in found:
            check_name(client.name)
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(
            f"the file of clients is not as it should be: {error}", where=str(path), fix="Correct it"
        ) from None
    for each in ("name", "token_sha256"):
        if len({getattr(client, each) for client in found}) != len(found):
            raise InputError(
                "two clients have one name or one token", where=str(path), fix="Remove one of them"
            )
    return found


def add_client(path: Path, name: str, *, insecure_test_random: RandomBytes | None = None) -> str:
    """Add a client to a file, made where there is none, and return the new token.

    Raises:
        InputError: the name is not allowed or taken, or the file is full or cannot be read.
    """
    check_name(name)
    with exclusive(_lock(path)):
        clients = list_clients(path) if path.exists() else []
        if any(client.name == name for client in clients):
            raise InputError(f"there is a client {name!r} already", where=str(path), fix="Remove it first")
        if len(clients) == MAX_CLIENTS:
            raise InputError(f"the file has {MAX_CLIENTS} clients already", where=str(path))
        secret = (insecure_test_random or os.urandom)(32)
        token = _PREFIX + base64.urlsafe_b64encode(secret).decode().rstrip("=")
        _write(path, [*clients, Client(name, sha256(token.encode()).hex())])
    return token


def remove_client(path: Path, name: str) -> None:
    """Remove a client from a file. Raises InputError where there is none of that name."""
    with exclusive(_lock(path)):
        clients = list_clients(path)
        left = [client for client in clients if client.name != name]
        if len(left) == len(clients):
            raise InputError(f"there is no client {name!r}", where=str(path), fix="See `cloister clients ls`")
        _write(path, left)


class Register:
    """Tells who asks.

    Args:
        clients: who may ask; None where anybody may, whose name is empty.
    """

    def __init__(self, clients: Sequence[Client] | None) -> None:
        self._known = None
        if clients is not None:
            self._known = [(bytes.fromhex(client.token_sha256), client.name) for client in clients]

    @property
    def several(self) -> bool:
        """Whether more than one client is known, who have to share."""
        return self._known is not None and len(self._known) > 1

    def name_of(self, credential: str) -> str | None:
        """Return the name of the client whom a credential proves; None where it is nobody's."""
        if self._known is None:
            return ""
        given, found = sha256(credential.encode()), None
        for token, name in self._known:
            if constant_time_equal(token, given):
                found = name
        return found


def _lock(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _write(path: Path, clients: list[Client]) -> None:
    parts = [
        f'\n[[clients]]\nname = "{client.name}"\ntoken_sha256 = "{client.token_sha256}"\n'
        for client in clients
    ]
    write_atomic(path, (_HEADER + "".join(parts)).encode(), mode=0o600)
