"""`SandboxedWorker`: the worker of a site, as a site sees it, while rows and code are in another process.

What comes back has the size that the model has, and numbers where numbers belong; that they are what training
gave is for the worker to know. Noise that others rely on, masks and keys are not in there: a sum of clipped
gradients comes out before its noise. In local mode every step carries its noise, so there it is drawn inside,
from the operating system.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity, sha256
from cloister.enclave.broker import Wanted
from cloister.errors import PolicyRefused, ProtocolError
from cloister.files import read_bytes
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Window
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.workers.asking import KeyLender, Lends
from cloister.runtime.workers.brokered import BrokerAccess, KeyCarrier
from cloister.runtime.workers.messages import (
    Answer,
    Evaluate,
    Facts,
    Imports,
    Inspect,
    Integers,
    Open,
    Place,
    PrivateSum,
    Question,
    Sums,
    Terms,
    Train,
    TrainPrivately,
    Vector,
    as_bytes,
)
from cloister.runtime.workers.session import Session, StartWorker
from cloister.vault import Schema
from cloister.vault.handover import Handover

__all__ = ["SandboxedWorker", "inspected"]

_MAX_FACTS: Final = 2 << 30
_MAX_CODE: Final = 1 << 20
_ROOM: Final = 1024
"""Bytes of an answer beside its numbers."""

A = TypeVar("A", bound=Answer)


class SandboxedWorker:
    """Trains one site's rows in a process of its own; a `Worker`.

    Args:
        plan: the study's plan.
        identity: the site's own keys.
        start: starts the process.
        rows: the training rows.
        held_out: held-out rows, or None.
        broker: of those datasets whose keys a broker keeps.
        user_code: the Python file of a module of the user's own, which its owner has read and allows. It is
            read here and runs there.
        base: folder of the base that a language model starts from; it is read there.
        insecure_test_seed: 32 bytes; order of batches, or who is sampled, in tests alone.

    Attributes:
        facts: what the worker states of its model.

    Raises:
        PolicyRefused: the machine lacks a wall, or the model is code that was not allowed.
        PlanError, InputError, IntegrityError: as `LocalWorker`.
        ProtocolError: the worker did not come up.
    """

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        start: StartWorker,
        rows: Handover,
        *,
        held_out: Handover | None = None,
        broker: BrokerAccess | None = None,
        user_code: Path | None = None,
        base: Path | None = None,
        insecure_test_seed: bytes | None = None,
    ) -> None:
        code = _code_of(plan, user_code)
        handed = [rows] if held_out is None else [rows, held_out]
        self._lenders = [_lender(plan, each, broker) for each in handed]
        self._session = Session(
            start,
            identity,
            plan.digest,
            read=[each.folder for each in handed] + ([] if base is None else [base]),
            imports=_imports(plan),
            code=code is not None,
        )
        try:
            evaluation = None if held_out is None else _place(held_out, broker)
            place = _place(rows, broker)
            question = Open(plan.to_toml(), code, place, evaluation, insecure_test_seed, _folder(base))
            self.facts = self._asked(Facts, question, _MAX_FACTS).facts
            self.facts.require_pinned(plan)
        except BaseException:
            self._session.close()
            raise

    def __repr__(self) -> str:
        return f"SandboxedWorker({self.facts!r})"

    @property
    def initial(self) -> NDArray[Any]:
        """float64[d] or float32[d], the initial model that the plan pins."""
        return self.facts.initial

    @property
    def shape(self) -> ModelFacts:
        """What is trained, as the worker states it."""
        return self.facts

    @property
    def bounded(self) -> ModelFacts:
        """Its size and float error, as the worker states them."""
        return self.facts

    @property
    def identity(self) -> PublicIdentity:
        """The worker's own, made for this process: what evidence for it vouches for."""
        return self._session.identity

    @property
    def walls(self) -> dict[str, bool | None]:
        """The walls that stand around it, by name."""
        return dict(self._session.walls)

    def train(self, params: NDArray[Any], window: Window | None = None) -> NDArray[Any]:
        """Return [d], as `LocalWorker.train`."""
        return self._vector(Train(as_bytes(params), window))

    def train_privately(
        self, params: NDArray[Any], privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[Any]:
        """Return [d], as `LocalWorker.train_privately`."""
        return self._vector(TrainPrivately(as_bytes(params), _terms(privacy), window))

    def private_sum(
        self, params: NDArray[Any], clip: float, privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[np.int64]:
        """Return int64, one for each coordinate that travels; as `LocalWorker.private_sum`."""
        question = PrivateSum(as_bytes(params), clip, _terms(privacy), window)
        answer = self._asked(Integers, question, 8 * privacy.coordinates + _ROOM, rows=True)
        if len(answer.values) != 8 * privacy.coordinates:
            raise self._wrong()
        return np.frombuffer(answer.values, "<i8").astype(np.int64)  # to be added into

    def evaluate(self, params: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return evaluation sums, or None; as `LocalWorker.evaluate`."""
        sums = self._asked(Sums, Evaluate(as_bytes(params)), _ROOM, rows=True).sums
        return None if sums is None else np.asarray(sums, dtype=np.float64)

    def close(self) -> None:
        """End the process, and with it what it knew. May be called again."""
        self._session.close()

    def _vector(self, question: Question) -> NDArray[Any]:
        dtype = np.dtype("<f4" if self.facts.single else "<f8")
        due = dtype.itemsize * self.facts.size
        answer = self._asked(Vector, question, due + _ROOM, rows=True)
        if len(answer.values) != due:
            raise self._wrong()
        values = np.frombuffer(answer.values, dtype).astype(dtype.newbyteorder("="), copy=False)
        if not np.isfinite(values.sum(dtype=np.float64)):  # a sum shows it, and needs no memory
            raise self._wrong()
        return values

    def _asked(self, kind: type[A], question: Question, most: int, *, rows: bool = False) -> A:
        answer = self._session.ask(question, most=most, lenders=self._lenders if rows else ())
        if not isinstance(answer, kind):
            raise self._wrong()
        return answer

    def _wrong(self) -> ProtocolError:
        self._session.close()
        return ProtocolError("the worker answered something else than it was asked; it was ended")


def inspected(
    plan: Plan,
    schema: Schema,
    start: StartWorker,
    user_code: Path | None,
    identity: Identity | None = None,
    *,
    base: Path | None = None,
) -> ModelFacts:
    """Return the facts of a plan's model, from a worker that is started for this and ends with it.

    Args:
        plan: the plan; what it pins is not looked at.
        schema: of the rows, public.
        start: starts the process.
        user_code: the Python file of a module of the user's own, which whoever calls this allows.
        identity: who asks; one made for this by default.
        base: folder of the base that a language model starts from.

    Raises:
        PolicyRefused, PlanError, InputError, IntegrityError, ProtocolError: as `SandboxedWorker`.
    """
    code = _code_of(plan, user_code)
    asking = identity or Identity.generate("site")
    folders = [] if base is None else [base]
    session = Session(start, asking, plan.digest, read=folders, imports=_imports(plan), code=code is not None)
    try:
        question = Inspect(plan.to_toml(), msgspec.json.encode(schema), code, _folder(base))
        answer = session.ask(question, most=_MAX_FACTS)
    finally:
        session.close()
    if not isinstance(answer, Facts):
        raise ProtocolError("the worker answered something else than it was asked")
    return answer.facts


def _code_of(plan: Plan, user_code: Path | None) -> bytes | None:
    """Return the bytes of the user's file, where the plan has such a model."""
    if plan.model.kind != "torch":
        return None
    if user_code is None:
        raise PolicyRefused(
            "the model is Python code, which would run in the worker that sees the rows",
            where=f"study {plan.study.name}",
            fix="Read the file; if you trust it, run again with --allow-user-code FILE",
        )
    return read_bytes(user_code, limit=_MAX_CODE, what="model's file")


def _imports(plan: Plan) -> Imports:
    """Return what a worker of a plan imports before its walls go up."""
    if plan.model.is_language:
        return "language"
    return "torch" if plan.model.kind == "torch" else "nothing"


def _folder(base: Path | None) -> str | None:
    return None if base is None else str(base.resolve())


def _terms(privacy: PrivacyTerms) -> Terms:
    return Terms(
        privacy.grid.bits,
        privacy.grid.clip_units,
        privacy.coordinates,
        privacy.sensitivity,
        privacy.noise_multiplier,
        privacy.share_variance,
    )


def _brokered(handed: Handover, broker: BrokerAccess | None) -> BrokerAccess | None:
    """Return the broker that keeps the key of a dataset, None where the site does."""
    return broker if broker is not None and broker.holds(handed.manifest.kek_id) else None


def _lender(plan: Plan, handed: Handover, broker: BrokerAccess | None) -> Lends:
    columns, access = len(handed.manifest.schema.columns), _brokered(handed, broker)
    if access is None:
        return KeyLender(handed.data_key, columns)
    manifest = sha256(handed.envelope).hex()
    wanted = Wanted(handed.manifest.kek_id, manifest, plan.digest.hex(), plan.study.purpose)
    return KeyCarrier(access, wanted, columns)


def _place(handed: Handover, broker: BrokerAccess | None = None) -> Place:
    access = _brokered(handed, broker)
    return Place(
        str(handed.folder.resolve()),
        handed.envelope,
        None if access is None else access.identity.to_json(),
    )
