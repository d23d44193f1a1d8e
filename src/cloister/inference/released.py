"""The model of a release, whichever kind it is: of tables (`ModelArtifact`) or a language model
(`AdapterArtifact`). Which one a file is, its card says; each is then read by its own strict reader."""

from __future__ import annotations

import msgspec

from cloister.errors import InputError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.artifact import ModelArtifact
from cloister.inference.tensors import metadata_of

__all__ = ["Artifact", "artifact_from_bytes", "of_tables"]

Artifact = ModelArtifact | AdapterArtifact


class _Format(msgspec.Struct):
    """Of a card, its format alone."""

    format: str = ""


def artifact_from_bytes(data: bytes) -> Artifact:
    """Return the artefact in the bytes of a `model.safetensors`.

    Raises:
        IntegrityError: it is neither.
    """
    try:
        written = msgspec.json.decode(metadata_of(data), type=_Format).format
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        written = ""
    if written.startswith("cloister-adapter/"):
        return AdapterArtifact.from_bytes(data)
    return ModelArtifact.from_bytes(data)


def of_tables(artifact: Artifact) -> ModelArtifact:
    """Return a model of tables. Raises InputError where it is a language model."""
    if isinstance(artifact, AdapterArtifact):
        raise InputError(
            "the release is a language model's, and this is for models of tables",
            where=f"[model] kind = {artifact.card.model.kind!r}",
            fix="Use `cloister predict --base DIR` or `cloister serve --base DIR`",
        )
    return artifact
