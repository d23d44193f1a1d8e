"""What the commands of `cloister he` share: the model, the rows, the key, and targets that are free."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli.common import load_identity, say
from cloister.cli.verify import trust_anchors
from cloister.errors import InputError, SchemaError
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.inference import ModelArtifact
    from cloister.inference.encrypted import ClientKey
    from cloister.vault.sources import Source

__all__ = ["Format", "client_key", "free", "released_model", "sources"]

_ROWS_LIMIT: Final = 1 << 30
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


def released_model(folder: Path, trust: list[Path] | None, unverified: bool) -> ModelArtifact:
    """Return a release's model, from the very bytes that were verified; a sealed one is opened in memory.

    Raises:
        InputError: there is none. VerificationError: the release does not verify.
    """
    from cloister.crypto import open_bytes
    from cloister.governance import verify_release
    from cloister.governance.folder import MODEL, SEALED_MODEL, read_release
    from cloister.inference import ModelArtifact

    reader = load_identity() if (folder / SEALED_MODEL).exists() else None
    if unverified:
        say("The release is NOT verified: nothing says who made this model.")
        files = read_release(folder)
        if MODEL not in files and SEALED_MODEL not in files:
            raise InputError(
                "the folder holds no model", where=str(folder), fix="Give the folder of a release"
            )
    else:
        verdict = verify_release(folder, trust_anchors(trust), reader=reader)
        verdict.require()
        files = dict(verdict.files)
    data = files[MODEL] if reader is None else open_bytes(files[SEALED_MODEL], reader)
    return ModelArtifact.from_bytes(data)


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
        rows = open_source(stack.enter_context(_plain(file)))
        scale_by = None if reference is None else open_source(stack.enter_context(_plain(reference)))
        yield rows, scale_by


@contextlib.contextmanager
def _plain(file: Path) -> Iterator[Path]:
    from cloister.crypto import open_bytes, sealed_recipients
    from cloister.inference import in_memory_file

    if not file.is_file():
        raise InputError("there is no such file of rows", where=str(file), fix="Check the path")
    try:
        sealed_recipients(file)
    except InputError:
        yield file
        return
    opened = open_bytes(read_bytes(file, limit=_ROWS_LIMIT, what="sealed rows"), load_identity())
    with in_memory_file(opened) as path:
        try:
            yield path
        except SchemaError:
            raise
        except InputError as error:
            raise InputError(error.what, where=f"in {file}", fix=error.fix) from error
