"""Workers that are none: a thread of the test's own in the place of a walled process. Importable, not collected."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloister.inference.service.process import serve


class UnwalledThread:
    """Runs a service's worker in a thread, without any wall.

    Args:
        extra: further sockets, as `spawn` would pass them on.
        scratch: a folder.
        walls: that it claims.
        work: what runs instead of the worker.
    """

    pid = 0

    def __init__(
        self,
        extra: Sequence[socket.socket],
        scratch: Path,
        walls: Mapping[str, bool | None],
        work: Callable[[socket.socket, socket.socket], None] | None = None,
    ) -> None:
        self.socket, theirs = socket.socketpair()
        pipe = extra[0].dup()

        def run() -> None:
            try:
                if work is not None:
                    work(theirs, pipe)
                else:
                    serve(theirs, pipe, lambda _: (scratch, walls))
            finally:
                theirs.close()
                pipe.close()

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int | None:
        return 0

    def last_words(self) -> str:
        return ""

    def close(self) -> None:
        self.socket.close()
        self._thread.join(20)
