"""What `cloister serve` was asked to serve: found on this disk or on loopback, and checked beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cloister.cli.releasedmodel import released_model
from cloister.errors import InputError, PolicyRefused
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.enclave.broker import Attests
    from cloister.inference.service import Source

__all__ = ["Wanted", "source_of"]

_CODE_LIMIT: Final = 1 << 20


class Wanted(NamedTuple):
    """The options that say what is served; see `cloister serve --help`."""

    folder: Path | None
    engine: str | None
    name: str
    accelerators: int
    kv_tokens: int
    plain_weights: bool
    code: Path | None
    trust: list[Path] | None
    base: Path | None = None


def source_of(wanted: Wanted, attester: Attests) -> Source:
    """Return what is to be served.

    Args:
        wanted: the options.
        attester: makes evidence, for a model whose key is with a broker; nothing is asked of it here.

    Raises:
        InputError: it is nothing that can be served, or cannot be read.
        IntegrityError, VerificationError: it is not as it was signed, or by nobody whom this home trusts.
        PolicyRefused: its weights are in the clear, or it is code, and neither was allowed.
    """
    from cloister.governance.folder import CERTIFICATE
    from cloister.inference import AdapterArtifact
    from cloister.inference.models.sealed import is_sealed_model
    from cloister.inference.released import needed_base
    from cloister.inference.service import (
        AdapterModel,
        Address,
        LanguageModel,
        LoopbackEngine,
        SealedFolder,
        TableModel,
    )

    if (wanted.folder is None) == (wanted.engine is None):
        raise InputError("a service has a model or an engine", fix="Give one of MODEL and --engine URL")
    if wanted.engine is not None:
        _without_base(wanted)
        names = (wanted.name,) if wanted.name else ()
        return LoopbackEngine(Address.parse(wanted.engine), names, wanted.accelerators)
    folder = wanted.folder
    assert folder is not None  # noqa: S101  # one of the two is there
    code = None if wanted.code is None else read_bytes(wanted.code, limit=_CODE_LIMIT, what="model's file")
    if is_sealed_model(folder):
        from cloister.cli.modelkeys import model_to_serve

        handed, lender = model_to_serve(folder, attester)
        return SealedFolder(handed, lender, wanted.kv_tokens, code, wanted.base)
    if (folder / "config.json").is_file():
        if not wanted.plain_weights:
            raise PolicyRefused(
                "the model's weights are in the clear on this disk",
                where=str(folder),
                fix="Seal it with `cloister model seal`; or, if they are no secret, --plain-weights",
            )
        _without_base(wanted)
        return LanguageModel(folder, wanted.kv_tokens)
    if not (folder / CERTIFICATE).is_file():
        raise InputError(
            "there is no model here: no sealed one, no release, no config.json of a language model",
            where=str(folder),
            fix="Give what `cloister model seal` or `cloister release` wrote",
        )
    from cloister.inference.torchpredict import allowed_code

    artifact = released_model(folder, wanted.trust).artifact
    allowed = allowed_code(artifact, code)
    if isinstance(artifact, AdapterArtifact):
        return AdapterModel(artifact, needed_base(artifact, wanted.base), wanted.kv_tokens)
    _without_base(wanted)
    return TableModel(artifact, allowed)


def _without_base(wanted: Wanted) -> None:
    if wanted.base is not None:
        raise InputError(
            "only a released language model has a base beside it",
            where=str(wanted.base),
            fix="Leave --base out",
        )
