"""The worker of a language model: it tokenises a site's rows, trains what the plan trains, evaluates.

What it is given and gives back is one vector of float32, the parameters that the plan trains (for LoRA the
adapters); the base stays in the worker, and so do texts and tokens. In this order:

1. the columns that the plan names are texts of the schema;
2. the base's files are read once and have the digests that the plan pins, or there is no worker;
3. the start that the seed gives is the one that the plan pins;
4. when the first model arrives, and not before, the base's weights are loaded, the rows are opened, and every
   row is tokenised, or refused with a number of rows and never a value (under privacy none is: a row that
   does not fit is cut, or contributes nothing). Tokens are kept until `close`, in memory alone. Under
   privacy made-up rows of the whole context are passed through first: where memory ends, it ends for them,
   and not for somebody's long row.

It may run behind walls or in a site's own process, on whatever device the learner finds. What goes wrong says
whose site it is: the memory that a pass takes, another tokenizer, a row that is too long.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import CloisterError, InputError, PlanError, StorageError
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Window
from cloister.learning.language.texts import TextMap
from cloister.learning.learner import Vector
from cloister.learning.modelfiles import PlainFolder
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import RowSums, local_steps
from cloister.learning.sections import LanguageSection
from cloister.learning.start import check_unit
from cloister.learning.units import unit_rows
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner
    from cloister.learning.torch.language.private import LanguagePrivate

__all__ = ["LanguageWorker", "base_files", "facts_of_base", "plan_texts", "preload"]

OpenRows = Callable[[], pa.Table]

_BLOCK_ROWS: Final = 64
"""Rows of a block of clipped gradients at most."""


def preload() -> None:
    """Import what a language model's worker needs, where files of libraries can still be read; it takes
    seconds. Raises InputError where the extra is not installed."""
    try:
        from cloister.learning.torch.language.pretrained import quiet_transformers

        quiet_transformers()
        import cloister.learning.torch.language.learner
        import cloister.learning.torch.language.private  # noqa: F401
    except ImportError as error:
        raise _extra(error) from None


def plan_texts(plan: Plan, schema: Schema) -> tuple[LanguageSection, TextMap]:
    """Return what a plan of a language model says of it, and of its texts: step 1.

    Raises:
        PlanError: the plan is of another model, or schema and plan do not fit.
    """
    if plan.language is None:
        raise PlanError("the plan names no base model", where="[language]", fix="Use another kind of worker")
    check_unit(plan, schema)
    return plan.language, TextMap.build(schema, plan.data, plan.model, plan.language)


def base_files(plan: Plan, base: Path | None) -> PlainFolder:
    """Return the files of the base that a plan starts from: step 2.

    Raises:
        InputError: none is given, or the folder is none of a model.
    """
    if base is None:
        raise InputError(
            f"the plan trains a {plan.model.kind}, and the base that it starts from is not given",
            where=f"study {plan.study.name}",
            fix="Give the folder of the base model with --base DIR",
        )
    return PlainFolder(base)


def facts_of_base(plan: Plan, schema: Schema, base: Path | None, scratch: Path | None = None) -> ModelFacts:
    """Return the facts of a plan's language model, without its weights in memory.

    Args:
        plan: the plan; what it pins of its start is not looked at.
        schema: of the rows.
        base: folder of the base.
        scratch: a folder in which the tokenizer's files lie for a moment; a temporary one by default.

    Raises:
        PlanError, InputError, IntegrityError: plan, schema and base do not fit together.
    """
    plan_texts(plan, schema)
    with _scratch(scratch) as place, contextlib.closing(base_files(plan, base)) as files:
        return _facts(plan, files, place)


@dataclass(frozen=True)
class _Rows:
    """A site's rows as tokens: those to train on, which of them belong to one unit, and those held out."""

    train: Examples
    units: list[NDArray[np.int64]]
    held_out: Examples | None


@dataclass(frozen=True)
class _Clipping:
    """What clips single rows in one window, and what of it depends on the rows alone."""

    model: LanguagePrivate
    sums: RowSums


