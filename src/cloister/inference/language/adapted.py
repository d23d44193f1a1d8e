"""A released language model beside its base: how one is made of a study's vector, and how it is used.

    released_adapter   from the trained vector to named tensors; the base's numbers are not read
    learner_of         base and adapter apart, as they were trained: for classes, and for batches of prompts
    merge              the adapter into a base that was loaded to be served

Merging, W + scale B A, is computed in float32 for one layer at a time, and rounded once to what the base's
numbers are. A tensor is never held twice but for that layer. The result differs from the trained model by
that one rounding; in a float32 base, by the last bit. A base that was trained on in 4 bits is used as it is.

Whoever has an adapter has `AdapterArtifact`: its names, ranks and numbers were checked when it was read. Here
base and tokenizer must be those that it names, and its layers exactly those that its plan adapts in them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.errors import InputError, IntegrityError
from cloister.inference.adapter import AdapterArtifact
from cloister.learning import Plan
from cloister.learning.language.adapter import HEAD, layer_of, named_tensors, plan_card, vector_of
from cloister.learning.language.extra import extra_error
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles.files import ModelFiles, PlainFolder
from cloister.learning.modelfiles.folder import LanguageModel, check_language_model
from cloister.learning.sections import LanguageSection, ModelSection
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.learner import LanguageLearner

__all__ = ["check_base", "fitting", "folded_head", "learner_of", "merge", "released_adapter"]


def check_base(artifact: AdapterArtifact, files: ModelFiles) -> LanguageModel:
    """Return what is found in a base's files, which must be those that the model was trained on; no torch.

    Raises:
        IntegrityError: base or tokenizer is another one.
        InputError: they are no language model's files.
    """
    language = artifact.card.language
    found = check_language_model(files)
    for what, here, named in (
        ("base model", files.digest, language.base),
        ("tokenizer", tokenizer_digest(files, found), language.tokenizer),
    ):
        if here != named:
            raise IntegrityError(
                f"the {what} here is not the one that the model was trained on",
                where=f"{here[:16]} instead of {named[:16]}",
                fix="Give the folder of the base that the release's MODEL_CARD.md names",
            )
    return found


def released_adapter(
    plan: Plan,
    schema: Schema,
    parameters: NDArray[np.floating[Any]],
    base: Path,
    *,
    scratch: Path | None = None,
) -> AdapterArtifact:
    """Return the artefact of a finished study.

    Args:
        plan: the plan that was run.
        schema: of the rows.
        parameters: float[d], the model to release.
        base: folder of the base; its numbers are not read.
        scratch: a folder for the tokenizer's files while it is loaded; None for one of its own.

    Raises:
        InputError: the base cannot be used, or the parameters are not its.
        IntegrityError: base or tokenizer is not the one that the plan names.
        PlanError: plan and base do not fit.
    """
    if plan.language is None:
        raise InputError("the plan trains no language model")
    with contextlib.closing(PlainFolder(base)) as files:
        learner = _learner(plan.model, plan.language, files, scratch, weights=False)
    tensors = named_tensors(plan_card(plan, schema), learner.tensors, learner.frozen, parameters)
    return AdapterArtifact.of_plan(plan, schema, tensors)


def learner_of(
    artifact: AdapterArtifact, files: ModelFiles, *, scratch: Path | None = None, device: str = "cpu"
) -> tuple[LanguageLearner, NDArray[np.float32]]:
    """Return what computes with a released model, and the vector to give it.

    Args:
        artifact: the model.
        files: of its base.
        scratch: a folder, best in memory; None for one of its own.
        device: as of `LanguageLearner`.

    Raises:
        InputError, PlanError: the base cannot be used.
        IntegrityError: it is another base or tokenizer, or the tensors are not those of this base.
    """
    card = artifact.card
    check_base(artifact, files)
    learner = _learner(card.model, card.language, files, scratch, device=device)
    return learner, fitting(artifact, learner)


def fitting(artifact: AdapterArtifact, learner: LanguageLearner) -> NDArray[np.float32]:
    """Return the trained vector, once a release's tensors are exactly those that its plan makes of a base.

    Raises:
        IntegrityError: one is missing, too many, or of another shape.
    """
    _same(
        {name: each.shape for name, each in artifact.tensors.items()},
        {each.name: each.shape for each in (*learner.tensors, *learner.frozen)},
    )
    return vector_of(learner.tensors, artifact.tensors)


def folded_head(
    artifact: AdapterArtifact, files: ModelFiles
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight and bias of a text-classifier's head over the plain mean of a text's tokens.

    What the head takes off that mean, and divides it by, comes from the base; here it is folded in.

    Args:
        artifact: the model.
        files: of its base.

    Raises:
        InputError, PlanError, IntegrityError: as `learner_of`.
    """
    learner, params = learner_of(artifact, files)
    learner.load(params)
    module = learner.module
    weight = module.head.weight.detach().double() / module.spread.double()
    bias = module.head.bias.detach().double() - weight @ module.centre.double()
    return weight.float().numpy(), bias.float().numpy()


