"""Open sockets that a starter hands to a confined worker, and all the ways in which it gets none."""

from __future__ import annotations

import json
import os
import socket
import textwrap
from typing import Any

from tests.enclave.sandbox.inside import start

TAKE = """
import array, socket
def take(number):
    with socket.socket(fileno=os.dup(number)) if number != handed else held as s:
        _, descriptors, _, _ = socket.recv_fds(s, 1, 1)
    return descriptors
held = socket.socket(fileno=6)
handed = 6
"""


def handing(code: str, **options: Any) -> tuple[dict[str, Any], bytes]:
    """Hand a connected socket over descriptors 5 and 6; return what the worker said, and what came to it."""
    pairs = [socket.socketpair() for _ in range(2)]
    far, given = socket.socketpair()
    with start(TAKE + textwrap.dedent(code), extra=[theirs for _, theirs in pairs], **options) as child:
        for ours, theirs in pairs:
            theirs.close()
            socket.send_fds(ours, [b"s"], [given.fileno()])
        given.close()
        child.wait(60)
        words = child.last_words()
    said = [json.loads(line.removeprefix("SAID ")) for line in words.splitlines() if line.startswith("SAID ")]
    for ours, _ in pairs:
        ours.close()
    far.settimeout(5)
    with far:
        came = far.recv(100)
    return dict(said), came


def test_a_socket_can_be_handed_over_the_one_descriptor_that_was_named() -> None:
    said, came = handing(
        """
        attempt("over another one", lambda: take(5))
        descriptors = take(6)
        say("got", len(descriptors))
        s = socket.socket(fileno=descriptors[0])
        s.sendall(b"from inside")
        attempt("recvmsg on it", lambda: s.recvmsg(10))
        attempt("an option of it", lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        attempt("hand it on", lambda: socket.send_fds(s, [b"x"], [s.fileno()]))
        attempt("a socket of its own", lambda: socket.socket())
        """,
        handed=6,
    )
    assert said.pop("got") == 1
    assert came == b"from inside"
    assert set(said.values()) == {"EPERM"}, said


def test_nothing_can_be_handed_over_where_none_was_named() -> None:
    said, came = handing('attempt("over 6", lambda: take(6))\nattempt("over 5", lambda: take(5))\n')
    assert set(said.values()) == {"EPERM"}, said
    assert came == b""


def test_a_datagram_of_another_kind_hands_nothing_over() -> None:
    """The control: the calls that stay allowed on every socket drop descriptors."""
    readable, writable = os.pipe()
    pairs = socket.socketpair()
    code = """
    import socket
    s = socket.socket(fileno=5)
    before = len(os.listdir("/proc/self/fd"))
    s.recv(1)
    say("more", len(os.listdir("/proc/self/fd")) - before)
    """
    with start(code, extra=[pairs[1]]) as child:
        pairs[1].close()
        socket.send_fds(pairs[0], [b"x"], [writable])
        child.wait(60)
        words = child.last_words()
    pairs[0].close()
    os.close(readable)
    os.close(writable)
    assert 'SAID ["more", 0]' in words
