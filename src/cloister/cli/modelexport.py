"""`cloister model export RELEASE --out DIR`: a released language model as files that other software reads.

1. The release is verified against the identities that this home trusts; one that is sealed to this home is
   opened in memory.
2. An adapter becomes what `peft` loads; a model that was trained as a whole, or one that tells classes, needs
   its base (`--base`) and is checked against it.
3. The folder appears complete or not at all, with the release's MODEL_CARD.md as it was verified.

What is written is in the clear, for this user alone (mode 0600): the release may be sealed to others' eyes.
Nothing that is done with it later is seen by anybody here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit
from cloister.cli.releasedmodel import released_model
from cloister.cli.verify import TrustOption
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.inference import Artifact

__all__ = ["export", "fits_its_base", "needs_base"]


def export(
    release: Annotated[
        Path, typer.Argument(metavar="RELEASE", help="The release of a language model.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.", show_default=False)],
    base: BaseOption = None,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a released language model as files that peft or transformers loads, in the clear."""
    from cloister.files import new_directory, write_atomic
    from cloister.governance.folder import MODEL_CARD
    from cloister.inference import AdapterArtifact
    from cloister.inference.export import ADAPTER_MODEL, exported
    from cloister.learning.modelfiles.files import PlainFolder

    released = released_model(release, trust)
    artifact = released.artifact
    if not isinstance(artifact, AdapterArtifact):
        raise InputError(
            "the release is no language model's",
            where=str(release),
            fix="Its model.safetensors is one vector, which `cloister predict` and `cloister serve` read",
        )
    with contextlib.nullcontext() if base is None else contextlib.closing(PlainFolder(base)) as folder:
        files = exported(artifact, folder)
    with new_directory(out, mode=0o700) as part:
        for name, content in {**files, MODEL_CARD: released.files[MODEL_CARD]}.items():
            (part / name).parent.mkdir(exist_ok=True)
            write_atomic(part / name, content, mode=0o600)
    reader = "peft" if ADAPTER_MODEL in files else "transformers"
    facts = {
        "model": artifact.card.name,
        "out": str(out),
        "reader": reader,
        "files": {name: len(content) for name, content in files.items()},
    }
    emit(facts, as_json=as_json, text=f"{artifact.card.name} is in {out}, in the clear, for {reader}.")


def needs_base(artifact: Artifact, base: Path | None) -> bool:
    """Tell whether a released model is a language model, whose base is then given; nothing of it is read.

    Raises:
        InputError: its base is not given; or the model has none, and one is given.
    """
    from cloister.inference import AdapterArtifact
    from cloister.inference.released import needed_base

    if isinstance(artifact, AdapterArtifact):
        needed_base(artifact, base)
        return True
    if base is not None:
        raise InputError("the release is no language model's, and needs no base", fix="Leave --base out")
    return False


def fits_its_base(artifact: Artifact, base: Path | None) -> bool:
    """As `needs_base`, and the base is the right one.

    Raises:
        IntegrityError: base or tokenizer is another one.
    """
    from cloister.inference import AdapterArtifact

    if not needs_base(artifact, base) or not isinstance(artifact, AdapterArtifact) or base is None:
        return False
    from cloister.inference.language.adapted import check_base
    from cloister.learning.modelfiles.files import PlainFolder

    files = PlainFolder(base)
    try:
        check_base(artifact, files)
    finally:
        files.close()
    return True
