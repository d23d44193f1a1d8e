"""The figures of an example as one HTML page that needs no other file."""

from __future__ import annotations

from typing import Any

from cloister.report.markup import Markup, element, join

__all__ = ["page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td { padding: .25rem .5rem .25rem 0; vertical-align: middle }
td.number { text-align: right; font-variant-numeric: tabular-nums; width: 5rem }
td.bar { width: 50% } td { overflow-wrap: anywhere } table.facts td:first-child { width: 45% }
table.facts { table-layout: fixed }
svg { display: block } dt { font-weight: 600; margin-top: .75rem } dd { margin: 0 }
"""


def page(title: str, figures: dict[str, Any]) -> str:
    """Return the page."""
    parts = [
        element("h1", title),
        element("p", _said(figures)),
        element(
            "h2", f"{figures['metric'].capitalize()} on {figures['test_rows']} rows that nobody learnt from"
        ),
        _bars(figures),
        element("h2", "What it took"),
        _facts(figures),
    ]
    if "answers" in figures:
        pairs = [
            join([element("dt", question), element("dd", answer)])
            for question, answer in figures["answers"].items()
        ]
        parts += [element("h2", "Answers to questions that nobody learnt from"), element("dl", *pairs)]
    head = element(
        "head", Markup('<meta charset="utf-8">'), element("title", title), element("style", Markup(_STYLE))
    )
    return "<!doctype html>\n" + element("html", head, element("body", *parts), lang="en")


def _models(figures: dict[str, Any]) -> list[tuple[str, float]]:
    without = "" if figures["epsilon"] is None else ", without privacy"
    models = [
        ("Together, without showing rows", figures["federated"]),
        (f"All rows in one place{without}", figures["centralised"]),
    ]
    models += [(f"{name} alone{without}", value) for name, value in figures["alone"].items()]
    if figures["tfidf"] is not None:
        models.append(("TF-IDF and logistic regression, all rows", figures["tfidf"]))
    return [*models, ("Before training", figures["start"])]


def _said(figures: dict[str, Any]) -> str:
    higher = figures["metric"] == "accuracy"
    best = (max if higher else min)(figures["alone"].values())
    ahead = figures["federated"] - best if higher else best - figures["federated"]
    word = "better" if ahead > 0 else "no better"
    without = "" if figures["epsilon"] is None else " without privacy"
    said = (
        f"{len(figures['alone'])} sites trained {figures['parameters']:,} parameters together in "
        f"{figures['rounds']} rounds. Their model is {word} than the best that one of them makes alone"
        f"{without}."
    )
    if figures["tfidf"] is not None and figures["tfidf"] > figures["federated"]:
        said += " Counting words, with all rows in one place, does better: the base is small."
    return said


def _bars(figures: dict[str, Any]) -> Markup:
    models = _models(figures)
    most = 1.0 if figures["metric"] == "accuracy" else max(value for _, value in models)
    rows = []
    for name, value in models:
        colour = "#1f6f8b" if name.startswith("Together") else "#b8c4cc"
        rect = element("rect", width=f"{100.0 * value / most:.2f}%", height="14", fill=colour)
        bar = element("svg", rect, width="100%", height="14", role="presentation")
        cells = [
            element("td", name),
            element("td", bar, class_="bar"),
            element("td", f"{value:.3f}", class_="number"),
        ]
        rows.append(element("tr", *cells))
    return element("table", element("tbody", *rows))


def _facts(figures: dict[str, Any]) -> Markup:
    sent, epsilon = figures["bytes"], figures["epsilon"]
    facts = [
        ("Privacy", "no claim")
        if epsilon is None
        else ("Privacy", f"epsilon {epsilon['claimed']:.2f} for each row, at delta {epsilon['delta']:g}"),
        ("Sent by all parties", f"{sent['total']:,.0f} bytes"),
        ("Sent by a site for a parameter and round", f"{sent['up_for_a_parameter']:.2f} bytes"),
        *((f"Seconds, {name}", f"{value:,.0f}") for name, value in figures["seconds"].items()),
        *((f"Rows of {name}", f"{count:,}") for name, count in figures["rows"].items()),
        ("Base", figures["base"]),
    ]
    rows = [element("tr", element("td", name), element("td", value)) for name, value in facts]
    return element("table", element("tbody", *rows), class_="facts")
