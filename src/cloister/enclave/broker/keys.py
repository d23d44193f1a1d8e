"""`BrokerKeys`: the key broker as a `KeyService`, so that a vault keeps a dataset's KEK in it.

Whoever adds a dataset is its owner: `create`, `wrap` and `destroy` are orders signed by the owner's identity.
`unwrap` is for an attested worker. An owner without one opens only what this very object has wrapped: it had
those data keys anyway, and the vault reads back what it has written.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final

from cloister.crypto import HoldsSecret, Identity, PublicIdentity, hpke_seal
from cloister.enclave.broker.client import Client, Connect
from cloister.enclave.broker.grant import Permission
from cloister.enclave.broker.ordermessages import (
    WRAP_INFO,
    Allow,
    Create,
    Destroy,
    Inventory,
    ListKeys,
    Order,
    Revoke,
    Wrap,
)
from cloister.enclave.broker.worker import Worker
from cloister.enclave.sandbox import SecretBytes
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused

__all__ = ["BrokerKeys"]

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}\Z", re.ASCII)
_MAX_WRAPPED: Final = 1 << 17


class BrokerKeys(HoldsSecret):
    """A `KeyService` whose KEKs are in a broker.

    Args:
        connect: opens a connection to it; called when one is needed.
        broker: the broker's identity, which must answer.
        owner: gives the orders; None for a worker, which gives none.
        worker: opens data keys; None for an owner, who opens none.
    """

    __slots__ = ("_broker", "_client", "_connect", "_known", "_owner", "_worker")

    def __init__(
        self,
        connect: Connect,
        broker: PublicIdentity,
        *,
        owner: Identity | None = None,
        worker: Worker | None = None,
    ) -> None:
        self._connect = connect
        self._broker = broker
        self._owner = owner
        self._worker = worker
        self._client: Client | None = None
        self._known: dict[tuple[str, bytes], SecretBytes] = {}  # in memory that no swap or core file sees

    def create(self, kek_id: str) -> None:
        """Make a fresh KEK in the broker. Raises InputError where the id is taken or not allowed."""
        _check_id(kek_id)
        self._order(Create(kek_id))

    def wrap(self, kek_id: str, data_key: bytes) -> bytes:
        """Return `data_key` (16 to 64 bytes) encrypted under the KEK; it travels sealed to the broker.

        Raises:
            InputError: the id is unknown, or the data key has another length.
        """
        _check_id(kek_id)
        if not 16 <= len(data_key) <= 64:
            raise InputError("a data key must have 16 to 64 bytes", fix="Wrap keys only")
        sealed = hpke_seal(
            self._broker.sealing_key, data_key, info=WRAP_INFO, associated_data=kek_id.encode()
        )
        wrapped: bytes = self._order(Wrap(kek_id, sealed), bytes)
        if self._worker is None:
            self._known[kek_id, wrapped] = SecretBytes(data_key)
        return wrapped

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        """Return the data key.

        Raises:
            InputError: the id is unknown.
            IntegrityError: `wrapped` was not made under this KEK and id.
            PolicyRefused: this is no attested worker, or the broker refuses it; the message says why.
        """
        return self.unwrap_all(kek_id, [wrapped])[0]

    def unwrap_all(self, kek_id: str, wrapped: Sequence[bytes]) -> list[bytes]:
        """Return several data keys with one request; those that were opened before come from memory."""
        _check_id(kek_id)
        missing = tuple(dict.fromkeys(each for each in wrapped if (kek_id, each) not in self._known))
        if missing:
            if any(len(each) > _MAX_WRAPPED for each in missing):
                raise IntegrityError(
                    "a wrapped key is too long to be one", fix="Restore the dataset's folder"
                )
            opened = self._attested(kek_id, missing)
            found = zip(missing, opened, strict=True)
            self._known |= {(kek_id, each): SecretBytes(key) for each, key in found}
        return [self._known[kek_id, each].get() for each in wrapped]

    def destroy(self, kek_id: str) -> str:
        """Destroy the KEK and revoke what was granted about it; return one sentence on what may survive."""
        _check_id(kek_id)
        sentence: str = self._order(Destroy(kek_id), str)
        for name in [name for name in self._known if name[0] == kek_id]:
            self._known.pop(name).wipe()
        return sentence

    def allow(self, permission: Permission) -> None:
        """Enter a permission. Raises InputError, PolicyRefused."""
        self._order(Allow(permission))

    def revoke(self, permission: str) -> None:
        """End a permission. Raises InputError where there is none of this id."""
        self._order(Revoke(permission))

    def inventory(self) -> Inventory:
        """Return the owner's KEKs and permissions."""
        found: Inventory = self._order(ListKeys(), Inventory)
        return found

    def close(self) -> None:
        """Forget the data keys in memory and close the connection; both come back on use."""
        for key in self._known.values():
            key.wipe()
        self._known.clear()
        self._drop()

    def _attested(self, kek_id: str, wrapped: tuple[bytes, ...]) -> list[bytes]:
        if self._worker is None:
            raise PolicyRefused(
                "this dataset's key is with a key broker, which opens it for attested workers alone",
                where=kek_id,
                fix="Run the study with a worker that attests itself",
            )
        with self._connection() as client:
            return self._worker.unwrap(client, kek_id, wrapped)

    def _order(self, order: Order, kind: Any = None) -> Any:
        if self._owner is None:
            raise PolicyRefused("a worker gives a key broker no orders", fix="Use the owner's identity")
        try:
            with self._connection() as client:
                return client.order(order, self._owner, kind)
        except IntegrityError:
            self._drop()  # whoever carries the messages has meddled with this connection
            raise

    @contextlib.contextmanager
    def _connection(self) -> Any:
        """Yield the connection; one that failed in any way but a refusal is not used again."""
        if self._client is not None and not self._client.alive():
            self._drop()  # the broker was started anew, or has closed what was idle
        if self._client is None:
            self._client = self._greeted()
        try:
            yield self._client
        except (InputError, PolicyRefused, IntegrityError):
            raise
        except BaseException:
            self._drop()
            raise

    def _greeted(self) -> Client:
        exchange = self._connect()
        try:
            return Client(exchange, self._broker)
        except BaseException:
            exchange.close()
            raise

    def _drop(self) -> None:
        client, self._client = self._client, None
        if self._worker is not None:
            self._worker.forget_grant()
        if client is not None:
            with contextlib.suppress(CloisterError, OSError):
                client.close()


def _check_id(kek_id: str) -> None:
    if not _ID.match(kek_id):
        raise InputError("a KEK's id is not allowed", fix="Use 1 to 128 of a-z, 0-9 and . _ -")
