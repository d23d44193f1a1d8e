"""What a release folder holds, and how it is read: once, into memory, within limits, and nothing that
does not belong.

    model.safetensors                    the model, or
    model.safetensors.sealed             the model sealed to its recipients
    plan.toml                            the plan that every site countersigned
    manifests/SITE.dsse.json             each site's signed manifest of its dataset
    countersignatures/EPOCH/SITE.dsse.json  each member's signed consent to plan and roster of an epoch
    debits/SITE.dsse.json                each ledger's signed debit, where the plan claims privacy
    appraisals/SITE.dsse.json            each site's signed word on the hub's evidence, where there is any
    MODEL_CARD.md                        of a language model: what it is, in words, for people
    certificate.dsse.json                the certificate; its subjects are all of the above
    proof.json                           that the certificate is in the log

Links, other files and other folders are refused: what the certificate does not cover has no place beside it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from cloister.errors import CloisterError, InputError, VerificationError
from cloister.files import read_bytes
from cloister.governance.certificate import CERTIFICATE_LIMIT
from cloister.governance.statement import MOST_FILES
from cloister.inference import TENSORS_LIMIT
from cloister.learning import MAX_PLAN_BYTES
from cloister.types import check_name

__all__ = [
    "CERTIFICATE",
    "MODEL",
    "MODEL_CARD",
    "PLAN",
    "PROOF",
    "SEALED_MODEL",
    "appraisal_path",
    "check_complete",
    "countersignature_path",
    "debit_path",
    "manifest_path",
    "read_release",
]

MODEL = "model.safetensors"
SEALED_MODEL = "model.safetensors.sealed"
MODEL_CARD = "MODEL_CARD.md"
PLAN = "plan.toml"
CERTIFICATE = "certificate.dsse.json"
PROOF = "proof.json"

_ENDING = ".dsse.json"
_FOLDERS = ("manifests", "debits", "appraisals")
_AGREED = "countersignatures"
_EPOCH = re.compile(r"0|[1-9][0-9]{0,14}")
_ENVELOPE_LIMIT = 16 << 20
_LIMITS = {
    MODEL: TENSORS_LIMIT,
    SEALED_MODEL: TENSORS_LIMIT + (4 << 20),
    MODEL_CARD: 4 << 20,
    PLAN: MAX_PLAN_BYTES,
    CERTIFICATE: CERTIFICATE_LIMIT,
    PROOF: 16 << 20,
}
_MOST_BYTES = TENSORS_LIMIT + (256 << 20)


def manifest_path(site: str) -> str:
    """Where a site's manifest lies in the folder."""
    return f"manifests/{site}{_ENDING}"


def countersignature_path(epoch: int, site: str) -> str:
    """Where a site's countersignature of an epoch's roster lies in the folder."""
    return f"{_AGREED}/{epoch}/{site}{_ENDING}"


def debit_path(site: str) -> str:
    """Where the debit of a site's ledger lies in the folder."""
    return f"debits/{site}{_ENDING}"


def appraisal_path(site: str) -> str:
    """Where a site's appraisal of the hub's evidence lies in the folder."""
    return f"appraisals/{site}{_ENDING}"


def _refuse(what: str, where: Path | None = None) -> VerificationError:
    return VerificationError(what, where=str(where or ""), fix="Get the release again from whoever made it")


def _list(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except OSError as error:
        raise InputError(
            f"cannot read the release: {error.strerror}",
            where=str(folder),
            fix="Give the folder that `cloister release` wrote",
        ) from error


def _limit(name: str) -> int | None:
    """Return the size limit of a path in the folder, None for one that does not belong."""
    folder, _, file = name.rpartition("/")
    if (folder in _FOLDERS or _is_epoch(folder)) and file.endswith(_ENDING):
        try:
            check_name(file.removesuffix(_ENDING))
        except CloisterError:
            return None
        return _ENVELOPE_LIMIT
    return _LIMITS.get(name)


def _is_epoch(folder: str) -> bool:
    parent, _, number = folder.rpartition("/")
    return parent == _AGREED and _EPOCH.fullmatch(number) is not None


def _is(path: Path, kind: int) -> bool:
    return stat.S_IFMT(path.lstat().st_mode) == kind


def _names(folder: Path, inside: str = "") -> list[str]:
    """Return everything in the folder, and in those of its folders that belong, whatever it is."""
    names: list[str] = []
    for entry in _list(folder / inside):
        name = f"{inside}/{entry}" if inside else entry
        belongs = name in (*_FOLDERS, _AGREED) or _is_epoch(name)
        names += _names(folder, name) if belongs and _is(folder / name, stat.S_IFDIR) else [name]
    return names


def read_release(folder: Path) -> dict[str, bytes]:
    """Return path in the folder -> content, for every file in it.

    Raises:
        InputError: there is no such folder.
        VerificationError: something in it does not belong, is not a plain file, is missing, or is too large,
            alone or together.
    """
    names = _names(folder)
    if len(names) > MOST_FILES:
        raise _refuse(f"the release has more than {MOST_FILES} files", folder)
    limits: dict[str, int] = {}
    total = 0
    for name in names:
        limit = _limit(name)
        if limit is None or not _is(folder / name, stat.S_IFREG):
            raise _refuse(f"{name[:100]!r} does not belong into a release", folder)
        size = (folder / name).lstat().st_size
        if size > limit:
            raise _refuse(f"{name} is larger than {limit} bytes", folder)
        limits[name], total = limit, total + size
    if total > _MOST_BYTES:
        raise _refuse(f"the files together are larger than {_MOST_BYTES} bytes", folder)
    return {name: read_bytes(folder / name, limit=limit, what=name) for name, limit in limits.items()}


def check_complete(files: Mapping[str, bytes]) -> None:
    """Raise VerificationError where a file that every release has is missing, or one does not belong or
    is too large."""
    for name, content in files.items():
        limit = _limit(name)
        if limit is None or len(content) > limit:
            raise _refuse(f"{name[:100]!r} does not belong into a release, or is too large")
    for name in (CERTIFICATE, PROOF, PLAN):
        if name not in files:
            raise _refuse(f"{name} is missing")
    if (MODEL in files) == (SEALED_MODEL in files):
        raise _refuse(f"there must be one of {MODEL} and {SEALED_MODEL}")
