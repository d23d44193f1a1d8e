"""What runs in a worker's process: `spawn` isolates it and starts this module; then it serves its site.

The walls of `cloister.enclave.sandbox` go up when the site says what must be readable, before any row, key or
user's code is here. Libraries compute with one thread until then, since a thread that runs already would not
be held by all of the walls; afterwards with as many as the site's own process would.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.enclave.sandbox import confine
from cloister.runtime.workers.serve import serve

__all__ = ["main"]

_CHANNEL: Final = 3  # where `spawn` puts this end of the pair


def main() -> None:
    """Serve until the site is gone."""
    serve(socket.socket(fileno=_CHANNEL), _confine)


def _confine(read: list[Path]) -> tuple[Path, Mapping[str, bool | None]]:
    walls = confine(read=read)
    return walls.scratch, walls.by_name


if __name__ == "__main__":
    main()
