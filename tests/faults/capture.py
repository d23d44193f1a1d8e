"""What really goes over the loopback interface: a packet capture, put together into TCP streams.

    with Capture([broker_port]) as capture:
        ...
    for flow, content in capture.streams().items(): ...

It needs Linux and the right to open raw sockets; `refused()` says why it cannot be done, for a test to skip
with. It sees only loopback, and keeps only TCP of the ports that it was given. Nothing may be concluded from
streams with holes: `dropped` and `holes` say whether there are any.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["Capture", "Flow", "refused"]

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_BUFFER = 256 << 20
_LARGEST = 1 << 17  # loopback hands over segments that were not cut to its MTU
_ETHERNET = 14
_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_SYN = 0x02


@dataclass(frozen=True)
class Flow:
    """One direction of one TCP connection on loopback, by its ports; a port that is used again continues it."""

    sender: int
    receiver: int


@dataclass(frozen=True)
class _Segment:
    flow: Flow
    sequence: int
    syn: bool
    content: bytes


def refused() -> str | None:
    """Return why packets cannot be captured here, or None if they can."""
    if not hasattr(socket, "AF_PACKET"):
        return "packets can be captured on Linux only"
    try:
        _open().close()
    except OSError as error:
        return f"packets may not be captured here: {error}"
    return None


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    try:
        opened.bind(("lo", 0))
        with contextlib.suppress(OSError):  # then the kernel's own limit holds, and `dropped` tells
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        opened.settimeout(0.1)
    except OSError:
        opened.close()
        raise
    return opened


class Capture:
    """Records the TCP traffic on loopback to and from some ports, as long as it is entered.

    Attributes:
        dropped: packets that the kernel threw away because they were not fetched in time.
        holes: bytes that are missing within the streams; known once `streams` has been called.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = frozenset(ports)
        self._segments: list[_Segment] = []
        self._ending = threading.Event()
        self.dropped = 0
        self.holes = 0

    def __enter__(self) -> Self:
        self._socket = _open()
        self._thread = threading.Thread(target=self._record, name="capture", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(60)
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.dropped = struct.unpack("II", statistics)[1]
        self._socket.close()

    def _record(self) -> None:
        while True:
            try:
                packet, address = self._socket.recvfrom(_LARGEST)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            # on loopback each packet is seen when it leaves and when it arrives: one of them is enough
            found = None if address[2] == socket.PACKET_OUTGOING else _parse(packet)
            if found is not None and self._ports & {found.flow.sender, found.flow.receiver}:
                self._segments.append(found)

    def streams(self) -> dict[Flow, bytes]:
        """Return what was sent in each direction, in order; call it after the capture has ended.

        A connection that was open before is taken from the first byte that was seen.
        """
        flows: defaultdict[Flow, list[_Segment]] = defaultdict(list)
        for segment in self._segments:
            flows[segment.flow].append(segment)
        found = {}
        self.holes = 0
        for flow, segments in flows.items():
            content, holes = _joined(segments)
            self.holes += holes
            if content:
                found[flow] = content
        return found


def _parse(packet: bytes) -> _Segment | None:
    """Return the TCP segment in an Ethernet frame, or None where there is none."""
    if len(packet) < _ETHERNET + 20:
        return None
    kind = int.from_bytes(packet[12:14], "big")
    if kind == _IPV4 and packet[_ETHERNET + 9] == _TCP:
        start = _ETHERNET + 4 * (packet[_ETHERNET] & 0x0F)
        total = int.from_bytes(packet[_ETHERNET + 2 : _ETHERNET + 4], "big")
        end = _ETHERNET + total if total else len(packet)  # 0: longer than its field can say
    elif kind == _IPV6 and packet[_ETHERNET + 6] == _TCP:  # headers between are not expected on loopback
        start = _ETHERNET + 40
        length = int.from_bytes(packet[_ETHERNET + 4 : _ETHERNET + 6], "big")
        end = start + length if length else len(packet)
    else:
        return None
    if len(packet) < start + 20:
        return None
    sender, receiver, sequence = struct.unpack_from("!HHI", packet, start)
    content = packet[start + 4 * (packet[start + 12] >> 4) : end]
    return _Segment(Flow(sender, receiver), sequence, bool(packet[start + 13] & _SYN), content)


def _joined(segments: list[_Segment]) -> tuple[bytes, int]:
    """Return the bytes of one direction, each once and in order, and how many are missing between them."""
    content, holes = bytearray(), 0
    pieces: dict[int, bytes] = {}

    def flush() -> None:
        nonlocal holes
        at: int | None = None
        for place in sorted(pieces):
            piece = pieces[place]
            at = place if at is None else at
            holes += max(0, place - at)
            content.extend(piece[max(0, at - place) :])
            at = max(at, place + len(piece))
        pieces.clear()

    base = segments[0].sequence
    last = 0
    for segment in segments:
        if segment.syn:  # a new connection between the same ports
            flush()
            base, last = (segment.sequence + 1) % (1 << 32), 0
            continue
        # the distance from the last place, as a signed number of 32 bits: sequence numbers wrap around
        step = (segment.sequence - base - last + (1 << 31)) % (1 << 32) - (1 << 31)
        place = last + step
        if segment.content and len(segment.content) > len(pieces.get(place, b"")):
            pieces[place] = segment.content
        last = max(last, place)
    flush()
    return bytes(content), holes
