"""The service's side of bringing its worker up: what it says over their session, and what it lends meanwhile.

A worker is told nothing before its walls stand. Keys are lent for the one model that was to be served, as
often as its lender allows; a worker that asks for another, or for any where its model needs none, has ended
the session. What it says is parsed strictly, within a bound that is set before it comes.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, Protocol

from cloister.crypto import Identity
from cloister.errors import InputError, IntegrityError, ProtocolError
from cloister.inference.service.boot import PROTOCOL, Boot, Prepare, Ready, Said, decode_said
from cloister.runtime.workers.asking import Lends, ended, error_of, given, meet
from cloister.runtime.workers.channel import Channel, Gone
from cloister.runtime.workers.launch import how_it_ended, not_up
from cloister.runtime.workers.messages import MAX_BROKERED, Confined, Failed, encode

__all__ = ["Process", "booted", "machine_swaps", "prepared"]

SWAPS: Final = Path("/proc/swaps")
_MAX_SAID: Final = MAX_BROKERED + (64 << 10)


class Process(Protocol):
    """A worker's process; `enclave.sandbox.Child` is one.

    Attributes:
        socket: this end of the channel.
        pid: of what guards it.
    """

    socket: socket.socket
    pid: int

    def wait(self, timeout: float | None = None) -> int | None:
        """Return how it ended."""

    def last_words(self) -> str:
        """Return the end of what it printed before its walls stood."""

    def close(self) -> None:
        """End it."""


def prepared(process: Process, prepare: Prepare) -> tuple[Channel, dict[str, bool | None]]:
    """Return the channel to a worker whose walls stand, and which do.

    Raises:
        PolicyRefused: the machine lacks one.
        ProtocolError: the worker did not come up, or does not speak this protocol.
    """
    try:
        _, channel = meet(process.socket, Identity.generate("service"), PROTOCOL)
        channel.send(encode(prepare))
        confined = _said(channel)
    except Gone:
        raise not_up(process, "See `cloister enclave setup --check`; nothing is served with less") from None
    except (InputError, IntegrityError) as error:
        raise ProtocolError(f"no session with the worker: {error.what}") from error
    if not isinstance(confined, Confined):
        raise ProtocolError("the worker answered before its walls stood")
    return channel, dict(confined.walls)


def booted(process: Process, channel: Channel, boot: Boot, lender: Lends | None) -> Ready:
    """Tell a worker what to serve, lend it what keys that takes, and return what answers.

    Raises:
        ProtocolError: it ended, or asked for what it may not have.
        CloisterError: what it ran into.
    """
    try:
        channel.send(encode(boot))
        ready = _answered(channel, lender)
        channel.flush()
    except Gone:
        raise ended("it was ready", how_it_ended(process)) from None
    return ready


def machine_swaps(path: Path = SWAPS) -> bool:
    """Tell whether this machine has swap space; where that cannot be read, it may."""
    try:
        return len(path.read_text().splitlines()) > 1
    except OSError:
        return True


def _said(channel: Channel) -> Said:
    try:
        return decode_said(channel.receive(_MAX_SAID))
    except IntegrityError as error:
        raise ProtocolError(f"what the worker says does not verify: {error.what}") from error


def _answered(channel: Channel, lender: Lends | None) -> Ready:
    while True:
        said = _said(channel)
        match said:
            case Ready():
                return said
            case Failed():
                raise error_of(said.kind, said.what, said.where, said.fix)
            case Confined():
                raise ProtocolError("the worker put its walls up twice")
        if lender is None or said.dataset != 0:
            raise ProtocolError("the worker asked for a key that nothing it was told needs")
        channel.send(encode(given(lender, said)))
