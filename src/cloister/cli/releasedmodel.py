"""The model of a release folder, and rows from a file: for every command that brings the two together.

What was sealed to this home is opened in memory and never written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cloister.cli.common import load_identity, say
from cloister.cli.verify import trust_anchors
from cloister.errors import InputError, SchemaError
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.inference import Artifact, ModelArtifact

__all__ = ["Released", "existing", "released_model", "released_table", "rows_path"]

_ROWS_LIMIT: Final = 1 << 30


class Released(NamedTuple):
    """A released model.

    Attributes:
        artifact: the model.
        data: the bytes of its file.
        certificate: the certificate's digest, hexadecimal; None where nothing was verified.
        files: path in the release -> content, as it was verified: the folder may be another one by now.
    """

    artifact: Artifact
    data: bytes
    certificate: str | None
    files: Mapping[str, bytes]


def released_model(folder: Path, trust: list[Path] | None, *, unverified: bool = False) -> Released:
    """Return a release's model, from the very bytes that were verified.

    Args:
        folder: of the release.
        trust: folders or files of identities to verify with; None for those that this home trusts.
        unverified: take the model as it lies there, and say so aloud.

    Raises:
        InputError: there is none, or it is sealed to somebody else.
        IntegrityError, VerificationError: the release does not verify.
    """
    from cloister.crypto import open_bytes
    from cloister.governance import verify_release
    from cloister.governance.folder import MODEL, SEALED_MODEL, read_release
    from cloister.inference import artifact_from_bytes

    certificate = None
    reader = load_identity() if (folder / SEALED_MODEL).exists() else None
    if unverified:
        say(
            "The release is NOT verified: nothing says who made this model, "
            "or that it is the one that was released."
        )
        files = read_release(folder)
        if MODEL not in files and SEALED_MODEL not in files:
            raise InputError(
                "the folder holds no model", where=str(folder), fix="Give the folder of a release"
            )
    else:
        verdict = verify_release(folder, trust_anchors(trust), reader=reader)
        verdict.require()
        files = dict(verdict.files)
        certificate = verdict.certificate.digest.hex() if verdict.certificate else None
    data = files[MODEL] if reader is None else open_bytes(files[SEALED_MODEL], reader)
    return Released(artifact_from_bytes(data), data, certificate, files)


def released_table(folder: Path, trust: list[Path] | None, *, unverified: bool = False) -> ModelArtifact:
    """Return a release's model, which must be one of tables.

    Raises:
        InputError: it is a language model; and as `released_model` does, like its other errors.
    """
    from cloister.inference import of_tables

    return of_tables(released_model(folder, trust, unverified=unverified).artifact)


def existing(file: Path) -> Path:
    """Return a file of rows. Raises InputError where there is none."""
    if not file.is_file():
        raise InputError("there is no such file of rows", where=str(file), fix="Check the path")
    return file


@contextlib.contextmanager
def rows_path(file: Path) -> Iterator[Path]:
    """Yield a path to read the rows from: the file itself, or its opened content, which never touches a
    disk."""
    from cloister.crypto import open_bytes, sealed_recipients
    from cloister.inference import in_memory_file

    existing(file)
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
