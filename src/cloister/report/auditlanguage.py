"""What an audit of a language model found, for its page and its summary: exposure beside chance and claim."""

from __future__ import annotations

from collections.abc import Iterator

from cloister.governance.audit import AuditReport, LanguageFindings
from cloister.learning.attacks.languageexposure import Exposure
from cloister.learning.attacks.languagememory import Remembered
from cloister.report.auditcharts import exposure_chart
from cloister.report.auditwords import say_audit
from cloister.report.markup import Markup, element, join
from cloister.report.texts import Language

__all__ = ["exposure_figure", "language_conditions", "language_lines", "language_section", "whose"]

_COLUMNS = ("run", "copies", "secrets", "exposure", "most bits", "fitted")


def whose(report: AuditReport) -> str:
    """Return the key of the sentence that says whose rows were touched."""
    return f"{report.rows} {'texts' if isinstance(report.language, LanguageFindings) else 'rows'}"


def language_section(report: AuditReport, lang: Language) -> Markup:
    """Return the section; nothing for other models."""
    found = report.language
    if not isinstance(found, LanguageFindings):
        return Markup("")
    head = element("tr", *(element("th", say_audit(lang, key), scope="col") for key in _COLUMNS))
    rows = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in _rows(found, lang)
    ]
    table = element("table", element("thead", head), element("tbody", join(rows)), class_="numbers")
    region = element("div", table, class_="scroll", tabindex="0", role="region", aria_labelledby="h-language")
    said = [element("li", _said(run, lang)) for run in found.runs]
    return element(
        "section",
        element("h2", say_audit(lang, "h language"), id="h-language"),
        element("p", say_audit(lang, f"h language note {found.source}", rows=found.rows), class_="note"),
        exposure_chart(report, lang),
        region,
        element("ul", *said),
        class_="language",
        aria_labelledby="h-language",
    )


def language_lines(report: AuditReport, lang: Language) -> list[str]:
    """Return the findings as lines of text; none for other models."""
    found = report.language
    if not isinstance(found, LanguageFindings):
        return []
    lines = []
    for run in found.runs:
        for copies, each in _by_copies(run):
            label = say_audit(lang, "planted", run=say_audit(lang, run.run), copies=copies)
            lines.append(f"{label}: {run.mean(copies):.2f} / {each[0].space:.1f} bit")
        lines.append(_said(run, lang))
    return lines


def language_conditions(report: AuditReport, lang: Language) -> list[str]:
    """Return what the findings hold under; none for other models."""
    found = report.language
    if not isinstance(found, LanguageFindings):
        return []
    said = ["condition model" if found.source == "planted" else "condition mechanism", "condition others"]
    if report.claim is not None:
        copies = "condition copies" if report.claim.unit == "record" else "condition unit"
        said += ["condition losses", copies, "condition weak"]
    unit = report.claim.unit if report.claim is not None else ""
    return [say_audit(lang, key, unit=unit) for key in said]


def exposure_figure(report: AuditReport, lang: Language) -> Markup | None:
    """Return the figure of the secrets that were planted most often; None for other models."""
    found = report.language
    if not isinstance(found, LanguageFindings) or not found.runs[0].exposures:
        return None
    run = found.runs[0]
    copies, each = max(_by_copies(run))
    note = say_audit(lang, "exposure note", space=f"{max(one.space for one in each):.1f}")
    return element(
        "div",
        element("dt", say_audit(lang, "exposure")),
        element("dd", f"{run.mean(copies):.2f}"),
        element("dd", note, class_="small"),
        class_="centralised",
    )


def _rows(found: LanguageFindings, lang: Language) -> Iterator[tuple[str, ...]]:
    for run in found.runs:
        for copies, each in _by_copies(run):
            fitted = [one.fitted for one in each if one.fitted is not None]
            yield (
                say_audit(lang, run.run),
                str(copies),
                str(len(each)),
                f"{run.mean(copies):.2f}",
                f"{max(one.space for one in each):.1f}",
                f"{sum(fitted) / len(fitted):.2f}" if fitted else say_audit(lang, "none"),
            )


def _by_copies(run: Remembered) -> list[tuple[int, list[Exposure]]]:
    found: dict[int, list[Exposure]] = {}
    for each in run.exposures:
        found.setdefault(each.copies, []).append(each)
    return list(found.items())


def _said(run: Remembered, lang: Language) -> str:
    facts = {
        "run": say_audit(lang, run.run),
        "verdict": say_audit(lang, run.verdict),
        "p": say_audit(lang, "none") if run.p_value is None else f"{run.p_value:.2g}",
    }
    if run.scan is None:
        return say_audit(lang, "said nothing", **facts)
    scan = run.scan
    counts = {"asked": scan.asked, "extracted": scan.extracted, "texts": scan.texts}
    return say_audit(lang, "said", found=scan.identifiers, **counts, **facts)
