"""Which of several processes acts for a study: a key in a replicated bucket of JetStream.

    nobody's  -> acquire: `create`, which only one of several succeeds in
    another's -> acquire looks at it from time to time; once it has not changed for `TTL_SECONDS` its holder
                 is dead, and it is overwritten if it is still what was looked at
    own       -> renew: overwritten if it is still what this process wrote last

Never two holders:
1. A holder acts for less than `_OWN_SECONDS` after it *sent* the last renewal that was confirmed.
2. Whoever takes over saw that renewal, after it was sent, and saw it again `TTL_SECONDS` later.
3. A renewal between the two would have changed the key, and the overwriting would have failed.
Each process measures with a clock of its own, and only lengths of time; no date plays a part. So the bucket
has no expiry: a server expires by its date, and one whose date is set would give away a lease that is held.

The term of a holder is the bucket's revision at its acquisition, which only grows. The bucket is on three
servers where there is a cluster; while most of them do not answer there is no lease, and nobody acts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cloister.errors import StorageError
from cloister.runtime.nats.serverconfig import LEASE_BUCKET
from cloister.runtime.nats.tlsfiles import TlsFiles
from cloister.runtime.nats.transport import Connection

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.kv import KeyValue

__all__ = ["TTL_SECONDS", "Lease"]

TTL_SECONDS: Final = 6.0
_OWN_SECONDS: Final = 5.0  # shorter, so that a holder has stopped before another acts
_CALL_SECONDS: Final = 2.0
_REPLICAS: Final = 3
_NO_CLUSTER: Final = 10074  # what a server that stands alone answers to a wish for replicas


def _boot_clock() -> float:
    """Seconds since this machine started, those in which it was suspended among them: a holder that slept
    must wake up knowing it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Written(NamedTuple):
    """The revision that this process wrote last, 0 while it holds nothing, and when it sent it."""

    revision: int
    sent: float


_NOTHING: Final = _Written(0, 0.0)


class _HasClient(Protocol):
    @property
    def client(self) -> Client | None: ...


