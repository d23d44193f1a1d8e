"""An OpenAI-compatible server on this machine's loopback, passed through."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from cloister.inference.application import Reply, Request
from cloister.inference.openai.errors import Refusal

__all__ = ["LoopbackApp"]


class LoopbackApp:
    """Passes requests to a server over sockets that are handed to it.

    Args:
        connect: returns a socket that is connected to the server. May block: it is called in a thread,
            by one thread at a time.
        names: the models that clients may ask for; empty leaves that to the server.

    Raises:
        InputError: the packages that it takes are not installed.
    """

    def __init__(self, connect: Callable[[], socket.socket], names: Sequence[str] = ()) -> None:
        self._connect, self._names = connect, tuple(names)

    async def __call__(self, request: Request) -> Reply:
        """Return the reply."""
        return Refusal("Not here yet.", status=404).reply()

    async def aclose(self) -> None:
        """Close every connection."""
