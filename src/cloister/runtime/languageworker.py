"""The worker of a language model: it trains what the plan trains on a site's rows, and evaluates.

What it is given and gives back is one vector of float32, the parameters that the plan trains (for LoRA the
adapters); the base stays in the worker, and so do texts and tokens. In this order:

1. the columns that the plan names are texts of the schema (`languagebase`);
2. the base's files are read once and have the digests that the plan pins, or there is no worker;
3. the start that the seed gives is the one that the plan pins;
4. when the first model arrives, and not before, the base's weights are loaded, the rows are opened, and
   every row is tokenised or refused (`languagerows`). Tokens are kept until `close`, in memory alone. Under
   privacy made-up rows of the whole context are passed through first: where memory ends, it ends for them,
   and not for somebody's long row.

It may run behind walls or in a site's own process, on whatever device the learner finds. What goes wrong says
whose site it is: the memory that a pass takes, another tokenizer, a row that is too long.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import CloisterError, PlanError, StorageError
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.learning.language.layout import Window
from cloister.learning.learner import Vector
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.private import RowSums, local_steps
from cloister.learning.private.ladder import BLOCK_ROWS
from cloister.runtime.languagebase import (
    base_files,
    facts_of_base,
    facts_of_files,
    plan_texts,
    preload,
    require_device,
    scratch_folder,
)
from cloister.runtime.languagerows import OpenRows, TokenRows, tokenised
from cloister.vault import Schema

if TYPE_CHECKING:
    from cloister.learning.torch.language.examples import Examples
    from cloister.learning.torch.language.learner import LanguageLearner
    from cloister.learning.torch.language.private import LanguagePrivate

__all__ = ["LanguageWorker", "base_files", "facts_of_base", "plan_texts", "preload"]


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
        self._rows: TokenRows | None = None
        self._private: dict[Window, _Clipping] = {}
        with self._named():
            self._language, self._texts = plan_texts(plan, schema)
            self._files = base_files(plan, base)
            try:
                with scratch_folder(scratch) as place:
                    self.facts = facts_of_files(plan, self._files, place)
                self.facts.require_pinned(plan)
                require_device(device)
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
            return privacy.as_sent(found)

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

            model = LanguagePrivate(self._loaded(), self._longest(BLOCK_ROWS), window)
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

            with scratch_folder(self._scratch) as place:
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
        place = self._ranked_until.enter_context(scratch_folder(self._scratch))
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

    def _open(self) -> TokenRows:
        """Return the rows as tokens: step 4."""
        if self._rows is None:
            learner = self._loaded()  # a site without the memory for the base finds out before a row is read
            self._rows = tokenised(
                self._plan,
                self._texts,
                learner,
                rows=self._open_rows,
                evaluation=self._open_evaluation,
                site=self._site,
            )
        return self._rows

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say of an error whose site it is."""
        try:
            yield
        except CloisterError as error:
            named = rf"rows? of {re.escape(self._site)} "  # `words` says whose rows they are
            if self._site and error.where != self._site and not re.search(named, error.what):
                error.where = f"{self._site}, {error.where}" if error.where else self._site
            raise
        except MemoryError:
            raise StorageError(
                "there is not enough memory for the base and these rows",
                where=self._site,
                fix="Free some, or have a smaller context, fewer rows_per_pass or checkpointing in the plan",
            ) from None
