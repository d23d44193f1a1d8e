"""What the commands of `cloister he` share: the rows, the key, and targets that are free."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli.common import load_identity
from cloister.cli.releasedmodel import rows_path
from cloister.errors import InputError
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.inference.encrypted import ClientKey
    from cloister.vault.sources import Source

__all__ = ["Format", "client_key", "free", "sources"]

_KEY_LIMIT: Final = 16 << 20


class Format(enum.StrEnum):
    """What answers are written as."""

    CSV = "csv"
    PARQUET = "parquet"


def free(force: bool, *targets: Path) -> None:
    """Raise InputError where a target exists and may not be replaced."""
    for target in targets:
        if target.exists() and not force:
            raise InputError(
                "the target exists", where=str(target), fix="Choose another name, or use --force"
            )


def client_key(path: Path) -> ClientKey:
    """Return the key to scores in a file, sealed to this home's identity or not."""
    from cloister.crypto import open_bytes, sealed_recipients
    from cloister.inference.encrypted import ClientKey

    data = read_bytes(path, limit=_KEY_LIMIT, what="key")
    try:
        sealed_recipients(path)
    except InputError:
        return ClientKey.from_bytes(data)
    return ClientKey.from_bytes(open_bytes(data, load_identity()))


@contextlib.contextmanager
def sources(file: Path, reference: Path | None) -> Iterator[tuple[Source, Source | None]]:
    """Yield the rows, and those to scale by; what was sealed is opened in memory only."""
    from cloister.vault.sources import open_source

    with contextlib.ExitStack() as stack:
        rows = open_source(stack.enter_context(rows_path(file)))
        scale_by = None if reference is None else open_source(stack.enter_context(rows_path(reference)))
        yield rows, scale_by
