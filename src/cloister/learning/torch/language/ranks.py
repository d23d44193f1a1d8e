"""One site on several processes of one machine: a learner that shares rows out, and the base where asked to.

Every process holds all adapters and the head, takes its share of each step's rows, and adds the gradients up
with the others' (`team`); so all move alike. The base lies in each process as a whole, or with `shard` in
parts that are put together layer by layer as they are needed (FSDP2). On GPUs each process has one.

Order: the processes start and check the base; when all are ready they connect; then each loads. What the
first process is asked, it tells the others, and all do it. One that fails ends all of them: the learner is of
no use then, and says so. All end with `close`, and with this process whatever it dies of.

Not behind walls: the processes reach each other over the loopback interface, where sums of gradients and
parts of the public base go; rows go through pipes (`rankwire`). Nothing here is for differential privacy by
rows: `LanguagePrivate` computes in one process, with a whole base.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from cloister.crypto import StreamRandom
from cloister.errors import CloisterError, InputError, PlanError, StorageError
from cloister.learning.heads import Array
from cloister.learning.language.layout import Window
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.sections import LanguageSection, ModelSection, TrainingSection
from cloister.learning.torch.language.build import device_of
from cloister.learning.torch.language.examples import Examples
from cloister.learning.torch.language.learner import LanguageLearner
from cloister.learning.torch.language.rankprocess import join, sharded
from cloister.learning.torch.language.rankwire import Call, Opening, Report, arrays_of, send
from cloister.learning.torch.language.vector import Single

__all__ = ["RankedLearner"]

_START_SECONDS: Final = 300.0
_END_SECONDS: Final = 5.0
_KEPT: Final = 4
"""Sets of rows that the processes keep: to train on, to evaluate on."""

_Floats = NDArray[np.floating[Any]]


class RankedLearner(LanguageLearner):
    """A `LanguageLearner` on several processes; only one at a time in a process.

    Args:
        section: `[model]`.
        language: `[language]`.
        base: folder of the base.
        scratch: a folder, best in memory.
        ranks: processes, this one counted; at least 2.
        device: "cpu", "cuda", or "auto".
        shard: whether each holds only its part of the base between passes.

    Raises:
        InputError: this cannot be shared out so, or a process does not start.
        PlanError, IntegrityError: as `LanguageLearner`.
    """

    def __init__(
        self,
        section: ModelSection,
        language: LanguageSection,
        base: Path,
        *,
        scratch: Path,
        ranks: int,
        device: str = "auto",
        shard: bool = False,
    ) -> None:
        if ranks < 2:
            raise InputError("one process shares nothing out", fix="Give 2 ranks or more")
        if shard and (language.method == "full" or language.quantised != "no"):
            raise InputError(
                "only a frozen base that is not quantised can lie in parts",
                where="[language] method" if language.method == "full" else "[language] quantised",
                fix="Start without shard: every process holds the whole base",
            )
        self.sharded = shard
        self._sent: list[Examples] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        place = device_of(device)
        self._store = tempfile.TemporaryDirectory(prefix="ranks-", dir=scratch)
        opening = Opening(
            rank=0,
            size=ranks,
            threads=torch.get_num_threads(),
            device=place.type,
            shard=shard,
            base=str(base.absolute()),
            scratch=str(scratch.absolute()),
            store=str(Path(self._store.name) / "store"),
            model=section,
            language=language,
        )
        try:
            for rank in range(1, ranks):
                self._launch(msgspec.structs.replace(opening, rank=rank))
            until = time.monotonic() + _START_SECONDS
            for process in self._processes:
                self._require_ready(process, until)
            with self._watched(), contextlib.closing(PlainFolder(base)) as files:
                super().__init__(
                    section,
                    language,
                    files,
                    scratch=scratch,
                    device=place.type,
                    team=join(opening, place),
                    spread=(lambda built: sharded(built, place)) if shard else None,
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes but this one; may be called again."""
        with contextlib.suppress(Exception):
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()
        self._processes.clear()
        self._store.cleanup()

    def steps(
        self,
        params: _Floats,
        examples: Examples,
        training: TrainingSection,
        window: Window,
        order: NDArray[np.int64],
    ) -> Single:
        """As `LanguageLearner.steps`."""
        self._vector.select(window)
        call = Call(method="steps", training=training, window=window)
        with self._together(call, params, examples, [order]):
            return super().steps(params, examples, training, window, order)

    def losses(self, params: _Floats, examples: Examples) -> Array:
        """As `LanguageLearner.losses`."""
        with self._together(Call(method="losses"), params, examples):
            return super().losses(params, examples)

    def predict(self, params: _Floats, examples: Examples) -> Array:
        """As `LanguageLearner.predict`."""
        with self._together(Call(method="predict"), params, examples):
            return super().predict(params, examples)

    def evaluation_sums(self, params: _Floats, examples: Examples) -> Array:
        """As `LanguageLearner.evaluation_sums`."""
        with self._together(Call(method="evaluation_sums"), params, examples):
            return super().evaluation_sums(params, examples)

    def generate(
        self,
        params: _Floats,
        prompts: Sequence[Sequence[int]],
        most: int,
        *,
        temperature: float = 0.0,
        insecure_test_random: StreamRandom | None = None,
    ) -> list[list[int]]:
        """As `LanguageLearner.generate`; every process answers every prompt."""
        key = (insecure_test_random or StreamRandom.system()).words(4).astype("<u8").tobytes()
        listed = [list(prompt) for prompt in prompts]
        call = Call(method="generate", prompts=listed, most=most, temperature=temperature, key=key.hex())
        with self._together(call, params, None):
            return super().generate(
                params, listed, most, temperature=temperature, insecure_test_random=StreamRandom(key)
            )

    @contextlib.contextmanager
    def _together(
        self, call: Call, params: _Floats, examples: Examples | None, arrays: Sequence[NDArray[Any]] = ()
    ) -> Iterator[None]:
        """Let the other processes do what this one does within the `with`."""
        if not self._processes:
            raise InputError("this site's processes have ended", fix="Start the site's work again")
        self._vector.check(params)
        before: list[NDArray[Any]] = []
        if examples is not None:
            if self.classes:  # found by all or by none
                self.passes.labels(examples, np.arange(len(examples)))
            known = [number for number, each in enumerate(self._sent) if each is examples]
            if not known:
                if len(self._sent) == _KEPT:
                    self._sent.clear()
                before = arrays_of(examples)
                self._sent.append(examples)
            number = known[0] if known else len(self._sent) - 1
            call = msgspec.structs.replace(call, rows=number, fresh=bool(before), pad=examples.pad)
        with self._watched():
            for process in self._processes:
                assert process.stdin is not None  # noqa: S101  # it was opened as a pipe
                send(process.stdin, call, [*before, params, *arrays])
            yield

    def _launch(self, opening: Opening) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloister.learning.torch.language.rankprocess"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(process)
        assert process.stdin is not None  # noqa: S101  # it was opened as a pipe
        with contextlib.suppress(OSError):  # it has ended, and says why
            send(process.stdin, opening)

    def _require_ready(self, process: subprocess.Popen[bytes], until: float) -> None:
        report = _report(process, max(0.0, until - time.monotonic()))
        if report is None or report.what:
            raise _ended(report)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End all where one fails, and say why; what fails for all alike ends nothing."""
        try:
            yield
        except (PlanError, InputError):
            raise
        except (RuntimeError, OSError) as error:
            reports = [_report(process, 1.0) for process in self._processes]
            self.close()
            raise _ended(next((each for each in reports if each is not None), None)) from error
        except BaseException:
            self.close()
            raise


def _report(process: subprocess.Popen[bytes], seconds: float) -> Report | None:
    """Return what a process says within so many seconds, if anything."""
    stream = process.stdout
    if stream is None or not select.select([stream], [], [], seconds)[0]:
        return None
    line = stream.readline()
    return msgspec.json.decode(line, type=Report) if line else None


def _ended(report: Report | None) -> CloisterError:
    if report is None or not report.what:
        return StorageError(
            "one of this site's processes has ended",
            fix="Start the work again; if it ends again, lower [language] rows_per_pass, or start fewer",
        )
    return StorageError(
        f"one of this site's processes has ended: {report.what}", where=report.where, fix=report.fix
    )
