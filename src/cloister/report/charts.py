"""Two charts: what working together brought, and how the model grew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cloister.report.drawing import (
    ACCENT,
    CARD,
    INK,
    LINE,
    MUTED,
    NARROW,
    OTHER,
    blank_figure,
    percent_ticks,
    quieten,
    responsive,
    shortened,
    span_of,
)
from cloister.report.markup import Markup
from cloister.report.model import Report
from cloister.report.texts import say
from cloister.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_chart", "curves_chart"]

_COLOURS: Final = {"together": ACCENT, "centralised": INK, "alone": OTHER}


@dataclass(frozen=True)
class _Row:
    """One model: its accuracy as the study's own is meant, and without privacy where the study has it."""

    label: str
    kind: Literal["together", "centralised", "alone"]
    value: float | None
    bare: float | None = None


def accuracy_chart(report: Report) -> Markup:
    """Return a dot for each model on one scale: together, each site alone, all in one place.

    Where the study is private, a filled dot has the same privacy and a hollow one has none.
    """
    title = say(report.lang, "c_accuracy" if report.privacy is None else "c_accuracy_private")
    rows = _rows(report)
    return responsive("accuracy", title, lambda width: _draw_accuracy(report, rows, width))


def curves_chart(report: Report) -> Markup:
    """Return accuracy and loss by round, or nothing where no round was measured."""
    measured = [point for point in report.curves if point.accuracy is not None]
    if len(measured) < 2:
        return Markup("")
    first, last = (percent(point.accuracy or 0.0, report.lang) for point in (measured[0], measured[-1]))
    title = say(report.lang, "c_curves", first=first, last=last)
    return responsive("curves", title, lambda width: _draw_curves(report, width))


def _rows(report: Report) -> list[_Row]:
    lang, metrics, privacy = report.lang, report.metrics, report.privacy
    rows = [_Row(say(lang, "together"), "together", metrics.federated)]
    if privacy is None:
        if metrics.centralised is not None:
            rows.insert(0, _Row(say(lang, "centralised"), "centralised", metrics.centralised))
        alone = {site: (value, None) for site, value in metrics.local.items()}
        return rows + [_alone(report, site, *both) for site, both in alone.items()]
    same = privacy.baselines
    if metrics.centralised is not None or same is not None:
        private = None if same is None else same.centralised
        rows.insert(0, _Row(say(lang, "centralised"), "centralised", private, metrics.centralised))
    local = {} if same is None else same.local
    names = list(dict.fromkeys([*local, *metrics.local]))
    return rows + [_alone(report, site, local.get(site), metrics.local.get(site)) for site in names]


def _alone(report: Report, site: str, value: float | None, bare: float | None) -> _Row:
    return _Row(say(report.lang, "alone_label", site=site), "alone", value, bare)


