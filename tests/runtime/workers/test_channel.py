from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cloister.crypto import Identity
from cloister.errors import IntegrityError, ProtocolError
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import SMALL, Channel, Gone, recv_clear, send_clear

STUDY = bytes(32)


Pair = Callable[..., tuple[Channel, Channel, socket.socket, socket.socket]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends, with a session open, and their sockets."""
    sockets: list[socket.socket] = []

    def made(*, grant: bool = False) -> tuple[Channel, Channel, socket.socket, socket.socket]:
        one, two = Identity.generate("one"), Identity.generate("two")
        left, right = socket.socketpair()
        sockets.extend((left, right))
        first = Channel(Link(one, two.public, STUDY, initiator=True, auto_grant=grant), left)
        second = Channel(Link(two, one.public, STUDY, initiator=False), right)
        opening = threading.Thread(target=first.open, args=(10.0,))
        opening.start()
        while not second._link.ready:
            second._move(second._clock() + 0.05)
        opening.join()
        return first, second, left, right

    yield made
    for each in sockets:
        each.close()


def test_payloads_of_any_size_come_whole_and_in_order(pair: Pair) -> None:
    first, second, *_ = pair(grant=True)
    payloads = [b"a", bytes(range(256)) * 50_000, b"", b"z" * SMALL, b"q" * (SMALL + 1)]
    got: list[bytes] = []

    def reader() -> None:
        got.extend(bytes(second.receive(1 << 30)) for _ in payloads)

    thread = threading.Thread(target=reader)
    thread.start()
    for payload in payloads:
        first.send(payload)
        first.flush()
    while thread.is_alive():
        first._move(first._clock() + 0.05)
    assert got == payloads


def test_both_may_send_much_at_once(pair: Pair) -> None:
    first, second, *_ = pair(grant=True)
    big = bytes(12 << 20)
    got: dict[str, int] = {}

    def other() -> None:
        second.send(big)
        got["second"] = len(second.receive(1 << 30))
        second.flush()

    thread = threading.Thread(target=other)
    thread.start()
    first.send(big)
    got["first"] = len(first.receive(1 << 30))
    while thread.is_alive():
        first._move(first._clock() + 0.05)
    assert got == {"first": len(big), "second": len(big)}


def test_what_is_larger_than_allowed_is_refused_before_it_comes(pair: Pair) -> None:
    first, second, *_ = pair()
    second.send(bytes(8 << 20))
    sender = threading.Thread(target=lambda: _quietly(second))
    sender.start()
    with pytest.raises(ProtocolError, match="over the limit"):
        first.receive(1 << 20)
    first.close()
    sender.join()


def _quietly(channel: Channel) -> None:
    with contextlib.suppress(ProtocolError):
        channel.receive()


def test_a_closed_end_is_noticed(pair: Pair) -> None:
    first, _, _, right = pair()
    right.close()
    with pytest.raises(Gone):
        first.receive()


def test_nothing_readable_is_in_the_socket(pair: Pair) -> None:
    first, _, _, right = pair()
    first.send(b"row: 1234567890" * 20)
    first.flush()
    assert b"1234567890" not in right.recv(1 << 20)


def test_a_datagram_that_is_changed_on_the_way_is_refused(pair: Pair) -> None:
    first, second, _, right = pair()
    first.send(b"hello")
    first.flush()
    data = bytearray(right.recv(1 << 20))
    data[-1] ^= 1
    again, changed = socket.socketpair()
    with again, changed:
        again.sendall(data)
        second._socket = changed
        with pytest.raises(IntegrityError):
            second.receive()


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", (1 << 21).to_bytes(4, "big")])
def test_an_endless_datagram_is_refused_at_its_length(pair: Pair, data: bytes) -> None:
    first, _, _, right = pair()
    right.setblocking(True)
    right.sendall(data)
    with pytest.raises(ProtocolError, match="size limit"):
        first.receive()


def test_who_talks_without_being_asked_is_refused(pair: Pair) -> None:
    first, second, *_ = pair()
    for _ in range(8):
        second.send(b"listen to me")
    second.flush()
    assert first.receive() == b"listen to me"
    with pytest.raises(ProtocolError, match="more than it was asked"):
        first.quiet()


def test_what_comes_in_the_clear_is_bounded() -> None:
    left, right = socket.socketpair()
    send_clear(left, bytes(100))
    assert recv_clear(right, 100, 5.0) == bytes(100)
    send_clear(left, bytes(101))
    with pytest.raises(ProtocolError, match="over the limit"):
        recv_clear(right, 100, 5.0)
    with pytest.raises(ProtocolError, match="said nothing"):
        recv_clear(left, 100, 0.01)
    right.close()
    with pytest.raises(Gone):
        recv_clear(left, 100, 5.0)
    left.close()
