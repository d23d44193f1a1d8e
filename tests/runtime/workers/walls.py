"""Whether this machine can wall a worker off; tests that need it skip with the reason where it cannot."""

from __future__ import annotations

import functools

import pytest

from cloister.crypto import Identity
from cloister.errors import CloisterError
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.session import Session


@functools.cache
def lacking() -> str:
    """Return what this machine lacks, empty where nothing."""
    try:
        Session(sandbox(), Identity.generate("site"), bytes(32)).close()
    except CloisterError as error:
        return str(error)
    return ""


def needs_walls() -> None:
    """Skip the test where a worker cannot be walled off here."""
    if why := lacking():
        pytest.skip(f"no sandbox on this machine: {why}")
