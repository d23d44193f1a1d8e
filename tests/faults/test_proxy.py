from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.faults.proxy import Direction, Proxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says everything back, until the other side has finished."""
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    yield listening.getsockname()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for thread in (accepting, *threads):
        thread.join(5)


def connect(proxy: Proxy, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout)


def hear(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        chunk = connection.recv(size - len(found))
        if not chunk:
            break
        found += chunk
    return bytes(found)


def test_what_is_sent_arrives_and_is_counted_and_tapped(echo: tuple[str, int]) -> None:
    seen: dict[Direction, bytes] = {"up": b"", "down": b""}

    def tap(_number: int, direction: Direction, chunk: bytes) -> None:
        seen[direction] += chunk

    sent = bytes(range(256)) * 4000
    with Proxy(echo, tap=tap) as proxy, connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        assert hear(connection, len(sent)) == sent
        sender.join()
        assert proxy.carried == {"up": len(sent), "down": len(sent)}
        assert proxy.connections == 1
    assert seen == {"up": sent, "down": sent}


def test_the_end_of_a_stream_passes(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy, connect(proxy) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert hear(connection, 100) == b"last words"


def test_a_cut_line_is_silent_and_delivers_when_it_is_mended(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy, connect(proxy, 0.2) as connection:
        connection.sendall(b"before")
        assert hear(connection, 6) == b"before"
        proxy.cut()
        connection.sendall(b"meanwhile")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        with connect(proxy, 0.2) as another:
            another.sendall(b"hello")
            with pytest.raises(TimeoutError):
                another.recv(1)
            proxy.mend()
            assert hear(connection, 9) == b"meanwhile"
            assert hear(another, 5) == b"hello"


def test_a_reset_breaks_what_is_open_and_welcomes_what_comes(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy:
        with connect(proxy) as connection:
            connection.sendall(b"1")
            assert hear(connection, 1) == b"1"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        with connect(proxy) as connection:
            connection.sendall(b"2")
            assert hear(connection, 1) == b"2"


def test_a_refusal_holds_until_it_is_taken_back(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy:
        proxy.refuse()
        with pytest.raises(ConnectionResetError), connect(proxy) as connection:
            connection.recv(1)
        proxy.accept()
        with connect(proxy) as connection:
            connection.sendall(b"x")
            assert hear(connection, 1) == b"x"


def test_a_target_that_is_not_there_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = nobody.getsockname()
    with Proxy(address) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1)


def test_delay_is_of_time_and_not_of_throughput(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy, connect(proxy) as connection:
        proxy.delay(0.1)
        begin = time.monotonic()
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"
        assert time.monotonic() - begin >= 0.2
        sent = bytes(1 << 20)
        begin = time.monotonic()
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        assert hear(connection, len(sent)) == sent
        sender.join()
        assert time.monotonic() - begin < 2.0  # 16 chunks, each 0.2 s late, would take 3.2 s one by one


def test_a_throttled_line_is_slow_until_it_is_not(echo: tuple[str, int]) -> None:
    sent = bytes(200_000)
    with Proxy(echo) as proxy, connect(proxy) as connection:
        proxy.throttle(1e6)
        begin = time.monotonic()
        connection.sendall(sent)
        assert hear(connection, len(sent)) == sent
        assert time.monotonic() - begin >= 0.15
        proxy.throttle(None)
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"


def test_closing_it_while_it_is_cut_leaves_nothing_open(echo: tuple[str, int]) -> None:
    proxy = Proxy(echo)
    with proxy, connect(proxy) as connection:
        connection.sendall(b"x")
        assert hear(connection, 1) == b"x"
        proxy.cut()
        connection.sendall(b"lost")
        proxy.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with pytest.raises(OSError):
        connect(proxy)