class Lease:
    """The lease of one study; made by `connect`.

    Args:
        connection: the hub's connection to the network.
        key: names the study.
        clock: seconds that never go back.

    Attributes:
        problem: why the network gave no answer the last time, in words; "" where it did.
    """

    def __init__(self, connection: _HasClient, key: str, *, clock: Callable[[], float] = _boot_clock) -> None:
        self._connection = connection
        self._key = key
        self._clock = clock
        self._holder = os.urandom(16)
        self._bucket: tuple[Client, KeyValue] | None = None
        self._written = _NOTHING
        self._seen = (0, 0.0)  # another's revision, and since when it is known
        self.problem = ""

    @classmethod
    async def connect(
        cls, url: str | Sequence[str], tls: TlsFiles, name: str, key: str, *, patience: float = 10.0
    ) -> Lease:
        """Return the lease on a connection of its own: a renewal must not wait behind models on a slow line.

        Args:
            url: of the server, or of each server of a cluster.
            tls: the hub's network files.
            name: the hub's name.
            key: names the study.
            patience: seconds to try for.

        Raises:
            StorageError: no server let the hub in within that time.
            InputError, IntegrityError, PassphraseError: the network files; see `TlsFiles.client_context`.
        """
        connection = Connection(url, tls, f"{name}-lease")
        await connection.open(patience)
        return cls(connection, key)

    async def close(self) -> None:
        """End the lease's own connection; `release` comes before."""
        if isinstance(self._connection, Connection):
            await self._connection.close()

    @property
    def held(self) -> bool:
        """Whether this process may act, by its own clock."""
        return self._written.revision > 0 and self._clock() - self._written.sent < _OWN_SECONDS

    async def acquire(self) -> int | None:
        """Take the lease; return its term, None while another may hold it or the network does not answer.

        To be called again until there is a term: only who looks from time to time sees that a holder is dead.
        """
        self._written = _NOTHING
        self._written = await self._ask(self._take) or _NOTHING
        return self._written.revision or None

    async def renew(self) -> None:
        """Renew the lease; where that fails `held` becomes false in its time, or at once if it was taken."""
        if self.held:
            self._written = await self._ask(self._overwrite_own) or self._written

    async def release(self) -> None:
        """Give the lease up, if it is still this process's; another may take it at once."""
        written, self._written = self._written, _NOTHING
        if written.revision > 0:
            await self._ask(self._delete_own)  # where that fails, the others wait until it is stale

    async def _take(self, bucket: KeyValue) -> _Written:
        from nats.js.errors import KeyNotFoundError

        sent = self._clock()
        try:
            entry = await bucket.get(self._key)
        except KeyNotFoundError:
            return _Written(await bucket.create(self._key, self._holder), sent)
        revision = entry.revision or 0
        if entry.value != self._holder and not self._stale(revision):
            return _NOTHING
        sent = self._clock()
        return _Written(await bucket.update(self._key, self._holder, last=revision), sent)

    def _stale(self, revision: int) -> bool:
        now = self._clock()
        if self._seen[0] != revision:
            self._seen = (revision, now)
        return now - self._seen[1] >= TTL_SECONDS

    async def _overwrite_own(self, bucket: KeyValue) -> _Written:
        from nats.js.errors import KeyWrongLastSequenceError

        sent = self._clock()
        try:
            return _Written(await bucket.update(self._key, self._holder, last=self._written.revision), sent)
        except KeyWrongLastSequenceError:
            last = await self._own_revision(bucket)
            if last == 0:
                return _NOTHING
            sent = self._clock()
            return _Written(await bucket.update(self._key, self._holder, last=last), sent)

    async def _delete_own(self, bucket: KeyValue) -> _Written:
        if last := await self._own_revision(bucket):
            await bucket.delete(self._key, last=last)
        return _NOTHING

    async def _own_revision(self, bucket: KeyValue) -> int:
        """Return the key's revision if this process wrote it, perhaps without having heard so; else 0."""
        from nats.js.errors import KeyNotFoundError

        try:
            entry = await bucket.get(self._key)
        except KeyNotFoundError:
            return 0
        return entry.revision or 0 if entry.value == self._holder else 0

    async def _ask(self, what: Callable[[KeyValue], Coroutine[Any, Any, _Written]]) -> _Written | None:
        """Return what the bucket says to `what`; None where there is no answer.

        What does not answer in time is left behind and not waited for: the client library may swallow a
        cancellation. So `what` only returns what it wrote, and a late answer changes nothing here.
        """
        try:
            client = self._connection.client
        except StorageError:
            client = None
        if client is None:
            self.problem = "there is no connection"
            return None
        asking = asyncio.create_task(self._answer(client, what))
        try:
            done, _ = await asyncio.wait({asking}, timeout=_CALL_SECONDS)
        finally:
            asking.cancel()
        if not done:
            self._bucket = None
            self.problem = "no answer in time"
            return None
        return asking.result()

    async def _answer(
        self, client: Client, what: Callable[[KeyValue], Coroutine[Any, Any, _Written]]
    ) -> _Written | None:
        from nats.errors import Error
        from nats.js.errors import KeyWrongLastSequenceError

        try:
            answer = await what(await self._open(client))
        except KeyWrongLastSequenceError:
            return _NOTHING  # another was faster
        except (Error, OSError, TimeoutError) as error:
            self._bucket = None
            self.problem = str(error).removeprefix("nats: ") or "no answer in time"
            return None
        self.problem = ""
        return answer

    async def _open(self, client: Client) -> KeyValue:
        from nats.js.errors import NotFoundError

        if self._bucket is None or self._bucket[0] is not client:
            stream = client.jetstream(timeout=_CALL_SECONDS)
            try:
                bucket = await stream.key_value(LEASE_BUCKET)
            except NotFoundError:
                bucket = await _make(stream)
            self._bucket = (client, bucket)
        return self._bucket[1]


async def _make(stream: Any) -> KeyValue:
    """Make the bucket on three servers, or on one that stands alone."""
    from nats.js.api import KeyValueConfig, StorageType
    from nats.js.errors import APIError

    # no `direct`: only the server that orders the writes answers reads
    config = KeyValueConfig(
        bucket=LEASE_BUCKET,
        description="which hub acts for a study",
        history=1,
        storage=StorageType.FILE,
        replicas=_REPLICAS,
    )
    try:
        made: KeyValue = await stream.create_key_value(config)
    except APIError as error:
        if error.err_code != _NO_CLUSTER:
            raise  # a cluster too small for three, or not whole yet: one copy would be lost with its server
        made = await stream.create_key_value(config, replicas=1)
    return made
