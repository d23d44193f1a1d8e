"""The model of a release, whichever kind it is: of tables (`ModelArtifact`) or a language model
(`AdapterArtifact`). Which one a file is, its card says; each is then read by its own strict reader."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from cloister.errors import InputError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.artifact import ModelArtifact
from cloister.inference.predictor import Predictor
from cloister.inference.tensors import metadata_of

__all__ = ["Artifact", "artifact_from_bytes", "columns_of", "needed_base", "of_tables"]

_Place = TypeVar("_Place", str, Path)

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


def columns_of(artifact: Artifact) -> tuple[str, ...]:
    """Return the names of the columns of an answer."""
    return artifact.columns if isinstance(artifact, AdapterArtifact) else Predictor.of(artifact).columns


def needed_base(artifact: AdapterArtifact, base: _Place | None) -> _Place:
    """Return where a language model's base lies. Raises InputError where nobody said."""
    if base is None:
        raise InputError(
            "the model was trained on a base, which no release carries",
            where=f"base {artifact.card.language.base[:16]}",
            fix="Give the base's folder: --base DIR",
        )
    return base
