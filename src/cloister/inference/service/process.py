"""What runs in a service's worker: `spawn` isolates it and starts this module.

1. `Meet`: an identity made for this process; a session opens between it and its service. 2. `Prepare`:
libraries are imported, the event loop is made (the walls let no socket be made later), every wall goes up,
and standard output and error lead nowhere: what a library prints could be a prompt. 3. `Boot`: the model is
loaded; the key of a sealed one is asked for over the session. No model, key or request was here before.
4. `Ready`: the keys of the service are made, and the door serves until its front is gone, or what answers
   can answer no more.

Nothing the worker meets after step 2 is printed or logged; an error on the way to `Ready` goes back as
class and text where it is ours, and as its class's name where it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloister.enclave.sandbox import confine
from cloister.errors import ProtocolError
from cloister.inference.exchange import KeyRing
from cloister.inference.service.boot import (
    HANDED,
    MAX_BOOT,
    PIPE,
    PROTOCOL,
    Boot,
    Prepare,
    Ready,
    decode_told,
    failed,
)
from cloister.inference.service.credentials import Register
from cloister.inference.service.door import Door
from cloister.inference.service.loading import Loaded, load
from cloister.inference.service.pipe import Pipe
from cloister.runtime.workers.answering import met
from cloister.runtime.workers.channel import Channel, Gone
from cloister.runtime.workers.messages import Confined, encode

__all__ = ["Confine", "main", "serve"]

_CHANNEL: Final = 3  # where `spawn` puts this end of the pair
_ALIVE_SECONDS: Final = 2.0

Confine = Callable[[Prepare], tuple[Path, Mapping[str, bool | None]]]
"""Puts the walls up; returns the one folder that may be written, and which walls stand, by name."""


def main() -> None:
    """Serve until the service is gone. Raises PolicyRefused where the machine lacks a wall."""
    serve(socket.socket(fileno=_CHANNEL), socket.socket(fileno=PIPE), _confined)


def serve(sock: socket.socket, pipe: socket.socket, walls: Confine) -> None:
    """Boot over one socket and serve over the other.

    Args:
        sock: the channel to the service.
        pipe: to its front.
        walls: puts them up.

    Raises:
        ProtocolError, IntegrityError: the other end does not speak this protocol.
    """
    loop: asyncio.AbstractEventLoop | None = None
    try:
        _, _, channel = met(sock, PROTOCOL)  # 1
        prepare = decode_told(channel.receive(MAX_BOOT))
        if not isinstance(prepare, Prepare):
            raise _out_of_turn()
        _import(prepare.imports)  # 2
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        scratch, standing = walls(prepare)
        channel.send(encode(Confined(dict(standing))))
        boot = decode_told(channel.receive(MAX_BOOT))
        if not isinstance(boot, Boot):
            raise _out_of_turn()
        loop.run_until_complete(_run(boot, channel, pipe, scratch))
    except Gone:
        return
    finally:
        if loop is not None:
            loop.close()


def _import(what: str) -> None:
    """Import what takes long, or may be out of reach later."""
    if what == "torch":
        with contextlib.suppress(ImportError):  # who loads the model says what is missing
            import cloister.inference.torchpredict
            import cloister.learning.torch  # noqa: F401
    elif what == "language":
        from cloister.inference.language.load import preload

        preload()
    elif what == "adapter":
        from cloister.inference.language.load import preload_adapted

        preload_adapted()
    elif what == "loopback":
        import httpx2  # noqa: F401


def _confined(prepare: Prepare) -> tuple[Path, Mapping[str, bool | None]]:
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    read = [Path(each) for each in prepare.read]
    walls = confine(read=read, handed=HANDED if prepare.handed else None)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    logging.disable(logging.CRITICAL)
    logging.raiseExceptions = False
    warnings.simplefilter("ignore")
    return walls.scratch, walls.by_name


async def _run(boot: Boot, channel: Channel, pipe: socket.socket, scratch: Path) -> None:
    try:
        loaded = load(boot, channel, scratch)  # 3
        ring = KeyRing(
            boot.name,
            loaded.digest,
            boot.accelerators,
            lifetime=boot.lifetime,
            overlap=boot.overlap,
            max_body=boot.limits.body,
        )
        keys = ring.current(datetime.now(UTC)).digest.hex()
    except Gone:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends here, without its text
        channel.send(encode(failed(error)))
        channel.receive()  # it travels meanwhile; the service ends this
        return
    channel.send(encode(Ready(boot.name, loaded.digest, loaded.kind, keys)))
    channel.flush()
    gc.collect()
    gc.freeze()
    await _serve(boot, loaded, ring, pipe)  # 4


async def _serve(boot: Boot, loaded: Loaded, ring: KeyRing, sock: socket.socket) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(lambda _loop, _context: None)  # its words could hold what was asked
    door = Door(ring, loaded.application, Register(boot.clients), boot.limits)
    door.attach(Pipe(sock, door.on_frame, over.set), loop)
    while not over.is_set() and loaded.alive():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _ALIVE_SECONDS)
    await door.close()


def _out_of_turn() -> ProtocolError:
    return ProtocolError("told a worker something out of turn")


if __name__ == "__main__":
    main()
