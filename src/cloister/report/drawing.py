"""How the report's charts are drawn: by matplotlib as inline SVG, without pyplot, imported on first use.

Text stays text, in the page's own font. Colours are the page's CSS variables, so a chart follows light, dark
and print. Each chart comes wide and narrow; the page shows the one that fits.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from cloister.report.markup import Markup, element, join
from cloister.report.text import Language

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

__all__ = [
    "ACCENT",
    "CARD",
    "INK",
    "LINE",
    "MUTED",
    "NARROW",
    "OTHER",
    "WIDE",
    "blank_figure",
    "percent_ticks",
    "quieten",
    "responsive",
    "shortened",
    "span_of",
]

# matplotlib wants colours; each of these stands for a CSS variable and is replaced by it in the SVG.
INK, MUTED, LINE, ACCENT, OTHER, CARD = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    OTHER: "var(--other)",
    CARD: "var(--card)",
}
WIDE, NARROW = 860, 350
_SETTINGS: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 13.0,
    "text.parse_math": False,
    "axes.linewidth": 0.8,
    "path.simplify": False,
}


def blank_figure(width: int, height: int) -> Figure:
    """Return an empty drawing of so many CSS pixels, without a ground of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def shortened(label: str, letters: int) -> str:
    """Return the label, or as much of it as so many letters hold."""
    return label if len(label) <= letters else label[: letters - 1] + "…"


def span_of(values: Sequence[float]) -> tuple[float, float]:
    """Return round limits in steps of 0.05 that hold all values, with room on the left, within [0, 1]."""
    low = max(0.0, math.floor((min(values) - 0.01) * 20) / 20)
    high = min(1.0, math.ceil((max(values) + 0.005) * 20) / 20)
    return low, max(high, low + 0.05)


def percent_ticks(axis: Axis, low: float, high: float, most: int, lang: Language) -> None:
    """Mark whole percentages between two fractions, at most about so many."""
    step = next(
        step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if (high - low) / step <= most or step == 0.5
    )
    first = math.ceil(low / step - 1e-9)
    ticks = [step * i for i in range(first, int(high / step + 1e-9) + 1)]
    sign = "%" if lang == "zh" else "\u00a0%"
    axis.set_ticks(ticks, [f"{tick * 100:.0f}{sign}" for tick in ticks])


def quieten(axes: Axes, *, grid: Literal["x", "y"], keep: Sequence[str]) -> None:
    """Leave a thin grid along one axis and the frame's sides in `keep`."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(LINE)
    axes.tick_params(length=0, colors=MUTED, labelsize=12, pad=7)
    axes.grid(True, axis=grid, color=LINE, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)


def responsive(name: str, title: str, draw: Callable[[int], Figure]) -> Markup:
    """Return the drawing wide and narrow, in one box."""
    import matplotlib

    drawings = []
    for width, kind in ((WIDE, "wide"), (NARROW, "narrow")):
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