def _draw_accuracy(report: Report, rows: Sequence[_Row], width: int) -> Figure:
    lang, narrow = report.lang, width == NARROW
    private, both = report.privacy is not None, any(row.bare is not None for row in rows)
    top = 26 if both else 10
    height = 36 + top + 34 * len(rows)
    figure = blank_figure(width, height)
    left, letters = ((118, 16) if both else (128, 16)) if narrow else (190, 24)
    right = (120 if narrow else 168) if both else 72
    axes = figure.add_axes(
        (left / width, 34 / height, (width - left - right) / width, 1 - (34 + top) / height)
    )
    low, high = span_of([value for row in rows for value in (row.value, row.bare) if value is not None])
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(report.metrics.federated, color=ACCENT, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
    columns = (16, right * 0.56) if both else (16,)
    for place, row in enumerate(rows):
        axes.axhline(place, color=LINE, linewidth=1, linestyle=(0, (1, 3)), zorder=1)
        if row.value is not None and row.bare is not None:
            axes.plot(
                [row.value, row.bare], [place, place], color=_COLOURS[row.kind], linewidth=1.6, zorder=2
            )
        for value, filled in ((row.bare, False), (row.value, private or row.kind != "centralised")):
            if value is not None:
                _dot(axes, value, place, row.kind, filled=filled)
        weight = "bold" if row.kind == "together" else "normal"
        label, size = shortened(row.label, letters), 12 if narrow and both else 13
        _beside(axes, place, -12, label, ha="right", color=INK, weight=weight, fontsize=size)
        for x, value in zip(columns, (row.value, row.bare), strict=False):
            if value is not None:
                _beside(
                    axes, place, x, percent(value, lang), ha="left", color=INK, weight=weight, fontsize=size
                )
    if both:
        for x, key in zip(columns, ("with_privacy", "bare"), strict=True):
            _beside(axes, -0.82, x, say(lang, key), ha="left", color=MUTED, fontsize=11.5)
    axes.set_yticks([])
    percent_ticks(axes.xaxis, low, high, (3 if both else 4) if narrow else 8, lang)
    quieten(axes, grid="x", keep=("bottom",))
    return figure


def _dot(axes: Axes, value: float, place: int, kind: str, *, filled: bool) -> None:
    axes.plot(
        [value],
        [place],
        marker="D" if kind == "centralised" else "o",
        markersize=12 if kind == "together" else 9,
        color=_COLOURS[kind] if filled else CARD,
        markeredgecolor=_COLOURS[kind],
        markeredgewidth=2,
        zorder=3,
    )


def _beside(axes: Axes, place: float, pixels: float, text: str, **style: Any) -> None:
    """Write beside the plot, so many pixels right of its right edge, or left of its left edge if negative."""
    axes.annotate(
        text,
        (1.0 if pixels > 0 else 0.0, place),
        xycoords=axes.get_yaxis_transform(),
        xytext=(pixels, 0),
        textcoords="offset points",
        va="center_baseline",
        annotation_clip=False,
        **style,
    )


def _draw_curves(report: Report, width: int) -> Figure:
    narrow = width == NARROW
    height = 470 if narrow else 280
    figure = blank_figure(width, height)
    losses = any(point.loss is not None for point in report.curves)
    boxes = [(52, 285, 282, 150), (52, 45, 282, 150)] if narrow else [(62, 48, 345, 190), (490, 48, 345, 190)]
    if not losses:
        boxes = [(52, 285, 282, 150)] if narrow else [(62, 48, 773, 190)]
    panels = [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes]
    accuracies = [(p.round, p.accuracy) for p in report.curves if p.accuracy is not None]
    _curve(panels[0], accuracies, say(report.lang, "axis_accuracy"), report)
    values = [value for _, value in accuracies]
    low, high = span_of(values)
    panels[0].set_ylim(low, high)
    percent_ticks(panels[0].yaxis, low, high, 5, report.lang)
    if losses:
        pairs = [(p.round, p.loss) for p in report.curves if p.loss is not None and math.isfinite(p.loss)]
        _curve(panels[1], pairs, say(report.lang, "axis_loss"), report)
        panels[1].set_ylim(0, max((value for _, value in pairs), default=1.0) * 1.1 or 1.0)
    return figure


def _curve(axes: Axes, pairs: Sequence[tuple[int, float]], name: str, report: Report) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds, values = [x for x, _ in pairs], [y for _, y in pairs]
    axes.plot(rounds, values, color=ACCENT, linewidth=2.4, solid_capstyle="round", zorder=3)
    axes.plot(
        rounds[-1:],
        values[-1:],
        marker="o",
        markersize=9,
        color=ACCENT,
        markeredgecolor=CARD,
        markeredgewidth=2,
        zorder=4,
    )
    axes.set_title(name, loc="left", color=INK, fontsize=14, weight="bold", pad=10)
    axes.set_xlabel(say(report.lang, "axis_round"), color=MUTED, fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    quieten(axes, grid="y", keep=("bottom",))