def merge(model: Any, artifact: AdapterArtifact) -> None:
    """Add an adapter into a base that was loaded for serving, or, with method "full", put it in its place.

    Args:
        model: the causal model of transformers; its parameters are changed in place.
        artifact: what was trained of this base; `check_base` has been asked.

    Raises:
        InputError: the model tells classes and generates nothing.
        IntegrityError: the tensors are not those that its plan makes of this base.
    """
    if not artifact.generates:
        raise InputError("a text-classifier answers rows, and generates nothing")
    if artifact.card.adapted:
        _merge_adapter(model, artifact)
    else:
        _replace(model, artifact.tensors)


def _merge_adapter(model: Any, artifact: AdapterArtifact) -> None:
    import torch
    from transformers.pytorch_utils import Conv1D

    from cloister.learning.torch.language.adapters import target_layers

    layers = set(target_layers(model, artifact.card.language))
    named = {layer_of(name) for name in artifact.tensors if name not in HEAD}
    _same(dict.fromkeys(named, ()), dict.fromkeys(layers, ()))
    with torch.no_grad():
        for layer in sorted(layers):
            module = model.get_submodule(layer)
            a, b = (
                torch.from_numpy(np.array(artifact.tensors[f"base_model.model.{layer}.lora_{part}.weight"]))
                for part in "AB"
            )
            weight = module.weight.data
            turned = isinstance(module, Conv1D)
            if (b.shape[0], a.shape[1]) != tuple(weight.shape[::-1] if turned else weight.shape):
                raise _unfit(f"layer {layer}")
            change = torch.mm(b, a).mul_(artifact.card.scale)
            weight.copy_((change.T if turned else change).add_(weight.float()))


def _replace(model: Any, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    import torch

    parameters = dict(model.named_parameters())
    _same(
        {name: each.shape for name, each in tensors.items()},
        {name: tuple(each.shape) for name, each in parameters.items()},
    )
    with torch.no_grad():
        for name, each in parameters.items():
            each.copy_(torch.from_numpy(np.array(tensors[name])))


def _plain(language: LanguageSection) -> LanguageSection:
    """Return what counts for using a model: how training kept to its memory does not."""
    return msgspec.structs.replace(language, quantised="no", checkpointing=False, rows_per_pass=0)


def _learner(
    section: ModelSection, language: LanguageSection, files: ModelFiles, scratch: Path | None, **options: Any
) -> LanguageLearner:
    import tempfile

    try:
        from cloister.learning.torch.language.learner import LanguageLearner
    except ImportError as error:
        raise extra_error(error) from None
    if scratch is not None:
        return LanguageLearner(section, _plain(language), files, scratch=scratch, **options)
    with tempfile.TemporaryDirectory() as own:
        return LanguageLearner(section, _plain(language), files, scratch=Path(own), **options)


def _same(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise IntegrityError, naming one that differs, unless names and shapes are the same."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            what = (
                "too many" if name not in expected else "missing" if name not in found else "of another shape"
            )
            raise _unfit(f"{name[:200]} is {what}")


def _unfit(what: str) -> IntegrityError:
    return IntegrityError(
        f"the released model does not fit this base: {what}", fix="Give the base that the study was run with"
    )
