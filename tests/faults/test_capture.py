from __future__ import annotations

import itertools
import os
import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.canary import Canary, search_bytes
from tests.faults.capture import Capture, Flow, _joined, _parse, _Segment, refused

allowed = pytest.mark.skipif(bool(refused()), reason=refused() or "")


def talk(there: bytes, back: bytes) -> tuple[int, int]:
    """Send both over a connection of our own; return the ports of client and server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        server, _ = listening.accept()
        with client, server:
            ports = client.getsockname()[1], server.getsockname()[1]
            for sender, receiver, content in ((client, server, there), (server, client, back)):
                thread = threading.Thread(target=sender.sendall, args=(content,))
                thread.start()
                left = len(content)
                while left:
                    left -= len(receiver.recv(left))
                thread.join()
    return ports


@allowed
def test_both_directions_are_put_together_whole() -> None:
    there, back = os.urandom(3_000_000), os.urandom(100_000)
    with Capture(range(1, 1 << 16)) as capture:
        client, server = talk(there, back)
    streams = capture.streams()
    assert capture.dropped == 0
    assert streams[Flow(client, server)] == there
    assert streams[Flow(server, client)] == back


@allowed
def test_only_its_ports_are_kept() -> None:
    with Capture([1]) as capture:
        talk(b"not asked for", b"neither")
    assert capture.streams() == {}
    assert capture.holes == 0


@allowed
def test_a_canary_on_the_wire_is_found() -> None:
    canary = Canary.text("row", "a patient's name")
    with Capture(range(1, 1 << 16)) as capture:
        client, server = talk(bytes(100_000) + b"a patient's name", b"ok")
    hits = search_bytes([canary], capture.streams()[Flow(client, server)])
    assert [(hit.form, hit.offset) for hit in hits] == [("plain", 100_000)]


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, (1 << 32) - 1),
    st.randoms(use_true_random=False),
)
def test_segments_in_any_order_and_twice_make_the_stream(
    content: bytes, start: int, dice: random.Random
) -> None:
    flow = Flow(1, 2)
    cuts = sorted({0, len(content), *(dice.randrange(len(content)) for _ in range(5))})
    segments = [
        _Segment(flow, (start + 1 + low) % (1 << 32), False, content[low:high])
        for low, high in itertools.pairwise(cuts)
    ]
    segments += segments[:2]
    dice.shuffle(segments)
    syn = _Segment(flow, start, True, b"")
    assert _joined([syn, *segments]) == (content, 0)
    assert _joined([syn, *segments, syn, *segments]) == (content * 2, 0)


def test_what_is_missing_is_counted() -> None:
    flow = Flow(1, 2)
    segments = [_Segment(flow, 99, True, b""), _Segment(flow, 100, False, b"abc")]
    assert _joined([*segments, _Segment(flow, 105, False, b"f")]) == (b"abcf", 2)


@given(st.binary(max_size=200))
def test_anything_may_be_on_the_wire(packet: bytes) -> None:
    _parse(packet)
    _parse(bytes(12) + b"\x08\x00" + packet)
    _parse(bytes(12) + b"\x86\xdd" + packet)
