"""Which of several processes acts for a study: a key in a replicated bucket of JetStream.

    free      -> acquire: `create`, which only one of several succeeds in
    held      -> renew: `update` with the revision this process wrote last, so a holder that was replaced fails
    silent    -> after `TTL_SECONDS` without a renewal the server forgets the key, and another may create it

The term of a holder is the bucket's revision at its acquisition, which only grows. A holder that cannot renew
stops before the server gives its lease away: it counts from the moment it sent the last renewal that was
confirmed, on its own monotonic clock, and less than the server does. Wall clocks play no part.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import StorageError
from cloister.runtime.nats.serverconfig import LEASE_BUCKET
from cloister.runtime.nats.transport import NatsTransport

if TYPE_CHECKING:
    from nats.js.kv import KeyValue

__all__ = ["TTL_SECONDS", "Lease"]

TTL_SECONDS: Final = 6.0
_OWN_SECONDS: Final = 5.0  # shorter than the server's, so that a holder stops first
_CALL_SECONDS: Final = 2.0


class Lease:
    """The lease of one study.

    Args:
        transport: the hub's connection.
        key: names the study.
        replicas: copies of the bucket; of a cluster's servers, at most 3.
    """

    def __init__(self, transport: NatsTransport, key: str, *, replicas: int = 1) -> None:
        self._transport = transport
        self._key = key
        self._replicas = replicas
        self._holder = os.urandom(16)
        self._bucket: KeyValue | None = None
        self._revision = 0
        self._sent = -float("inf")

    @property
    def held(self) -> bool:
        """Whether this process may act, by its own clock."""
        return self._revision > 0 and time.monotonic() - self._sent < _OWN_SECONDS

    async def acquire(self) -> int | None:
        """Take the lease; return its term, None while another holds it or the network does not answer."""
        from nats.errors import Error
        from nats.js.errors import KeyWrongLastSequenceError

        sent = time.monotonic()
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                bucket = await self._open()
                self._revision = await bucket.create(self._key, self._holder)
        except KeyWrongLastSequenceError:
            return None
        except (Error, OSError, TimeoutError):
            self._bucket = None
            return None
        self._sent = sent
        return self._revision

    async def renew(self) -> None:
        """Renew the lease; where that fails `held` becomes false in its time, or at once if it was taken."""
        from nats.errors import Error
        from nats.js.errors import KeyWrongLastSequenceError

        sent = time.monotonic()
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                bucket = await self._open()
                self._revision = await bucket.update(self._key, self._holder, last=self._revision)
            self._sent = sent
        except KeyWrongLastSequenceError:
            self._revision = 0
        except (Error, OSError, TimeoutError):
            self._bucket = None

    async def release(self) -> None:
        """Give the lease up, if it is still this process's; another may take it at once."""
        from nats.errors import Error

        revision, self._revision = self._revision, 0
        if not revision:
            return
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await (await self._open()).delete(self._key, last=revision)
        except (Error, OSError, TimeoutError, StorageError):
            return  # the server forgets it in its time

    async def _open(self) -> Any:
        from nats.js.api import KeyValueConfig, StorageType
        from nats.js.errors import NotFoundError

        if self._bucket is None:
            stream = self._transport.client.jetstream(timeout=_CALL_SECONDS)
            try:
                self._bucket = await stream.key_value(LEASE_BUCKET)
            except NotFoundError:
                self._bucket = await stream.create_key_value(
                    KeyValueConfig(
                        bucket=LEASE_BUCKET,
                        description="which hub acts for a study",
                        history=1,
                        ttl=TTL_SECONDS,
                        storage=StorageType.FILE,
                        replicas=self._replicas,
                    )
                )
        return self._bucket
