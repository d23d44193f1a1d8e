"""The service's side of bringing its worker up: what it says over their session, and what it lends meanwhile.

A worker is told nothing before its walls stand. Keys are lent for the one model that was to be served, as
often as its lender allows; a worker that asks for another, or for any where its model needs none, has ended
the session. What it says is parsed strictly, within a bound that is set before it comes.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path
from typing import Final, Protocol

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, ProtocolError
from cloister.inference.service.boot import PROTOCOL, Boot, Prepare, Ready, Said, decode_said, error_of
from cloister.runtime.link import Link
from cloister.runtime.workers.channel import Channel, Gone, recv_clear, send_clear
from cloister.runtime.workers.messages import (
    MAX_BROKERED,
    BrokerAsk,
    Confined,
    EvidenceWanted,
    Failed,
    Key,
    KeyWanted,
    Meet,
    Question,
    encode,
)
from cloister.runtime.workers.session import Lends

__all__ = ["Process", "booted", "how_it_ended", "machine_swaps", "prepared"]

SWAPS: Final = Path("/proc/swaps")
_MAX_SAID: Final = MAX_BROKERED + (64 << 10)
_MAX_IDENTITY: Final = 16 << 10
_START_SECONDS: Final = 120.0
_WHY_SECONDS: Final = 5.0
_LAST_LINE: Final = 300


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
        channel = _met(process.socket)
        channel.send(encode(prepare))
        confined = _said(channel)
    except Gone:
        raise _refusal(process) from None
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
        why = how_it_ended(process)
        raise ProtocolError(
            f"the worker ended before it was ready{f' ({why})' if why else ''}",
            fix="See whether the machine ran out of memory; start again",
        ) from None
    return ready


def how_it_ended(process: Process) -> str:
    """Return in a few words how a worker ended; empty where that is not known."""
    code = process.wait(_WHY_SECONDS)
    if code is None or code == 0:
        return ""
    if code > 0:
        return f"exit code {code}"
    if -code == signal.SIGSYS:
        return "killed for a system call that only an attack needs"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def machine_swaps(path: Path = SWAPS) -> bool:
    """Tell whether this machine has swap space; where that cannot be read, it may."""
    try:
        return len(path.read_text().splitlines()) > 1
    except OSError:
        return True


def _met(sock: socket.socket) -> Channel:
    identity = Identity.generate("service")
    try:
        send_clear(sock, encode(Meet(identity.public.to_json(), PROTOCOL)))
        worker = PublicIdentity.from_json(recv_clear(sock, _MAX_IDENTITY, _START_SECONDS))
        channel = Channel(Link(identity, worker, PROTOCOL, initiator=True, auto_grant=False), sock)
        channel.open(_START_SECONDS)
    except (InputError, IntegrityError) as error:
        raise ProtocolError(f"no session with the worker: {error.what}") from error
    return channel


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
                raise error_of(said)
            case Confined():
                raise ProtocolError("the worker put its walls up twice")
        if lender is None or said.dataset != 0:
            raise ProtocolError("the worker asked for a key that nothing it was told needs")
        channel.send(encode(_lent(lender, said)))


def _lent(lender: Lends, said: KeyWanted | BrokerAsk | EvidenceWanted) -> Question:
    match said:
        case KeyWanted():
            return Key(lender.lend(said.wrapped))
        case BrokerAsk():
            return lender.carry(said)
        case EvidenceWanted():
            return lender.attest(said)


def _refusal(process: Process) -> CloisterError:
    """Return why a worker did not come up. Nothing but libraries was in it by then."""
    code, words = process.wait(_WHY_SECONDS), process.last_words()
    last = words.splitlines()[-1][:_LAST_LINE].rstrip(".") if words else "it said nothing"
    if code == PolicyRefused.exit_code:
        return PolicyRefused(
            f"no worker can be walled off on this machine: {last}",
            fix="See `cloister enclave setup --check`; nothing is served with less",
        )
    return ProtocolError(f"the worker's process did not come up: {last}")
