"""The report's two charts, drawn by matplotlib as inline SVG.

Text stays text, in the page's own font. Colours are the page's CSS variables, so the charts follow light,
dark and print. Each chart comes wide and narrow; the page shows the one that fits. No pyplot; matplotlib is
imported on first use.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloister.report.markup import Markup, element, join
from cloister.report.model import Report
from cloister.report.texts import say
from cloister.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

__all__ = ["accuracy_chart", "curves_chart"]

# matplotlib wants colours; each of these stands for a CSS variable and is replaced by it in the SVG.
_INK, _MUTED, _LINE, _ACCENT, _OTHER, _CARD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES: Final = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _OTHER: "var(--other)",
    _CARD: "var(--card)",
}
_WIDE, _NARROW = 860, 350
_SETTINGS: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 13.0,
    "text.parse_math": False,
    "axes.linewidth": 0.8,
    "path.simplify": False,
}


def accuracy_chart(report: Report) -> Markup:
    """Return a dot for each model on one scale: together, each site alone, all in one place."""
    lang, metrics = report.lang, report.metrics
    rows = [(say(lang, "together"), metrics.federated, "together")]
    if metrics.centralised is not None:
        rows.insert(0, (say(lang, "centralised"), metrics.centralised, "centralised"))
    rows += [(say(lang, "alone_label", site=site), value, "alone") for site, value in metrics.local.items()]
    return _responsive("accuracy", say(lang, "c_accuracy"), lambda width: _draw_accuracy(report, rows, width))


def curves_chart(report: Report) -> Markup:
    """Return accuracy and loss by round, or nothing where no round was measured."""
    measured = [point for point in report.curves if point.accuracy is not None]
    if len(measured) < 2:
        return Markup("")
    first, last = (percent(point.accuracy or 0.0, report.lang) for point in (measured[0], measured[-1]))
    title = say(report.lang, "c_curves", first=first, last=last)
    return _responsive("curves", title, lambda width: _draw_curves(report, width))


def _draw_accuracy(report: Report, rows: Sequence[tuple[str, float, str]], width: int) -> Figure:
    height = 46 + 34 * len(rows)
    figure = _figure(width, height)
    left, letters = (128, 16) if width == _NARROW else (190, 24)
    axes = figure.add_axes((left / width, 34 / height, (width - left - 72) / width, (height - 44) / height))
    low, high = _span([value for _, value, _ in rows])
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(report.metrics.federated, color=_ACCENT, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
    for place, (label, value, kind) in enumerate(rows):
        colour = {"together": _ACCENT, "centralised": _INK, "alone": _OTHER}[kind]
        axes.axhline(place, color=_LINE, linewidth=1, linestyle=(0, (1, 3)), zorder=1)
        axes.plot(
            [value],
            [place],
            marker="D" if kind == "centralised" else "o",
            markersize=12 if kind == "together" else 9,
            color=_CARD if kind == "centralised" else colour,
            markeredgecolor=colour,
            markeredgewidth=2,
            zorder=3,
        )
        weight = "bold" if kind == "together" else "normal"
        for x, text, side in (
            (1.02, percent(value, report.lang), "left"),
            (-0.02, _short(label, letters), "right"),
        ):
            style: dict[str, Any] = {"color": _INK, "weight": weight, "ha": side, "va": "center_baseline"}
            axes.text(x, place, text, transform=axes.get_yaxis_transform(), **style)
    axes.set_yticks([])
    _percent_ticks(axes.xaxis, low, high, 4 if width == _NARROW else 8, report)
    _quiet(axes, grid="x", keep=("bottom",))
    return figure


def _draw_curves(report: Report, width: int) -> Figure:
    narrow = width == _NARROW
    height = 470 if narrow else 280
    figure = _figure(width, height)
    losses = any(point.loss is not None for point in report.curves)
    boxes = [(52, 285, 282, 150), (52, 45, 282, 150)] if narrow else [(62, 48, 345, 190), (490, 48, 345, 190)]
    if not losses:
        boxes = [(52, 285, 282, 150)] if narrow else [(62, 48, 773, 190)]
    panels = [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes]
    accuracies = [(p.round, p.accuracy) for p in report.curves if p.accuracy is not None]
    _curve(panels[0], accuracies, say(report.lang, "axis_accuracy"), report)
    values = [value for _, value in accuracies]
    low, high = _span(values)
    panels[0].set_ylim(low, high)
    _percent_ticks(panels[0].yaxis, low, high, 5, report)
    if losses:
        pairs = [(p.round, p.loss) for p in report.curves if p.loss is not None and math.isfinite(p.loss)]
        _curve(panels[1], pairs, say(report.lang, "axis_loss"), report)
        panels[1].set_ylim(0, max((value for _, value in pairs), default=1.0) * 1.1 or 1.0)
    return figure


def _curve(axes: Axes, pairs: Sequence[tuple[int, float]], name: str, report: Report) -> None:
    from matplotlib.ticker import MaxNLocator

    rounds, values = [x for x, _ in pairs], [y for _, y in pairs]
    axes.plot(rounds, values, color=_ACCENT, linewidth=2.4, solid_capstyle="round", zorder=3)
    axes.plot(
        rounds[-1:],
        values[-1:],
        marker="o",
        markersize=9,
        color=_ACCENT,
        markeredgecolor=_CARD,
        markeredgewidth=2,
        zorder=4,
    )
    axes.set_title(name, loc="left", color=_INK, fontsize=14, weight="bold", pad=10)
    axes.set_xlabel(say(report.lang, "axis_round"), color=_MUTED, fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _quiet(axes, grid="y", keep=("bottom",))


def _figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def _short(label: str, letters: int) -> str:
    return label if len(label) <= letters else label[: letters - 1] + "…"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return round limits in steps of 0.05 that hold all values, with room on the left, within [0, 1]."""
    low = max(0.0, math.floor((min(values) - 0.01) * 20) / 20)
    high = min(1.0, math.ceil((max(values) + 0.005) * 20) / 20)
    return low, max(high, low + 0.05)


