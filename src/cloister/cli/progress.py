"""How a run goes, on stderr: the seven stages live on a terminal, one plain line a stage elsewhere.

What comes after the seventh stage is the writing of the report, and shown as such.

Nothing here changes what runs. Texts that come from outside (notes, names) are shown as they are and never
read as Rich markup.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TextIO

from cloister.report import STAGES, Language, StageName, say
from cloister.report.texts import say_does
from cloister.report.words import percent, seconds_in_words

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["StageProgress"]

_State = Literal["waiting", "running", "done", "failed"]
_MARKS: Final[dict[_State, tuple[str, str]]] = {
    "waiting": ("·", "dim"),
    "running": ("", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
}
_BAR: Final = 24


@dataclass
class _Line:
    """What is shown of one stage."""

    state: _State = "waiting"
    began: float = 0.0
    seconds: float = 0.0


class StageProgress:
    """The `Progress` of a command; use it as a context around the run.

    Args:
        lang: language of the stages' names.
        plain: never draw live (for `--json`); without it, live where `stream` is a terminal.
        private: the run claims differential privacy; what is said of some stages follows from it.
        stream: where to; stderr.
    """

    def __init__(
        self,
        *,
        lang: Language = "en",
        plain: bool = False,
        private: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        from rich.console import Console
        from rich.spinner import Spinner

        self._lang: Language = lang
        self._private = private
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, emoji=False)
        self._live = not plain and self._console.is_terminal
        self._lines = {name: _Line() for name in STAGES}
        self._report = _Line()
        self._round: tuple[int, int, float | None] | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StageProgress:
        if self._live:
            from rich.live import Live

            self._stack.enter_context(
                Live(
                    console=self._console, get_renderable=self._render, refresh_per_second=10, transient=False
                )
            )
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        report = self._report
        if report.state == "running":
            report.seconds = time.monotonic() - report.began
            report.state = "done" if error is None else "failed"
            if not self._live and error is None:
                self._print(f"      {say(self._lang, 'report')} {seconds_in_words(report.seconds)}")
        self._stack.close()

    @contextlib.contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Show the stage as running, then as done with its time, or as failed."""
        line = self._lines[name]
        line.state, line.began = "running", time.monotonic()
        try:
            yield
        except BaseException:
            line.state = "failed"
            raise
        else:
            line.state = "done"
        finally:
            line.seconds = time.monotonic() - line.began
            self._say_stage(name, line)
        if name == STAGES[-1]:
            self._report.state, self._report.began = "running", time.monotonic()

    def round(self, number: int, total: int, metric: float | None) -> None:
        """Show that a round of training is done; plainly, at each quarter of the way alone."""
        self._round = (number, total, metric)
        if not self._live and (number * 4) // total > ((number - 1) * 4) // total:
            self._print(f"      {self._round_in_words()}")

    def note(self, text: str) -> None:
        """Show one thing that a reader should know."""
        self._print(f"      {text}")

    def _say_stage(self, name: StageName, line: _Line) -> None:
        if not self._live:
            mark, _ = _MARKS[line.state]
            place = f"{STAGES.index(name) + 1}/{len(STAGES)}"
            self._print(f"{mark} {place} {say(self._lang, f'stage_{name}')} {seconds_in_words(line.seconds)}")

    def _print(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text), soft_wrap=True)

    def _round_in_words(self) -> str:
        if self._round is None:
            return ""
        number, total, metric = self._round
        known = (
            f", {say(self._lang, 'axis_accuracy')} {percent(metric, self._lang)}"
            if metric is not None
            else ""
        )
        return f"{say(self._lang, 'axis_round')} {number}/{total}{known}"

    def _render(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        shown: list[tuple[str, _Line, RenderableType]] = [
            (say(self._lang, f"stage_{name}"), line, self._detail(name, line))
            for name, line in self._lines.items()
        ]
        if self._report.state != "waiting":
            does = Text(say(self._lang, "does_report"), style="dim")
            shown.append((say(self._lang, "report"), self._report, does))
        for title, line, detail in shown:
            mark, style = _MARKS[line.state]
            now = time.monotonic() - line.began if line.state == "running" else line.seconds
            grid.add_row(
                self._spinner if line.state == "running" else Text(mark, style=style),
                Text(title, style="bold" if line.state == "running" else style),
                Text(seconds_in_words(now) if line.state != "waiting" else "", style="cyan"),
                detail,
            )
        return grid

    def _detail(self, name: StageName, line: _Line) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if name == "train" and line.state == "running" and self._round is not None:
            number, total, _ = self._round
            row = Table.grid(padding=(0, 1))
            row.add_row(ProgressBar(total, number, width=_BAR), Text(self._round_in_words()))
            return row
        return Text(say_does(self._lang, name, private=self._private), style="dim")
