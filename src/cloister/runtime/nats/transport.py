"""`Transport` over NATS core subjects, with a connection that comes back by itself.

A datagram from A to B is published on `cloister.v1.B.A`; B reads `cloister.v1.B.>`. Nothing is stored: what
is sent while a party or the server is away is lost, and whoever uses the transport (`runtime.link`) sends it
again.

- TLS 1.3 is the first thing on the wire, before the server says a word: a server's word that it needs no TLS
  is never heard.
- `send` returns once the bytes are with this process's connection, and waits while too many are. While there
  is no connection it drops the datagram: what is old when the connection returns is repaired sooner by asking
  anew.
- What arrives faster than it is taken is dropped beyond a bound, never kept.
- A lost connection is made again, for ever, at the next of the servers named; the library's own reconnection
  gives up where a server refuses once, so each connection here is a client of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import InputError, StorageError
from cloister.runtime.nats.serverconfig import MAX_DATAGRAM, subject
from cloister.runtime.nats.tlsfiles import TlsFiles
from cloister.types import check_name

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from cloister.runtime.nats.wire import TlsWire

__all__ = ["Connection", "NatsTransport"]

_CONNECT_TIMEOUT: Final = 5
_PING_EVERY: Final = 5.0
_SILENCE: Final = 15.0  # three answers missed: the cable is cut
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
_OUTGOING: Final = 1 << 20  # bytes waiting in this process before `send` waits
_INCOMING: Final = 64 << 20  # bytes waiting in this process before datagrams are dropped

_log = logging.getLogger(__name__)


class Connection:
    """One party's connection to the first server that answers, kept up until `close`.

    Args:
        urls: `tls://HOST:PORT` of each server.
        tls: the party's network files.
        label: what the server's log calls this connection.

    Attributes:
        on_open: awaited with each new client before anything else uses it.
        on_up: called when a connection is there to be used.
        on_loss: called when a connection was lost.
        problem: why there is no connection, in words; "" before the first failure.
    """

    def __init__(self, urls: str | Sequence[str], tls: TlsFiles, label: str) -> None:
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        for url in self._urls:
            if not url.startswith("tls://"):
                raise InputError("a server's address must begin with tls://", where=url, fix="Correct it")
        if not self._urls:
            raise InputError("no server is named", fix="Give its address as tls://HOST:PORT")
        self._tls, self._label = tls, label
        self._client: Client | None = None
        self._wire: TlsWire | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self.on_open: Callable[[Client], Any] | None = None
        self.on_up: Callable[[], None] | None = None
        self.on_loss: Callable[[], None] | None = None
        self.problem = ""

    @property
    def client(self) -> Client | None:
        """The client of the connection that is up, or None."""
        return self._client if self._client is not None and self._client.is_connected else None

    async def open(self, patience: float) -> None:
        """Connect, and keep connected from then on.

        Args:
            patience: seconds to try for; `math.inf` for ever.

        Raises:
            StorageError: no server let this party in within that time.
            InputError, IntegrityError, PassphraseError: the network files; see `TlsFiles.client_context`.
        """
        context = await asyncio.to_thread(self._tls.client_context)
        self._keeper = asyncio.create_task(self._keep(context))
        try:
            async with asyncio.timeout(patience if patience != float("inf") else None):
                await self._up.wait()
        except TimeoutError:
            await self.close()
            raise StorageError(
                f"no server could be reached: {self.problem or 'none answered'}",
                where=", ".join(self._urls),
                fix="Check address, network and certificate",
            ) from None
        except BaseException:
            await self.close()
            raise

    async def publish(self, subject: str, message: bytes | bytearray | memoryview) -> bool:
        """Publish once; wait while too much waits already. False where the connection is not up, or went
        away."""
        client, wire = self.client, self._wire
        if client is not None and wire is not None:
            try:
                await client.publish(subject, message)  # type: ignore[arg-type]  # any buffer will do
                while client.pending_data_size > _OUTGOING and client.is_connected:
                    await wire.taken()
                    await asyncio.sleep(0)  # the library's own task moves what is pending to the wire
                return True
            except (OSError, _library_errors()):
                pass
        await asyncio.sleep(0)  # who sends on and on must not keep the loss from being noticed
        return False

    async def close(self) -> None:
        """End the connection; what was sent is flushed first."""
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            keeper.cancel()  # again and again: the library swallows some
            await asyncio.wait({keeper}, timeout=0.1)
        client, self._client = self._client, None
        if client is not None:
            await _close(client)

    async def _keep(self, context: ssl.SSLContext) -> None:
        urls = random.sample(self._urls, len(self._urls))  # spreads parties over the servers of a cluster
        pause, turn = _FIRST_PAUSE, 0
        while True:
            self._lost.clear()
            if await self._connect(urls[turn % len(urls)], context):
                pause = _FIRST_PAUSE
                self._up.set()
                if self.on_up is not None:
                    self.on_up()
                await self._until_lost()
                _log.info("the connection to %s was lost", urls[turn % len(urls)])
                if self.on_loss is not None:
                    self.on_loss()
            turn += 1
            if turn % len(urls) == 0:
                # not in step with all others that lost the same server
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _until_lost(self) -> None:
        """Wait until the connection is closed, or silent for so long that it must be dead.

        The library's own look at that closes by sending what is pending, which a dead connection never takes.
        """
        wire, client, loop = self._wire, self._client, asyncio.get_running_loop()
        if wire is None or client is None:
            return
        while not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_EVERY):
                    await self._lost.wait()
            if wire.silence(loop.time()) > _SILENCE:
                break
        wire.abort()
        await _close(client)

    async def _connect(self, url: str, context: ssl.SSLContext) -> bool:
        from nats.aio.client import Client

        from cloister.runtime.nats.wire import TlsWire

        client, wire = Client(), TlsWire(context, self._lost.set)
        client._transport = wire  # the library has no other way in
        try:
            await self._sign_in(client, url, context)
            if self.on_open is not None:
                await self.on_open(client)
            await client.flush(_CONNECT_TIMEOUT)
        except (OSError, TimeoutError, ValueError, _library_errors()) as error:
            self.problem = _in_words(error)
            wire.abort()
            await _close(client)
            return False
        except BaseException:
            wire.abort()
            await _close(client)
            raise
        self._client, self._wire, self.problem = client, wire, ""
        return True

    async def _sign_in(self, client: Client, url: str, context: ssl.SSLContext) -> None:
        last: list[Exception] = []

        async def failed(error: Exception) -> None:
            last.append(error)
            if "permissions violation" in str(error):
                self.problem = f"the server refused: {error}"
                _log.warning("%s", self.problem)

        async def closed() -> None:
            self._lost.set()

        try:
            await client.connect(
                url,
                name=self._label,
                tls=context,
                tls_handshake_first=True,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_TIMEOUT,
                ping_interval=_PING_EVERY,  # type: ignore[arg-type]  # seconds; a fraction will do
                max_outstanding_pings=1 << 30,  # see `_until_lost`
                pending_size=0,  # `publish` waits by itself, and stops waiting when the connection is lost
                no_echo=True,
                error_cb=failed,
                closed_cb=closed,
            )
        except _library_errors() as error:
            # "no servers available" hides what happened at the only one
            raise (last[-1] if last else error) from None


def _library_errors() -> type[Exception]:
    from nats.errors import Error

    return Error


async def _close(client: Client) -> None:
    with contextlib.suppress(Exception):  # it is broken, or ends: there is nobody left to tell
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            await client.close()


def _in_words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError | ConnectionResetError) or "empty response" in str(error):
        return "the server does not accept this party's certificate, or speaks no TLS 1.3"
    if "authorization" in str(error).lower():
        return "the server knows no organisation by this certificate"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).removeprefix("nats: ")


class NatsTransport:
    """One party's end of the network; implements `cloister.types.Transport`. Made by `connect`.

    Attributes:
        address: this party's name.
        on_reconnect: called when the connection is back; what was sent meanwhile is lost.
        on_loss: called when it is gone.
        sent_bytes: by peer.
        received_bytes: by peer, as the subject names it; nothing of it is verified.
        dropped: datagrams this end let fall, for want of a connection or of room.
    """

    def __init__(self, address: str, connection: Connection) -> None:
        self.address = address
        self._connection = connection
        connection.on_open = self._subscribe
        connection.on_up, connection.on_loss = self._is_up, self._is_lost
        self._was_up = False
        self._arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self.on_reconnect: Callable[[], None] | None = None
        self.on_loss: Callable[[], None] | None = None
        self.sent_bytes: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.dropped = 0

    @classmethod
    async def connect(
        cls, url: str | Sequence[str], tls: TlsFiles, name: str, *, patience: float = 10.0
    ) -> NatsTransport:
        """Connect the party `name` and return its transport.

        Args:
            url: `tls://HOST:PORT` of the server, or of each server of a cluster.
            tls: the party's network files.
            name: the party; its certificate must be for this name.
            patience: seconds to try for; `math.inf` for ever.

        Raises:
            StorageError: no server let this party in within that time.
            InputError, IntegrityError, PassphraseError: the network files; see `TlsFiles.client_context`.
        """
        check_name(name, "an address")
        transport = cls(name, Connection(url, tls, name))
        await transport._connection.open(patience)
        return transport

    @property
    def client(self) -> Client:
        """The client of the connection that is up. Raises StorageError where there is none now."""
        client = self._connection.client
        if client is None:
            raise StorageError("there is no connection to the network now", fix="Wait until it is back")
        return client

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection.client is not None

    async def send(self, receiver: str, message: bytes | bytearray | memoryview) -> None:
        """Publish a datagram, or drop it where there is no connection.

        Raises:
            InputError: the receiver's name is not allowed, or the datagram is larger than 8 MiB.
        """
        size = len(message)
        if size > MAX_DATAGRAM:
            raise InputError(f"a datagram is larger than {MAX_DATAGRAM} bytes", fix="Send it in parts")
        target = subject(check_name(receiver, "a receiver"), self.address)
        if await self._connection.publish(target, message):
            self.sent_bytes[receiver] += size
        else:
            self.dropped += 1
            await asyncio.sleep(0)  # a loop of sends must not keep the connection from coming back

    async def receive(self, timeout: float) -> bytes | None:
        """Return the next datagram for this party, or None after `timeout` seconds."""
        if self._arrived.empty():
            try:
                # not wait_for: before Python 3.12 it swallows a cancellation that meets an arriving message
                async with asyncio.timeout(timeout):
                    message = await self._arrived.get()
            except TimeoutError:
                return None
        else:
            message = self._arrived.get_nowait()
        self._waiting -= len(message)
        return message

    async def close(self) -> None:
        """Leave the network."""
        await self._connection.close()

    async def _subscribe(self, client: Client) -> None:
        await client.subscribe(subject(self.address, ">"), cb=self._take)

    def _is_up(self) -> None:
        again, self._was_up = self._was_up, True
        if again and self.on_reconnect is not None:
            self.on_reconnect()

    def _is_lost(self) -> None:
        if self.on_loss is not None:
            self.on_loss()

    async def _take(self, message: Msg) -> None:
        size = len(message.data)
        if self._waiting + size > _INCOMING:
            self.dropped += 1
            return
        self.received_bytes[message.subject.rsplit(".", 1)[-1]] += size
        self._waiting += size
        self._arrived.put_nowait(message.data)
