"""The part of a site that touches its rows: features, local training, evaluation.

It gets the global model and gives back an update, or a sum of clipped gradients as integers; it knows no
key, no mask, no network, and no noise that others rely on. It opens the encrypted dataset when the first
model arrives, not before, and what it computes from rows leaves it only so, or as evaluation sums where the
plan declares the rows public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import PlanError
from cloister.learning import ClientRows, Model, Plan, evaluation_sums, plan_model, start_of, train
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Window
from cloister.learning.learner import Shape, Vector
from cloister.learning.privacy import PrivacyTerms, private_model
from cloister.learning.private import Bounded, RowSums, local_steps, unit_sum
from cloister.learning.units import unit_rows
from cloister.runtime.languagebase import facts_of_base
from cloister.runtime.languagerows import OpenRows
from cloister.runtime.languageworker import LanguageWorker
from cloister.vault import Schema

__all__ = ["LocalWorker", "Worker", "columns_of", "make_worker", "model_facts"]


@dataclass(frozen=True)
class _Rows:
    """A site's rows as numbers: those to train on, one client for each unit, and those held out."""

    train: ClientRows
    held_out: tuple[NDArray[np.float64], NDArray[np.float64]] | None


class Worker(Protocol):
    """What a site asks of the part that touches its rows, wherever that runs.

    A window is what a round moves of the vector, elements [start, stop); None is all of it, which is all that
    a model with one window is asked for.
    """

    @property
    def initial(self) -> Vector:
        """float64[d] or float32[d], the initial model that the plan pins."""

    @property
    def facts(self) -> ModelFacts:
        """What hub and site need to know of the model."""

    @property
    def shape(self) -> Shape:
        """What is trained, as far as one sees it from outside."""

    @property
    def bounded(self) -> Bounded:
        """Its size and float error, on which a claim of privacy rests."""

    def train(self, params: Vector, window: Window | None = None) -> Vector:
        """Return [d]: what local training makes of the global model `params`; only the window differs."""

    def train_privately(self, params: Vector, privacy: PrivacyTerms, window: Window | None = None) -> Vector:
        """Return [d]: what local steps make of `params`, each of which carries all of its noise; only the
        window differs."""

    def private_sum(
        self, params: Vector, clip: float, privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[np.int64]:
        """Return the window's clipped and rounded sum, not yet noised: int64 of as many elements as travel in
        a round (`width_of`), zeros behind a shorter window; one more under an adaptive clip."""

    def evaluate(self, params: Vector) -> NDArray[np.float64] | None:
        """Return the addable evaluation sums of `params`, or None where nothing is held out."""

    def close(self) -> None:
        """Forget the rows; nothing is asked any more. May be called again."""


def columns_of(plan: Plan) -> list[str]:
    """Return the columns that a plan uses: features, label, and the unit of privacy where it has one."""
    columns = [*plan.data.features, plan.data.label]
    if plan.privacy is not None and not plan.privacy.by_record:
        columns.append(plan.privacy.unit)
    return columns


def model_facts(
    plan: Plan,
    schema: Schema,
    *,
    user_code: Path | None = None,
    base: Path | None = None,
    scratch: Path | None = None,
) -> ModelFacts:
    """Return the facts of a plan's model, from what is read and run in this process.

    Args:
        plan: the plan; what it pins of its start is not looked at.
        schema: of the rows.
        user_code: the Python file of a module of the user's own, whose running is allowed.
        base: folder of the base that a language model starts from; its weights are not loaded.
        scratch: a folder for what lies there for a moment; a temporary one by default.

    Raises:
        PolicyRefused: the model is code that was not allowed.
        PlanError, InputError, IntegrityError: plan, schema, file and base do not fit together.
    """
    if plan.model.is_language:
        return facts_of_base(plan, schema, base, scratch)
    return ModelFacts.of(plan, plan_model(plan, schema, user_code=user_code)[1])


def make_worker(
    plan: Plan,
    schema: Schema,
    rows: OpenRows,
    *,
    user_code: Path | None = None,
    base: Path | None = None,
    scratch: Path | None = None,
    evaluation: OpenRows | None = None,
    site: str = "",
    ranks: int = 1,
    shard: bool = False,
    device: str = "auto",
    insecure_test_random: StreamRandom | None = None,
) -> Worker:
    """Return the worker that a plan's kind of model needs, in this process; arguments and errors as
    `LocalWorker` and `LanguageWorker`."""
    if not plan.model.is_language:
        return LocalWorker(
            plan,
            schema,
            rows,
            user_code=user_code,
            evaluation=evaluation,
            insecure_test_random=insecure_test_random,
        )
    return LanguageWorker(
        plan,
        schema,
        rows,
        base,
        scratch=scratch,
        evaluation=evaluation,
        site=site,
        ranks=ranks,
        shard=shard,
        device=device,
        insecure_test_random=insecure_test_random,
    )


class LocalWorker:
    """Trains one site's rows of a table, in this process.

    Args:
        plan: the study's plan.
        schema: the schema of the rows; one with another digest than the plan's is refused.
        rows: opens the training rows; called once, when the first model arrives.
        user_code: the Python file of a module of the user's own, which its owner has read and allows.
        evaluation: opens held-out rows, or None where the site has none.
        insecure_test_random: order of batches, or who is sampled; from the operating system unless a test
            says otherwise.

    Attributes:
        model: what is trained.

    Raises:
        PlanError: the schema is not the plan's, or the pinned initial model is not the one its seed gives.
    """

    def __init__(
        self,
        plan: Plan,
        schema: Schema,
        rows: OpenRows,
        *,
        user_code: Path | None = None,
        evaluation: OpenRows | None = None,
        insecure_test_random: StreamRandom | None = None,
    ) -> None:
        self._plan = plan
        self._features, self.model = plan_model(plan, schema, user_code=user_code)
        self._initial = start_of(plan, self.model)
        self._open_rows = rows
        self._open_evaluation = evaluation
        self._random = insecure_test_random
        self._opened: _Rows | None = None
        self._sums: RowSums | None = None

    def __repr__(self) -> str:
        return f"LocalWorker({'rows open' if self._opened else 'rows closed'})"

    @property
    def initial(self) -> NDArray[np.float64]:
        """float64[d], the initial model the plan pins, drawn here from its public seed."""
        return self._initial

    @property
    def facts(self) -> ModelFacts:
        """What hub and site need to know of the model."""
        return ModelFacts.of(self._plan, self.model)

    @property
    def shape(self) -> Shape:
        """What is trained."""
        return self.model

    @property
    def bounded(self) -> Bounded:
        """Its size and float error."""
        return private_model(self.model)

    def close(self) -> None:
        """Forget the rows."""
        self._opened = self._sums = None

    def train(self, params: Vector, window: Window | None = None) -> NDArray[np.float64]:
        """Return float64[d]: what local training on the site's rows makes of the global model `params`."""
        rows, training = self._open().train, self._plan.training
        if isinstance(self.model, Model):
            trained: NDArray[np.float64] = train(
                self.model, params, rows, training, insecure_test_random=self._random
            )[0]
            return trained
        from cloister.learning.torch import plain_sgd

        once = msgspec.structs.replace(training, rounds=1, average_last=0)
        return plain_sgd(self.model, params, rows.X, rows.y, once, insecure_test_random=self._random)

    def train_privately(
        self, params: Vector, privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[np.float64]:
        """Return float64[d]: what local steps make of `params`, each of which carries all of its noise."""
        rows, section = self._open().train, privacy.section
        return local_steps(
            private_model(self.model),
            params,
            rows.X,
            rows.y,
            training=self._plan.training,
            clip=section.clip,
            grid=privacy.grid,
            rate=section.rate,
            microbatch=section.microbatch,
            noise=privacy.noise(),
            divisor=self._plan.training.batch,
            random=self._random or StreamRandom.system(),
            sums=self._row_sums(privacy),
        )

    def private_sum(
        self, params: Vector, clip: float, privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[np.int64]:
        """Return int64[d], or int64[d + 1] under an adaptive clip: clipped and rounded, not yet noised."""
        rows, section = self._open(), privacy.section
        random = self._random or StreamRandom.system()
        if not section.by_record:
            if not isinstance(self.model, Model):
                raise PlanError("modules are trained by records alone", where="[privacy] unit")
            return unit_sum(
                self.model,
                params,
                rows.train,
                training=self._plan.training,
                clip=clip,
                grid=privacy.grid,
                rate=section.rate,
                random=random,
                norm_bit=section.adaptive_quantile is not None,
            )
        return self._row_sums(privacy).integers(params, clip=clip, grid=privacy.grid, random=random)

    def _row_sums(self, privacy: PrivacyTerms) -> RowSums:
        """Return what depends on the rows alone, computed once."""
        if self._sums is None:
            rows, section = self._open().train, privacy.section
            self._sums = RowSums(
                private_model(self.model),
                [(rows.X, rows.y)],
                rate=section.rate,
                microbatch=section.microbatch,
            )
        return self._sums

    def evaluate(self, params: Vector) -> NDArray[np.float64] | None:
        """Return the addable evaluation sums of `params` on the held-out rows, or None where there are
        none."""
        held_out = self._open().held_out
        return (
            None
            if held_out is None
            else evaluation_sums(self.model, params, *held_out, unit=self._features.label_unit)
        )

    def _open(self) -> _Rows:
        if self._opened is None:
            table = self._open_rows()
            features = self._features.fit(table)
            held_out = None if self._open_evaluation is None else features.transform(self._open_evaluation())
            X, y = features.transform(table)
            privacy = self._plan.privacy
            parts = [(X, y)]
            if privacy is not None and not privacy.by_record:
                units = unit_rows(table.column(privacy.unit), privacy.unit)
                parts = [(X[some], y[some]) for some in units]
            self._opened = _Rows(ClientRows.stack(parts), held_out)
        return self._opened
