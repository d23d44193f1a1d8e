"""A TCP proxy on loopback between one party and its broker, which makes the network bad on command.

    with Proxy(("127.0.0.1", broker_port)) as proxy:
        ...                    # the party connects to proxy.port
        proxy.cut()            # a pulled cable: nothing passes, nobody is told; what was sent waits
        proxy.mend()           # it is plugged in again: what waited passes
        proxy.reset()          # every connection is torn down with a TCP reset; new ones are welcome
        proxy.refuse()         # as reset, and new connections are reset as well, until `accept`
        proxy.delay(0.05)      # every byte arrives so much later, in each direction
        proxy.throttle(1e6)    # at most so many bytes a second and connection, in each direction

It runs in a thread of its own, does not look into what it carries (TLS passes), and may be commanded from any
thread. `tap` sees every chunk, for a search for what must not leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

__all__ = ["Direction", "Proxy", "Tap"]

Direction = Literal["up", "down"]
Tap = Callable[[int, Direction, bytes], None]
"""Is called with the connection's number, the direction ("up": from the party), and the bytes."""

_CHUNK = 64 << 10
_AHEAD = 64  # chunks of one direction that are under way: the bandwidth-delay product
_LINGER_NONE = struct.pack("ii", 1, 0)  # close at once, with a reset


class Proxy:
    """Carries TCP between whoever connects to `port` and `target`.

    Attributes:
        port: where it listens, on 127.0.0.1.
        carried: bytes passed on so far, by direction.
        connections: how many were accepted so far.
    """

    def __init__(self, target: tuple[str, int], *, port: int = 0, tap: Tap | None = None) -> None:
        self._target = target
        self._tap = tap
        self._delay = 0.0
        self._rate: float | None = None
        self._refusing = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.carried: Counter[Direction] = Counter()
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listening.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the proxy does not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Reset every connection and stop listening."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(10)

    def cut(self) -> None:
        """Pass nothing from now on. Connections stay open, and new ones hear nothing."""
        self._command(self._passing.clear)

    def mend(self) -> None:
        """Pass everything again, first what waited."""
        self._command(self._passing.set)

    def reset(self) -> None:
        """Tear every connection down with a TCP reset, on both sides."""
        self._command(self._reset)

    def refuse(self) -> None:
        """Reset every connection, and each new one as soon as it is there."""

        def refuse() -> None:
            self._refusing = True
            self._reset()

        self._command(refuse)

    def accept(self) -> None:
        """Take new connections again."""
        self._command(lambda: setattr(self, "_refusing", False))

    def delay(self, seconds: float) -> None:
        """Let what arrives from now on pass so much later; its order stays."""
        self._command(lambda: setattr(self, "_delay", seconds))

    def throttle(self, bytes_per_second: float | None) -> None:
        """Pass at most so many bytes a second in each direction of each connection; None: as many as fit."""
        self._command(lambda: setattr(self, "_rate", bytes_per_second))

    def _command(self, action: Callable[[], object]) -> None:
        """Run `action` in the proxy's thread, and wait until it is done."""
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(act)
        if not done.wait(10):
            raise TimeoutError("the proxy does not answer")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._passing = asyncio.Event()
        self._passing.set()
        server = await asyncio.start_server(self._accepted, sock=self._listening, limit=2 * _CHUNK)
        self._ready.set()
        await self._ended.wait()
        server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reset()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def _reset(self) -> None:
        for writer in tuple(self._open):
            _abort(writer)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._connection(self.connections, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection both ways until both ends are done, or until it breaks."""
        writers = [writer]
        self._open.add(writer)
        try:
            if self._refusing:
                return
            await self._passing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=2 * _CHUNK)
            writers.append(far_writer)
            self._open.add(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(number, "up", reader, far_writer))
                both.create_task(self._pump(number, "down", far_reader, writer))
        except* OSError:
            pass  # a broken connection breaks on both sides
        finally:
            for each in writers:
                self._open.discard(each)
                _abort(each)

    async def _pump(
        self, number: int, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)

        async def read() -> None:
            while True:
                chunk = await reader.read(_CHUNK)
                await under_way.put((self._loop.time() + self._delay, chunk))
                if not chunk:
                    return

        async def write() -> None:
            while True:
                due, chunk = await under_way.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._passing.wait()
                if not chunk:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                await self._pass(number, direction, chunk, writer)

        async with asyncio.TaskGroup() as both:
            both.create_task(read())
            both.create_task(write())

    async def _pass(
        self, number: int, direction: Direction, chunk: bytes, writer: asyncio.StreamWriter
    ) -> None:
        self.carried[direction] += len(chunk)
        if self._tap is not None:
            self._tap(number, direction, chunk)
        writer.write(chunk)
        await writer.drain()
        if self._rate is not None:
            await asyncio.sleep(len(chunk) / self._rate)


def _abort(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    writer.transport.abort()
