"""What the commands between organisations share: connecting, trusting, and keeping what must survive."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import common

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity

__all__ = [
    "MetricsOption",
    "NatsOption",
    "NetworkOption",
    "OtlpOption",
    "TrustNow",
    "network_folder",
]

_LOOK_SECONDS = 1.0

NatsOption = Annotated[
    list[str], typer.Option("--nats", metavar="URL", help="Server of the network; repeat for a cluster's.")
]
NetworkOption = Annotated[
    Path | None,
    typer.Option("--network", metavar="DIR", help="Folder of the network's certificate; HOME/network."),
]
MetricsOption = Annotated[
    str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics there.")
]
OtlpOption = Annotated[
    str | None, typer.Option("--otlp", metavar="URL", help="Send OpenTelemetry traces there.")
]


def network_folder(named: Path | None) -> Path:
    """Return where the certificate for the network is."""
    return common.home() / "network" if named is None else named


class TrustNow:
    """The identities a home trusts, read again whenever the folder has changed.

    Asked before every message: who is taken out with `cloister keys untrust` is out at the next one. A
    folder's time is as coarse as the system's ticks, and says nothing of a file that was written into; so
    the files themselves are looked at as well, once a second.

    Args:
        always: identities that need not be in the folder; one's own.
    """

    def __init__(self, *always: PublicIdentity) -> None:
        self._always = {identity.fingerprint: identity for identity in always}
        self._folder = common.home() / "trust"
        self._seen: tuple[int, int] | None = None
        self._files: frozenset[tuple[str, int, int, int]] | None = None
        self._look_at = 0.0
        self._trusted: Mapping[str, PublicIdentity] = {}

    def __call__(self) -> Mapping[str, PublicIdentity]:
        """Return them by fingerprint."""
        state = self._folder.stat() if self._folder.is_dir() else None
        seen = (0, 0) if state is None else (state.st_mtime_ns, state.st_ino)
        now = time.monotonic()
        if seen != self._seen or now >= self._look_at:
            files = self._listing()
            if seen != self._seen or files != self._files:
                listed = {each.fingerprint: each for each in common.trust_store().list()}
                self._trusted, self._seen, self._files = self._always | listed, seen, files
            self._look_at = now + _LOOK_SECONDS
        return self._trusted

    def _listing(self) -> frozenset[tuple[str, int, int, int]]:
        """Return what tells that a file was added, taken out, exchanged or written into."""
        found = set()
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                state = entry.stat()
                found.add((entry.name, state.st_ino, state.st_mtime_ns, state.st_size))
        return frozenset(found)
