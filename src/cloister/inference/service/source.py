"""What a service can serve, as whoever starts it has it.

TableModel       a release of a study that trained on tables, in memory as it was verified
LanguageModel    a folder of safetensors, configuration and tokenizer
SealedFolder     either of them, encrypted; its key is lent to the worker, or released by a broker
LoopbackEngine   another server on this machine, such as vLLM
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cloister.inference.artifact import ModelArtifact
from cloister.inference.service.boot import Engine, Language, Prepare, Sealed, Table
from cloister.inference.service.connections import Address
from cloister.runtime.workers.asking import Lends

if TYPE_CHECKING:
    from cloister.inference.models.keys import ModelHandover

__all__ = ["KV_TOKENS", "LanguageModel", "LoopbackEngine", "SealedFolder", "Source", "TableModel"]

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
        return _printable(self.folder.resolve().name)

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        return Prepare([str(self.folder.resolve())], "language", False)

    def told(self) -> Language:
        """Return what the worker is told."""
        return Language(str(self.folder.resolve()), self.kv_tokens)


@dataclass(frozen=True)
class SealedFolder:
    """A sealed model.

    Attributes:
        handed: folder, signed manifest, owner, and the broker that keeps its key, if one does.
        lender: answers the worker that opens it (`models.keys.lender`).
        kv_tokens: as of `LanguageModel`.
        code: as of `TableModel`.
    """

    handed: ModelHandover
    lender: Lends = field(repr=False)
    kv_tokens: int = KV_TOKENS
    code: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handed.manifest.name

    def prepare(self) -> Prepare:
        """Return what the worker needs before the walls."""
        imports: Literal["language", "torch", "table"] = "table" if self.code is None else "torch"
        if self.handed.manifest.kind == "language":
            imports = "language"
        return Prepare([str(self.handed.folder)], imports, False)

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


Source = TableModel | LanguageModel | SealedFolder | LoopbackEngine


def _printable(name: str) -> str:
    kept = "".join(letter if " " < letter <= "~" else "-" for letter in name)[:128]
    return kept or "model"
