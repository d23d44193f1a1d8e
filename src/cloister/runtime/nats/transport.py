"""The `Transport` over NATS: one subject for each pair of parties, best effort.

    cloister.v1.RECEIVER.SENDER

The server lets an organisation publish under its own name alone and read what is for it alone; the name in a
subject is still only a hint, since everything in a datagram is signed. Nothing is acknowledged here: a
server's word says nothing about the other party's journal, so links acknowledge end to end.

A publish leaves at once while little is pending, and waits for the socket where much is, so that a sender
holds no more than `PENDING_BYTES`. What comes in faster than it is taken is dropped beyond `QUEUE_BYTES`, and
counted; links send it again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloister.crypto import Buffer
from cloister.errors import InputError, StorageError
from cloister.runtime.nats.serverconfig import MAX_DATAGRAM, subject
from cloister.runtime.nats.tlsfiles import TlsFiles

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["NatsTransport", "connect"]

PENDING_BYTES: Final = 4 << 20
QUEUE_BYTES: Final = 256 << 20
_CONNECT_SECONDS: Final = 5.0
_RECONNECT_SECONDS: Final = 0.5


class NatsTransport:
    """One party's end; made by `connect`.

    Attributes:
        address: the party's name.
        on_reconnect: called when the connection is back after a break.
        sent_bytes, received_bytes: by peer.
        dropped: datagrams that came faster than they were taken.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.on_reconnect: Callable[[], None] = lambda: None
        self.sent_bytes: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.dropped = 0
        self._client: Client | None = None
        self._inbox: deque[bytes] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._unflushed = 0

    @property
    def client(self) -> Client:
        """The connection. Raises StorageError once it is closed."""
        if self._client is None or self._client.is_closed:
            raise StorageError("the connection to the network is closed", fix="Start it again")
        return self._client

    async def send(self, receiver: str, message: Buffer) -> None:
        """Hand a datagram over; while the network is away it is lost, and links repair that.

        Raises:
            InputError: it is larger than the network takes.
            StorageError: the connection was closed for good.
        """
        if len(message) > MAX_DATAGRAM:
            raise InputError(f"a datagram of {len(message)} bytes", fix=f"Send at most {MAX_DATAGRAM}")
        client = self.client
        if not client.is_connected:
            await asyncio.sleep(0)
            return
        await client.publish(subject(receiver, self.address), bytes(message))
        self.sent_bytes[receiver] += len(message)
        self._unflushed += len(message)
        if self._unflushed > PENDING_BYTES:
            self._unflushed = 0
            await self._drain(client)

    async def receive(self, timeout: float) -> bytes | None:
        """Return the next datagram for this party, or None after `timeout` seconds."""
        if not self._inbox:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        if not self._inbox:
            return None
        message = self._inbox.popleft()
        self._waiting -= len(message)
        return message

    async def close(self) -> None:
        """Send what is pending and leave."""
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            await self._drain(client)
            await client.close()

    async def _drain(self, client: Client) -> None:
        """Wait until the socket has taken what is pending."""
        from nats.errors import Error

        try:
            await client.flush(timeout=10)
        except (Error, OSError, TimeoutError):
            return  # it reconnects by itself, and what was pending is sent again by the links

    async def _take(self, message: Msg) -> None:
        if self._waiting + len(message.data) > QUEUE_BYTES:
            self.dropped += 1
            return
        self.received_bytes[message.subject.rpartition(".")[2]] += len(message.data)
        self._inbox.append(message.data)
        self._waiting += len(message.data)
        self._arrived.set()

    async def _back(self) -> None:
        self.on_reconnect()


async def connect(urls: str | Sequence[str], tls: TlsFiles, name: str) -> NatsTransport:
    """Connect a party to the network.

    Args:
        urls: of one server, or of those of a cluster, of which another is taken where one dies.
        tls: the party's certificate; TLS 1.3, both sides authenticated.
        name: the party's name, as in its certificate.

    Returns:
        The transport, which reconnects by itself for as long as it takes.

    Raises:
        InputError: an address is none, or a file is missing.
        StorageError: no server could be reached, or none let this party in.
    """
    import nats
    from nats.errors import Error, NoServersError

    addresses = [urls] if isinstance(urls, str) else list(urls)
    for address in addresses:
        if not address.startswith("tls://"):
            raise InputError(
                "the network is spoken to over TLS alone", where=address, fix="Write tls://HOST:PORT"
            )
    context = tls.client_context()
    transport = NatsTransport(name)
    problems: list[str] = []

    async def on_error(error: Exception) -> None:
        problems.append(str(error) or type(error).__name__)
        del problems[:-1]

    options: dict[str, Any] = {
        "servers": addresses,
        "name": name,
        "tls": context,
        "tls_handshake_first": True,
        "connect_timeout": _CONNECT_SECONDS,
        "reconnect_time_wait": _RECONNECT_SECONDS,
        "max_reconnect_attempts": -1,
        "ping_interval": 10,
        "max_outstanding_pings": 3,
        "pending_size": 2 * MAX_DATAGRAM,
        "error_cb": on_error,
        "reconnected_cb": transport._back,
    }
    try:
        async with asyncio.timeout(_CONNECT_SECONDS * len(addresses) + 1):
            client = await nats.connect(**{**options, "allow_reconnect": True})
    except (Error, NoServersError, OSError, TimeoutError, ValueError) as error:
        reason = problems[-1] if problems else str(error) or type(error).__name__
        raise StorageError(
            f"the network cannot be reached: {reason}",
            where=", ".join(addresses),
            fix="Check the address, and that the operator entered this organisation's certificate",
        ) from error
    transport._client = client
    await client.subscribe(
        subject(name, ">"), cb=transport._take, pending_msgs_limit=1 << 20, pending_bytes_limit=QUEUE_BYTES
    )
    await client.flush(timeout=_CONNECT_SECONDS)
    return transport
