"""One chart: accuracy against epsilon, with the study's own point and the training without privacy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from cloister.report.drawing import (
    ACCENT,
    INK,
    MUTED,
    NARROW,
    blank_figure,
    percent_ticks,
    quieten,
    responsive,
    span_of,
)
from cloister.report.markup import Markup
from cloister.report.model import Report
from cloister.report.privacy import Privacy
from cloister.report.privacywords import epsilon_up
from cloister.report.texts import say
from cloister.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["epsilon_chart"]

_STEPS: Final = tuple(step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5))


def epsilon_chart(report: Report, privacy: Privacy) -> Markup:
    """Return accuracy against epsilon with the study's own point, or nothing where it was not measured."""
    if len(privacy.curve) < 2:
        return Markup("")
    lang, first, last = report.lang, privacy.curve[0], privacy.curve[-1]
    title = say(
        lang,
        "c_epsilon",
        first=percent(first.accuracy, lang),
        low=epsilon_up(first.epsilon),
        last=percent(last.accuracy, lang),
        high=epsilon_up(last.epsilon),
        value=percent(report.metrics.federated, lang),
        epsilon=epsilon_up(privacy.claimed),
    )
    return responsive("epsilon", title, lambda width: _draw_epsilon(report, privacy, width))


def _draw_epsilon(report: Report, privacy: Privacy, width: int) -> Figure:
    lang, narrow, bare = report.lang, width == NARROW, report.metrics.centralised
    height = 300 if narrow else 330
    figure = blank_figure(width, height)
    left, right = (52, 16) if narrow else (62, 25)
    axes = figure.add_axes((left / width, 52 / height, (width - left - right) / width, 1 - 92 / height))
    epsilons = [point.epsilon for point in privacy.curve]
    own = (privacy.claimed, report.metrics.federated)
    axes.set_xscale("log")
    ends = (min(*epsilons, own[0]), max(*epsilons, own[0]))
    room = (ends[1] / ends[0]) ** 0.06
    axes.set_xlim(ends[0] / room, ends[1] * room)
    lows = [max(0.0, point.accuracy - point.deviation) for point in privacy.curve]
    highs = [min(1.0, point.accuracy + point.deviation) for point in privacy.curve]
    low, high = span_of([*lows, *highs, own[1], *([] if bare is None else [bare])])
    axes.set_ylim(low, high)
    means = [point.accuracy for point in privacy.curve]
    axes.vlines(epsilons, lows, highs, color=ACCENT, linewidth=1.8, alpha=0.55, zorder=2)
    axes.plot(epsilons, means, color=ACCENT, linewidth=2.2, marker="o", markersize=6.5, zorder=3)
    axes.plot(
        [own[0]],
        [own[1]],
        marker="o",
        markersize=16,
        color="none",
        markeredgecolor=INK,
        markeredgewidth=2,
        zorder=4,
    )
    beyond = math.log(ends[1] * room / own[0]) / math.log(ends[1] / ends[0] * room**2)
    _name_own(axes, report, own, beyond * (width - left - right))
    if bare is not None:
        axes.axhline(bare, color=INK, linewidth=1.4, linestyle=(0, (5, 4)), zorder=2)
        note = f"{say(lang, 'no_privacy')} {percent(bare, lang)}"
        axes.annotate(
            note,
            (0.0, bare),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 7),
            textcoords="offset points",
            color=INK,
        )
    axes.set_title(say(lang, "axis_accuracy"), loc="left", color=INK, fontsize=14, weight="bold", pad=12)
    axes.set_xlabel(say(lang, "axis_epsilon"), color=MUTED, fontsize=12)
    ticks = [step for step in _STEPS if ends[0] / room <= step <= ends[1] * room]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    percent_ticks(axes.yaxis, low, high, 6, lang)
    quieten(axes, grid="y", keep=("bottom",))
    return figure


def _name_own(axes: Axes, report: Report, own: tuple[float, float], pixels: float) -> None:
    """Write below the ring and to its right, where a curve that rises leaves room; to the edge at most."""
    text = f"{say(report.lang, 'this_study')} {percent(own[1], report.lang)}"
    late = pixels < 140
    axes.annotate(
        text,
        (1.0 if late else own[0], own[1]),
        xycoords=axes.get_yaxis_transform() if late else "data",
        xytext=(0 if late else -6, -30),
        textcoords="offset points",
        ha="right" if late else "left",
        color=INK,
        weight="bold",
    )
