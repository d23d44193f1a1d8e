"""What turns the ends of links into running parties: a loop each, over a transport and a clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cloister.errors import CloisterError
from cloister.runtime.ends import HubEnd, SiteEnd
from cloister.runtime.events import Event, Refused
from cloister.types import Transport

__all__ = ["carry_hub", "drive_hub", "drive_site"]

TICK_SECONDS = 0.02
"""How often timers and deadlines are looked at."""


async def drive_hub(
    end: HubEnd, transport: Transport, on_event: Callable[[Event], None], *, until: Callable[[], bool]
) -> None:
    """Start a hub, and carry its messages until `until`. Raises as `carry_hub`."""
    for event in end.start(time.monotonic()):
        on_event(event)
    await carry_hub(end, transport, on_event, until=until)


async def carry_hub(
    end: HubEnd, transport: Transport, on_event: Callable[[Event], None], *, until: Callable[[], bool]
) -> None:
    """Carry a running hub's messages until `until`, which is asked between two of them.

    Raises:
        StorageError: the journal or the network refused.
    """
    clock = time.monotonic
    tick_at = clock()
    while not until():
        await _flush(end, transport)
        received = await transport.receive(max(tick_at - clock(), 0.0))
        now = clock()
        if received is not None:
            for event in end.receive(received, now):
                on_event(event)
            await _show(end, on_event)
        if now >= tick_at:  # not with every message: it looks at every link
            tick_at = now + TICK_SECONDS
            for event in end.tick(now):
                on_event(event)
            await _show(end, on_event)
    await _flush(end, transport)


async def _show(end: HubEnd, on_event: Callable[[Event], None]) -> None:
    """Make the evidence that is due, one after another, in a thread: a quote may take half a second."""
    for question in end.questions():
        try:
            evidence = await asyncio.to_thread(question.evidence)
        except CloisterError as error:  # its site waits, gives up, and asks anew
            on_event(Refused(question.peer, f"this hub's own evidence could not be made: {error}"))
        else:
            end.show(question, evidence)


async def _flush(end: HubEnd, transport: Transport) -> None:
    """Send what a hub has to send."""
    for receiver, datagram in end.poll(time.monotonic()):
        await transport.send(receiver, datagram)


async def drive_site(end: SiteEnd, transport: Transport, hub: str, *, until: Callable[[], bool]) -> None:
    """Carry a site's messages until `until`. Raises as the site does where the hub broke the protocol."""
    clock = time.monotonic
    end.open(clock())
    while not until():
        for datagram in end.poll(clock()):
            await transport.send(hub, datagram)
        end.tick(clock())
        received = await transport.receive(min(max(end.link.wake_at() - clock(), 0.0), TICK_SECONDS))
        if received is not None:
            end.take(received, clock())
    for datagram in end.poll(clock()):
        await transport.send(hub, datagram)