def _percent_ticks(axis: Axis, low: float, high: float, most: int, report: Report) -> None:
    step = next(
        step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if (high - low) / step <= most or step == 0.5
    )
    first = math.ceil(low / step - 1e-9)
    ticks = [step * i for i in range(first, int(high / step + 1e-9) + 1)]
    axis.set_ticks(
        ticks, [f"{tick * 100:.0f}" + ("%" if report.lang == "zh" else "\u00a0%") for tick in ticks]
    )


def _quiet(axes: Axes, *, grid: str, keep: Sequence[str]) -> None:
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(_LINE)
    axes.tick_params(length=0, colors=_MUTED, labelsize=12, pad=7)
    axes.grid(True, axis="x" if grid == "x" else "y", color=_LINE, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def _responsive(name: str, title: str, draw: Callable[[int], Figure]) -> Markup:
    """Return the drawing wide and narrow, in one box."""
    import matplotlib

    drawings = []
    for width, kind in ((_WIDE, "wide"), (_NARROW, "narrow")):
        prefix = f"{name}-{kind}"
        with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": prefix}), warnings.catch_warnings():
            # Only widths are taken from matplotlib's font; the reader's browser has the glyphs.
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
            drawings.append(_inline(_svg(draw(width)), prefix, title, kind))
    return element("div", join(drawings), class_="chart")


def _svg(figure: Figure) -> str:
    target = io.StringIO()
    figure.savefig(
        target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    return target.getvalue()


def _inline(svg: str, prefix: str, title: str, kind: str) -> Markup:
    """Return matplotlib's file as one accessible `<svg>`: ids begin with `prefix`, colours are variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ((?:bold )?[\d.]+px)[^;\"<>&]*", r"font: \1 var(--sans)", svg)
    svg = re.sub(r"#0[1-6]0[1-6]0[1-6]", lambda match: _VARIABLES.get(match[0], match[0]), svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    return Markup(
        f'<svg class="{kind}" {box[0] if box else ""} xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-labelledby="{prefix}-title">'
        f'<title id="{prefix}-title">{html.escape(title)}</title>{body}'
    )