class LanguageWorker:
    """Trains one site's texts; a `Worker`.

    Args:
        plan: the study's plan, whose model is a language model.
        schema: the schema of the rows; one with another digest than the plan's is refused.
        rows: opens the training rows; called once, when the first model arrives.
        base: folder of the base.
        scratch: a folder for what lies there for a moment, in memory; a temporary one by default.
        evaluation: opens held-out rows, or None where the site has none. They are opened where the plan has
            public rows: elsewhere nothing of them leaves.
        site: whose rows they are, for errors.
        device: "cpu", "cuda", or "auto" for what is there.
        ranks: processes of this machine that share rows out; not behind walls.
        shard: whether each of them holds only a part of the base.
        insecure_test_random: order of batches, or who is sampled; from the operating system unless a test
            says otherwise.

    Attributes:
        facts: what hub and site need to know of the model.

    Raises:
        PlanError, InputError, IntegrityError: plan, schema and base do not fit together, or the pinned start
            is not the one that the seed gives.
    """

    def __init__(
        self,
        plan: Plan,
        schema: Schema,
        rows: OpenRows,
        base: Path | None,
        *,
        scratch: Path | None = None,
        evaluation: OpenRows | None = None,
        site: str = "",
        device: str = "auto",
        ranks: int = 1,
        shard: bool = False,
        insecure_test_random: StreamRandom | None = None,
    ) -> None:
        self._plan, self._site, self._device, self._scratch = plan, site, device, scratch
        self._open_rows, self._open_evaluation = rows, evaluation
        self._random = insecure_test_random
        self._base, self._ranks, self._shard = base, ranks, shard
        self._ranked_until = contextlib.ExitStack()
        self._learner: LanguageLearner | None = None
        self._rows: _Rows | None = None
        self._private: dict[Window, _Clipping] = {}
        with self._named():
            self._language, self._texts = plan_texts(plan, schema)
            self._files = base_files(plan, base)
            try:
                with _scratch(scratch) as place:
                    self.facts = _facts(plan, self._files, place)
                self.facts.require_pinned(plan)
            except BaseException:
                self._files.close()
                raise

    def __repr__(self) -> str:
        return f"LanguageWorker({'rows open' if self._rows else 'rows closed'})"

    @property
    def initial(self) -> Vector:
        """float32[d], the initial adapter (or model) that the plan pins."""
        return self.facts.initial

    @property
    def shape(self) -> ModelFacts:
        """What is trained."""
        return self.facts

    @property
    def bounded(self) -> ModelFacts:
        """Its size and float error."""
        return self.facts

    def close(self) -> None:
        """Forget rows and weights, and close the base's files."""
        self._rows = self._learner = None
        self._private.clear()
        self._ranked_until.close()
        self._files.close()

    def train(self, params: Vector, window: Window | None = None) -> Vector:
        """Return float32[d]: what local training makes of `params`; only the window differs."""
        with self._named():
            rows = self._open()
            return self._loaded().train(
                params,
                rows.train,
                self._plan.training,
                window or self._whole,
                insecure_test_random=self._random,
            )

    def train_privately(self, params: Vector, privacy: PrivacyTerms, window: Window | None = None) -> Vector:
        """Return float32[d]: what local steps make of `params`, each of which carries all of its noise."""
        with self._named():
            start, stop = window = window or self.facts.windows[0]
            section, trained = privacy.section, np.array(params, dtype=np.float32)
            each = self._clipping(privacy, window)
            each.model.hold(params)
            trained[start:stop] = local_steps(
                each.model,
                params[start:stop].astype(np.float64),
                *each.model.rows,
                training=self._plan.training,
                clip=section.clip,
                grid=privacy.grid,
                rate=section.rate,
                microbatch=section.microbatch,
                noise=privacy.noise(),
                divisor=self._plan.training.batch,
                random=self._random or StreamRandom.system(),
                sums=each.sums,
            )
            return trained

    def private_sum(
        self, params: Vector, clip: float, privacy: PrivacyTerms, window: Window | None = None
    ) -> NDArray[np.int64]:
        """Return the window's clipped and rounded sum, not yet noised; as `Worker.private_sum`."""
        with self._named():
            start, stop = window = window or self.facts.windows[0]
            random = self._random or StreamRandom.system()
            if privacy.section.by_record:
                each = self._clipping(privacy, window)
                each.model.hold(params)
                part = params[start:stop].astype(np.float64)
                found = each.sums.integers(part, clip=clip, grid=privacy.grid, random=random)
            else:
                found = self._of_units(params, clip, privacy, window, random)
            return _padded(found, privacy)

    def _of_units(
        self, params: Vector, clip: float, privacy: PrivacyTerms, window: Window, random: StreamRandom
    ) -> NDArray[np.int64]:
        """Return the clipped and rounded sum of what units make of the window, each by itself."""
        from cloister.learning.torch.language.units import language_unit_sum

        self._rehearse(params, window)
        rows, section = self._open(), privacy.section
        return language_unit_sum(
            self._loaded(),
            params,
            rows.train,
            rows.units,
            window,
            training=self._plan.training,
            clip=clip,
            grid=privacy.grid,
            rate=section.rate,
            random=random,
            norm_bit=section.adaptive_quantile is not None,
        )

    def evaluate(self, params: Vector) -> NDArray[np.float64] | None:
        """Return the addable evaluation sums of `params` on the held-out rows, or None where there are
        none."""
        with self._named():
            held_out = self._open().held_out
            return None if held_out is None else self._loaded().evaluation_sums(params, held_out)

    def _rehearse(self, params: Vector, window: Window) -> None:
        """Take one step on the longest rows there may be, before there are any."""
        if self._rows is None:
            training = msgspec.structs.replace(self._plan.training, local_steps=1)
            with contextlib.suppress(PlanError):  # it may diverge, and is thrown away
                self._loaded().train(params, self._longest(training.batch), training, window)

    def _longest(self, count: int) -> Examples:
        from cloister.learning.torch.language.examples import longest_rows

        return longest_rows(count, self._language.context)

    def _clipping(self, privacy: PrivacyTerms, window: Window) -> _Clipping:
        """Return what clips single rows in a window, made once."""
        if window not in self._private:
            from cloister.learning.torch.language.private import LanguagePrivate

            model = LanguagePrivate(self._loaded(), self._longest(_BLOCK_ROWS), window)
            model.rehearse()
            model.take(self._open().train)
            section = privacy.section
            sums = RowSums(model, [model.rows], rate=section.rate, microbatch=section.microbatch)
            self._private[window] = _Clipping(model, sums)
        return self._private[window]

    @property
    def _whole(self) -> Window:
        return 0, self.facts.size

    def _loaded(self) -> LanguageLearner:
        """Return the learner, its weights loaded: step 4."""
        if self._learner is None:
            from cloister.learning.torch.language.learner import LanguageLearner

            with _scratch(self._scratch) as place:
                self._learner = (
                    self._ranked()
                    if self._ranks > 1
                    else LanguageLearner(
                        self._plan.model, self._language, self._files, scratch=place, device=self._device
                    )
                )
        return self._learner

    def _ranked(self) -> LanguageLearner:
        """Return a learner on several processes."""
        from cloister.learning.torch.language.ranks import RankedLearner

        assert self._base is not None  # noqa: S101  # base_files has looked
        place = self._ranked_until.enter_context(_scratch(self._scratch))
        learner = RankedLearner(
            self._plan.model,
            self._language,
            self._base,
            scratch=place,
            ranks=self._ranks,
            device=self._device,
            shard=self._shard,
        )
        self._ranked_until.callback(learner.close)
        return learner

    def _open(self) -> _Rows:
        """Return the rows as tokens: step 4."""
        if self._rows is None:
            self._loaded()  # a site without the memory for the base finds out before a row is read
            table = self._open_rows()
            privacy, units = self._plan.privacy, []
            if privacy is not None and not privacy.by_record:
                units = unit_rows(table.column(privacy.unit), privacy.unit)
            held_out = None
            # where nothing of them may leave, neither may a refusal
            if self._open_evaluation is not None and self._plan.data.public_rows:
                held_out = self._encoded(self._open_evaluation())
            # a refusal would tell of a row what no ledger is charged for
            train = self._encoded(table, forgiving=privacy is not None)
            self._rows = _Rows(train, units, held_out)
        return self._rows

    def _encoded(self, table: pa.Table, *, forgiving: bool = False) -> Examples:
        kind = self._plan.model.kind
        assert kind == "causal-lm" or kind == "text-classifier"  # noqa: S101  # plan_texts has looked
        rows = self._texts.rows(table, forgiving=forgiving)
        learner = self._loaded()
        examples = learner.words.encode(rows, self._language, kind, site=self._site, forgiving=forgiving)
        # the base has no vector for such a token, and the learner would say so
        return examples.emptied(examples.beyond(learner.vocabulary)) if forgiving else examples

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say of an error whose site it is."""
        try:
            yield
        except CloisterError as error:
            if self._site and self._site not in f"{error.what} {error.where}":
                error.where = f"{self._site}, {error.where}" if error.where else self._site
            raise
        except MemoryError:
            raise StorageError(
                "there is not enough memory for the base and these rows",
                where=self._site,
                fix="Free some, or have a smaller context, fewer rows_per_pass or checkpointing in the plan",
            ) from None


def _padded(integers: NDArray[np.int64], privacy: PrivacyTerms) -> NDArray[np.int64]:
    """Return a window's sum as it travels: zeros behind a shorter window, the bit of a clip at the end."""
    bit = privacy.section.adaptive_quantile is not None
    whole = np.zeros(privacy.coordinates, dtype=np.int64)
    size = len(integers) - bit
    whole[:size] = integers[:size]
    if bit:
        whole[-1] = integers[-1]
    return whole


def _facts(plan: Plan, files: PlainFolder, scratch: Path) -> ModelFacts:
    try:
        from cloister.learning.torch.language.facts import language_facts
    except ImportError as error:
        raise _extra(error) from None
    return language_facts(plan, files, scratch)


@contextlib.contextmanager
def _scratch(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="cloister-base-") as folder:
        yield Path(folder)


def _extra(error: ImportError) -> InputError:
    """Say what is missing, or, where nothing is, that it cannot be loaded: so it ends without memory."""
    if not isinstance(error, ModuleNotFoundError):
        return InputError(
            "torch and transformers are installed, and cannot be loaded",
            fix="Free memory, or install cloister[llm] again",
        )
    return InputError("language models need torch and transformers", fix="pip install 'cloister[llm]'")
