"""In the worker, behind its walls: from what a service was told to serve to the application that does.

    table       inference.Predictor          -> openai.TableApp
    language    language.load.load_engine       -> openai.OpenAIApp
    adapter     beside its base: merged into it  -> openai.OpenAIApp, or of classes -> openai.TableApp
    loopback    sockets handed over          -> openai.LoopbackApp
    sealed      models.opened_model first, its key asked for over the channel; then one of the first three

Every application answers to its readers alone where a request says so (`openai.SealingApp`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cloister.crypto import PublicIdentity, sha256
from cloister.errors import InputError
from cloister.inference.application import Application
from cloister.inference.service.boot import HANDED, Adapter, Boot, Engine, Language, Sealed, Table

if TYPE_CHECKING:
    from cloister.learning.modelfiles.files import ModelFiles
    from cloister.runtime.workers.channel import Channel

__all__ = ["UNKNOWN_DIGEST", "Loaded", "load"]

UNKNOWN_DIGEST: Final = "0" * 64
"""The digest of a model that another process holds."""


@dataclass(frozen=True)
class Loaded:
    """What answers.

    Attributes:
        application: the application.
        digest: of the model, 64 hexadecimal digits.
        kind: what it is.
        alive: whether it can still answer.
    """

    application: Application
    digest: str
    kind: Literal["table", "language", "loopback"]
    alive: Callable[[], bool] = lambda: True


def load(boot: Boot, channel: Channel, scratch: Path) -> Loaded:
    """Load what is to be served. On the loop that will serve.

    Args:
        boot: what it is.
        channel: over which the key of a sealed model is asked for.
        scratch: the folder that this process may write.

    Raises:
        CloisterError: it cannot be served.
    """
    loaded = _load(boot, channel, scratch)
    from cloister.inference.openai import SealingApp

    return Loaded(SealingApp(loaded.application), loaded.digest, loaded.kind, loaded.alive)


def _load(boot: Boot, channel: Channel, scratch: Path) -> Loaded:
    match boot.model:
        case Table():
            data = bytes(boot.model.model)
            return _table(boot, data, boot.model.code, sha256(data).hex(), scratch)
        case Language():
            from cloister.learning.modelfiles.files import PlainFolder

            with contextlib.closing(PlainFolder(Path(boot.model.folder))) as files:
                return _language(boot, files, boot.model.kv_tokens, scratch)
        case Adapter():
            data = bytes(boot.model.model)
            return _adapter(boot, data, boot.model.base, sha256(data).hex(), boot.model.kv_tokens, scratch)
        case Sealed():
            return _sealed(boot, boot.model, channel, scratch)
        case Engine():
            return _engine(boot.model)


def _table(boot: Boot, data: bytes, code: bytes | None, digest: str, scratch: Path) -> Loaded:
    import pyarrow as pa
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has none

    from cloister.inference.artifact import ModelArtifact
    from cloister.inference.openai import TableApp
    from cloister.inference.predictor import Predictor
    from cloister.inference.torchpredict import allowed_code, torch_predictor

    artifact = ModelArtifact.from_bytes(data)
    if artifact.card.features.scaling == "local":
        raise InputError(
            'the model was trained with scaling = "local": it answers relative to rows of whoever asks',
            fix="Use `cloister predict --reference` where these rows are",
        )
    pa.set_cpu_count(boot.threads)
    threadpool_limits(limits=boot.threads)
    allowed = allowed_code(artifact, code)
    if allowed is None:
        predictor = Predictor.of(artifact)
    else:
        predictor = torch_predictor(artifact, allowed, scratch=scratch)
    return Loaded(TableApp(predictor, boot.name), digest, "table")


def _language(boot: Boot, files: ModelFiles, kv_tokens: int, scratch: Path) -> Loaded:
    from cloister.inference.language.load import load_engine
    from cloister.inference.openai import OpenAIApp

    engine = load_engine(files, name=boot.name, kv_tokens=kv_tokens, threads=boot.threads, scratch=scratch)
    return Loaded(OpenAIApp(engine), files.digest, "language", lambda: engine.running)


def _adapter(boot: Boot, data: bytes, base: str, digest: str, kv_tokens: int, scratch: Path) -> Loaded:
    """Load a released language model. `digest` stands for its base, too, which its card names."""
    from cloister.learning.modelfiles.files import PlainFolder

    with contextlib.closing(PlainFolder(Path(base))) as files:
        return _beside(boot, data, files, digest, kv_tokens, scratch)


def _beside(boot: Boot, data: bytes, files: ModelFiles, digest: str, kv_tokens: int, scratch: Path) -> Loaded:
    """Load a released language model beside the files of its base."""
    import pyarrow as pa

    from cloister.inference.adapter import AdapterArtifact
    from cloister.inference.language.answers import LanguagePredictor
    from cloister.inference.language.load import load_engine
    from cloister.inference.openai import OpenAIApp, TableApp
    from cloister.learning.torch.threads import use_threads

    artifact = AdapterArtifact.from_bytes(data)
    if artifact.generates:
        engine = load_engine(
            files,
            name=boot.name,
            kv_tokens=kv_tokens,
            threads=boot.threads,
            scratch=scratch,
            adapter=artifact,
        )
        return Loaded(OpenAIApp(engine), digest, "language", lambda: engine.running)
    pa.set_cpu_count(boot.threads)
    use_threads(boot.threads)
    predictor = LanguagePredictor.of(artifact, files, scratch=scratch, device="cpu")
    return Loaded(TableApp(predictor, boot.name), digest, "table")


def _sealed(boot: Boot, model: Sealed, channel: Channel, scratch: Path) -> Loaded:
    from cloister.inference.models.hashed import HashedModel
    from cloister.inference.models.keys import brokered
    from cloister.inference.models.manifest import TABLE_FILE
    from cloister.inference.models.sealed import opened_model
    from cloister.runtime.workers.answering import lent

    owner = PublicIdentity.from_json(model.owner)
    if model.broker is None:
        data_key = lent(channel)
    else:
        data_key = brokered(channel, model.envelope, owner, PublicIdentity.from_json(model.broker))
    opened = opened_model(Path(model.folder), model.envelope, owner, data_key)
    files, kind = HashedModel(opened), opened.manifest.kind
    if kind == "language":
        loaded = _language(boot, files, model.kv_tokens, scratch)
        files.check()  # clients are told it as the model's, and the owner is nobody to them
        return loaded
    data = files.read(TABLE_FILE)
    files.check()
    if kind == "table":
        return _table(boot, data, model.code, files.digest, scratch)
    if model.base is None:
        raise InputError("the model was trained on a base, which is not given", fix="Give --base DIR")
    return _adapter(boot, data, model.base, files.digest, model.kv_tokens, scratch)


def _engine(model: Engine) -> Loaded:
    from cloister.inference.openai import LoopbackApp
    from cloister.inference.service.connections import Connections

    connections = Connections(socket.socket(fileno=HANDED), model.peer)
    return Loaded(LoopbackApp(connections.connect, model.names), UNKNOWN_DIGEST, "loopback")
