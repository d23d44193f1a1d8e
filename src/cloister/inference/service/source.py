"""What a service can serve, as whoever starts it has it.

TableModel       a release of a study that trained on tables, in memory as it was verified
LanguageModel    a folder of safetensors, configuration and tokenizer
AdapterModel     a release of a study that trained a language model, beside its base
SealedFolder     any of them, encrypted; its key is lent to the worker, or released by a broker
LoopbackEngine   another server on this machine, such as vLLM
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cloister.errors import InputError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.artifact import ModelArtifact
from cloister.inference.service.boot import Adapter, Engine, Language, Prepare, Sealed, Table
from cloister.inference.service.connections import Address
from cloister.runtime.workers.asking import Lends

if TYPE_CHECKING:
    from cloister.inference.models.keys import ModelHandover

__all__ = [
    "KV_TOKENS",
    "AdapterModel",
    "LanguageModel",
    "LoopbackEngine",
    "SealedFolder",
    "Source",
    "TableModel",
]

KV_TOKENS: Final = 16_384
"""Tokens that a language model's cache holds, unless told otherwise."""


@dataclass(frozen=True)
class TableModel:
    """A released model.

    Attributes:
        artifact: as it was verified.
        code: the Python file of a module of the user's own, which whoever serves it has read and allows.
    """

    artifact: ModelArtifact
    code: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.artifact.card.name

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        return Prepare([], "table" if self.code is None else "torch", False)

    def told(self) -> Table:
        """Return what the worker is told."""
        return Table(memoryview(self.artifact.to_bytes()), self.code)


@dataclass(frozen=True)
class LanguageModel:
    """A language model in the clear.

    Attributes:
        folder: where it lies.
        kv_tokens: tokens that its cache holds, of all requests together.
    """

    folder: Path
    kv_tokens: int = KV_TOKENS

    @property
    def name(self) -> str:
        """The folder's name, as far as a name may be."""
        return _as_name(self.folder.resolve().name)

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        return Prepare([str(self.folder.resolve())], "language", False)

    def told(self) -> Language:
        """Return what the worker is told."""
        return Language(str(self.folder.resolve()), self.kv_tokens)


@dataclass(frozen=True)
class AdapterModel:
    """A released language model, and the base that it was trained on.

    Attributes:
        artifact: as it was verified.
        base: where its base lies, in the clear; the worker can read it and not write it.
        kv_tokens: as of `LanguageModel`.
    """

    artifact: AdapterArtifact
    base: Path
    kv_tokens: int = KV_TOKENS

    @property
    def name(self) -> str:
        """The study's name."""
        return self.artifact.card.name

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        return Prepare([str(self.base.resolve())], "adapter", False)

    def told(self) -> Adapter:
        """Return what the worker is told."""
        return Adapter(memoryview(self.artifact.to_bytes()), str(self.base.resolve()), self.kv_tokens)


@dataclass(frozen=True)
class SealedFolder:
    """A sealed model.

    Attributes:
        handed: folder, signed manifest, owner, and the broker that keeps its key, if one does.
        lender: answers the worker that opens it (`models.keys.lender`).
        kv_tokens: as of `LanguageModel`.
        code: as of `TableModel`.
        base: where the base lies that a released language model needs; None for other models.

    Raises:
        InputError: the model needs a base and none is given, or the other way round.
    """

    handed: ModelHandover
    lender: Lends = field(repr=False)
    kv_tokens: int = KV_TOKENS
    code: bytes | None = field(default=None, repr=False)
    base: Path | None = None

    def __post_init__(self) -> None:
        if (self.handed.manifest.kind == "adapter") != (self.base is not None):
            needed = self.base is None
            raise InputError(
                "the model was trained on a base, which is not sealed with it"
                if needed
                else "the model needs no base",
                where=self.name,
                fix="Give the base's folder: --base DIR" if needed else "Leave --base out",
            )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handed.manifest.name

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        kind, read = self.handed.manifest.kind, [str(self.handed.folder)]
        imports: Literal["language", "adapter", "torch", "table"] = "torch" if self.code else "table"
        if kind != "table":
            imports = kind
        if self.base is not None:
            read.append(str(self.base.resolve()))
        return Prepare(read, imports, False)

    def told(self) -> Sealed:
        """Return what the worker is told."""
        broker = self.handed.broker
        return Sealed(
            str(self.handed.folder),
            self.handed.envelope,
            self.handed.owner.to_json(),
            None if broker is None else broker.to_json(),
            self.code,
            self.kv_tokens,
            None if self.base is None else str(self.base.resolve()),
        )


@dataclass(frozen=True)
class LoopbackEngine:
    """An OpenAI-compatible server on this machine.

    Attributes:
        address: where it answers.
        names: the models that may be asked for; empty for all that it has.
        accelerators: GPUs that it computes on; clients want accepted evidence of each.
    """

    address: Address
    names: tuple[str, ...] = ()
    accelerators: int = 0

    @property
    def name(self) -> str:
        """The only model's name, or a word for all of them."""
        return self.names[0] if len(self.names) == 1 else "loopback"

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        return Prepare([], "loopback", True)

    def told(self) -> Engine:
        """Return what the worker is told."""
        return Engine(self.address.peer, list(self.names))


Source = TableModel | LanguageModel | AdapterModel | SealedFolder | LoopbackEngine


def _as_name(name: str) -> str:
    kept = "".join(letter if " " < letter <= "~" else "-" for letter in name)[:128]
    return kept or "model"
