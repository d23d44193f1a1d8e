"""An audit's charts, as inline SVG made here: a bar each, and a line where the claim is.

As the report's other charts: text stays text, colours are the page's CSS variables, each chart comes wide and
narrow, ids are its own, and a title says what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.governance.audit import AuditReport, LanguageFindings
from cloister.learning.attacks.languageexposure import CHANCE_BITS
from cloister.report.auditwords import say_audit
from cloister.report.markup import Markup, element, join
from cloister.report.texts import Language

__all__ = ["bounds_chart", "exposure_chart", "inversion_chart"]

_WIDE, _NARROW = 860, 350
_ROW, _TOP, _BOTTOM = 34, 26, 30
_TICKS: Final = (0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass(frozen=True)
class _Bar:
    """One row: its label, its value, what is written beside it, and an optional mark."""

    label: str
    value: float
    text: str
    mark: float | None = None


def bounds_chart(report: AuditReport, lang: Language) -> Markup:
    """Return every lower bound on epsilon as a bar, the claim as a line; nothing without a claim."""
    if report.claimed is None:
        return Markup("")
    bars = [
        _Bar(
            f"{say_audit(lang, bound.attack)}, {say_audit(lang, bound.method)}",
            bound.epsilon,
            f"{bound.epsilon:.2f}",
        )
        for bound in report.bounds
    ]
    claimed = f"{report.claimed:.4g}"
    title = say_audit(lang, "c bounds", claimed=claimed)
    top = max(report.claimed, *(bar.value for bar in bars)) * 1.08
    line = (report.claimed, f"{say_audit(lang, 'claimed')} {claimed}")
    return _responsive("audit-bounds", title, bars, top, line)


def inversion_chart(report: AuditReport, lang: Language) -> Markup:
    """Return similarity of each view as a bar, chance as a mark on it."""
    bars = [
        _Bar(say_audit(lang, each.view), each.similarity, f"{each.similarity:.0%}", each.chance)
        for each in report.inversion
    ]
    return _responsive(
        "audit-inversion", say_audit(lang, "c inversion"), bars, 1.0, None, say_audit(lang, "chance")
    )


def exposure_chart(report: AuditReport, lang: Language) -> Markup:
    """Return mean exposure of each model and number of copies as a bar, chance as a mark on it."""
    if not isinstance(report.language, LanguageFindings):
        return Markup("")
    bars, top = [], CHANCE_BITS
    for run in report.language.runs:
        for copies in dict.fromkeys(each.copies for each in run.exposures):
            label = say_audit(lang, "planted", run=say_audit(lang, run.run), copies=copies)
            bars.append(_Bar(label, run.mean(copies), f"{run.mean(copies):.1f}", CHANCE_BITS))
        top = max([top, *(each.space for each in run.exposures)])
    if not bars:
        return Markup("")
    claimed = say_audit(lang, "none") if report.claimed is None else f"{report.claimed:.4g}"
    title = say_audit(lang, "c exposure", claimed=claimed)
    return _responsive("audit-exposure", title, bars, top, None, say_audit(lang, "chance"))


def _responsive(
    name: str,
    title: str,
    bars: Sequence[_Bar],
    top: float,
    line: tuple[float, str] | None,
    mark: str = "",
) -> Markup:
    drawings = [
        _draw(f"{name}-{kind}", kind, width, title, bars, top, line, mark)
        for width, kind in ((_WIDE, "wide"), (_NARROW, "narrow"))
    ]
    return element("div", join(drawings), class_="chart")


def _draw(
    name: str,
    kind: str,
    width: int,
    title: str,
    bars: Sequence[_Bar],
    top: float,
    line: tuple[float, str] | None,
    mark: str,
) -> Markup:
    narrow = kind == "narrow"
    left, right = (16, 52) if narrow else (300, 60)
    row = _ROW + (18 if narrow else 0)  # on a small screen the label stands above its bar
    height = _TOP + row * len(bars) + _BOTTOM
    span = width - left - right
    parts = [element("title", title, id=f"{name}-title")]

    def x(value: float) -> float:
        return left + span * min(value, top) / top

    for tick in _ticks(top, 4 if narrow else 8):
        parts.append(_rule(x(tick), _TOP, height - _BOTTOM, "var(--line)", ""))
        parts.append(_text(x(tick), height - 10, _number(tick, top), "var(--muted)", "middle"))
    for place, bar in enumerate(bars):
        y = _TOP + place * row + (18 if narrow else 0)
        if narrow:
            parts.append(_text(left, y - 3, bar.label, "var(--ink)", "start"))
        else:
            parts.append(_text(left - 12, y + 19, bar.label, "var(--ink)", "end"))
        parts.append(_box(left, y + 6, max(2.0, x(bar.value) - left), "var(--accent)"))
        if bar.mark is not None:
            parts.append(_rule(x(bar.mark), y + 1, y + 27, "var(--ink)", ""))
        parts.append(_text(width - right + 10, y + 19, bar.text, "var(--ink)", "start"))
    if line is not None:
        parts.append(_rule(x(line[0]), _TOP - 4, height - _BOTTOM, "var(--warn)", "2 3"))
        parts.append(_text(x(line[0]), 14, line[1], "var(--warn)", "end" if narrow else "middle"))
    if mark:  # what the strokes on the bars mean
        parts.append(_rule(left + 3, 3, 17, "var(--ink)", ""))
        parts.append(_text(left + 11, 14, mark, "var(--muted)", "start"))
    return element(
        "svg",
        join(parts),
        class_=kind,
        viewBox=f"0 0 {width} {height}",
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{name}-title",
    )


def _text(x: float, y: float, text: str, colour: str, anchor: str) -> Markup:
    style = f"font: 13px var(--sans); fill: {colour}; text-anchor: {anchor}"
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", style=style)


def _rule(x: float, y1: float, y2: float, colour: str, dashes: str) -> Markup:
    style = f"stroke: {colour}; stroke-width: 1.4" + (f"; stroke-dasharray: {dashes}" if dashes else "")
    return element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{y1:.1f}", y2=f"{y2:.1f}", style=style)


def _box(x: float, y: float, width: float, colour: str) -> Markup:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": "16", "rx": "3"}
    return element("rect", style=f"fill: {colour}", **place)


def _ticks(top: float, most: int) -> list[float]:
    step = next((step for step in _TICKS if top / step <= most), _TICKS[-1])
    return [step * i for i in range(math.floor(top / step + 1e-9) + 1)]


def _number(value: float, top: float) -> str:
    return f"{value:.0%}" if top == 1.0 else f"{value:g}"
