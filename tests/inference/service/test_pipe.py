from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.inference.service.pipe import MAX_PAYLOAD, Kind, Pipe, Splitter, frame

FRAMES = [
    (Kind.OPEN, 1, b""),
    (Kind.DATA, 1, b"abc"),
    (Kind.DATA, 2**32 - 1, bytes(3000)),
    (Kind.KEYSET, 7, b"x"),
    (Kind.EOF, 1, b""),
]


def test_the_bytes_of_a_frame() -> None:
    assert frame(Kind.DATA, 258, b"abc").hex() == "00000003" + "02" + "00000102" + "616263"


@given(st.lists(st.integers(1, 3100), max_size=12))
def test_frames_are_cut_out_of_any_pieces(cuts: list[int]) -> None:
    data = b"".join(frame(*each) for each in FRAMES)
    splitter, found, at = Splitter(), [], 0
    for cut in [*cuts, len(data)]:
        found += list(splitter.feed(data[at : at + cut]))
        at += cut
    found += list(splitter.feed(data[at:]))
    assert found == FRAMES


@pytest.mark.parametrize(
    "data", ["00000000" + "00" + "00000001", "00000000" + "0a" + "00000001", "00100001" + "02" + "00000001"]
)
def test_what_is_no_frame_is_refused_before_anything_is_kept(data: str) -> None:
    with pytest.raises(ProtocolError):
        list(Splitter().feed(bytes.fromhex(data)))


class End:
    """One end, and what came to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.came: list[tuple[Kind, int, bytes]] = []
        self.lost = 0
        self.pipe = Pipe(sock, lambda *each: self.came.append(each), self._lose)
        self.pipe.attach(asyncio.get_running_loop())

    def _lose(self) -> None:
        self.lost += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_more_than_a_socket_takes_goes_later_and_in_order() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        left, right = End(ours), End(theirs)
        payloads = [os.urandom(MAX_PAYLOAD) for _ in range(4)]
        for number, payload in enumerate(payloads):
            left.pipe.send(frame(Kind.DATA, number, payload))
        assert left.pipe.full
        await asyncio.wait_for(left.pipe.drained(), 20)
        await until(lambda: len(right.came) == 4)
        assert right.came == [(Kind.DATA, number, payload) for number, payload in enumerate(payloads)]
        assert not left.pipe.full
        left.pipe.close()
        await until(lambda: right.lost == 1)
        assert left.lost == 0  # it closed by itself
        right.pipe.send(frame(Kind.DATA, 1))  # says nothing
        await asyncio.wait_for(right.pipe.drained(), 1)
        right.pipe.close()

    asyncio.run(main())


def test_an_end_that_says_nonsense_is_lost() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        left = End(ours)
        theirs.sendall(frame(Kind.DATA, 1, b"x") + b"\xff" * 9)
        await until(lambda: left.lost == 1)
        assert left.came == [(Kind.DATA, 1, b"x")]
        theirs.close()

    asyncio.run(main())
