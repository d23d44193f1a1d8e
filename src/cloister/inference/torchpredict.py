"""Predictions of a module of the user's own: its release holds parameters and the hash of a Python file, and
whoever predicts has that file and allows it.

In this order, in the walled worker:

1. the bytes must have the hash that the plan named, before anything is run;
2. they are written to the scratch space and run: the module is made from the plan's seed, and tested;
3. its start and what is not trained in it must be those that the plan pinned: with another frozen part the
   released parameters would mean something else;
4. it must have as many parameters as the release.

What the code does with rows it is given is its own: it writes the answers, and answers can carry rows to
their readers. The hash says which code ran, not that it is harmless; consent to it is by file.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cloister.errors import InputError, IntegrityError, PolicyRefused
from cloister.inference.artifact import ModelArtifact
from cloister.inference.predictor import Predictor
from cloister.inference.released import Artifact
from cloister.learning.start import pin_of

__all__ = ["allowed_code", "needs_code", "torch_predictor"]


def needs_code(artifact: Artifact) -> bool:
    """Return whether a released model is a module in a Python file."""
    return artifact.card.model.kind == "torch"


def allowed_code(artifact: Artifact, code: bytes | None) -> bytes | None:
    """Return the code to run, whose hash is the plan's; None where the model needs none. Nothing is run.

    Args:
        artifact: the model.
        code: the file that was allowed, or None.

    Raises:
        PolicyRefused: the model is code, and none was allowed.
        IntegrityError: it is not the file that the plan names.
        InputError: a file was allowed, and the model needs none.
    """
    section = artifact.card.model
    if section.kind != "torch":
        if code is not None:
            raise InputError("the model is no code of a user's own", fix="Leave --allow-user-code out")
        return None
    if code is None:
        raise PolicyRefused(
            "the model is Python code, which would run in the worker that sees the rows",
            where=f"SHA-256 {section.code}",
            fix="Read the file; if you trust it, run again with --allow-user-code FILE",
        )
    found = hashlib.sha256(code).hexdigest()
    if not hmac.compare_digest(found.encode(), str(section.code).encode()):
        raise IntegrityError(
            f"the model's file has SHA-256 {found}, and the plan names another",
            where=f"SHA-256 {section.code}",
            fix="Get the file that belongs to this release",
        )
    return code


def torch_predictor(artifact: ModelArtifact, code: bytes, *, scratch: Path) -> Predictor:
    """Return the predictor of a released torch module; its code runs in this process.

    Args:
        artifact: the model.
        code: the module's Python file, which its user has read and allows.
        scratch: a folder that this process may write; the file stays there while the predictor is used.

    Raises:
        InputError: torch is not installed, the file does not run, or its module cannot be what was trained.
        IntegrityError: the file, the module's start or its size is not the release's.
    """
    allowed_code(artifact, code)  # 1
    section = artifact.card.model
    if section.kind != "torch":
        raise InputError("the model is no code of a user's own", fix="Use Predictor.of")
    try:
        from cloister.learning.torch import TorchPrivate, load_factory
    except ImportError as error:
        raise InputError(
            "this model needs torch", where="[model] kind", fix="pip install 'cloister[torch]'"
        ) from error
    path = scratch / "model.py"
    path.write_bytes(code)
    factory = load_factory(path, str(section.factory), str(section.code), True)  # 2
    shape = artifact.card.features.width
    module = TorchPrivate(factory, classes=section.classes, shape=shape, seed=section.seed)
    if pin_of(module.initial(section.seed), module.fixed_digest) != section.initial:  # 3
        raise IntegrityError(
            "the module does not start as the plan pinned it: what is not trained in it may be another",
            where="[model] initial",
            fix="Use the version of torch, and the files, that the study was run with",
        )
    if artifact.parameters.shape != (module.size,):  # 4
        raise IntegrityError(
            f"the release has {artifact.parameters.size} parameters and the module {module.size}",
            fix="Ask the releaser for the file as it was made",
        )
    return Predictor.of(artifact, module)
