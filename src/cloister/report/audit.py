"""An audit for people: a page that can be kept, and a summary for a terminal; the same facts in both.

    audit_html(report, lang)      one self-contained page: nothing is loaded, nothing runs
    audit_summary(report, lang)   lines of text

Order of the page: the verdict in words, three figures, what was remembered of planted secrets (language
models), what the canaries showed, whether it is the mechanism that was accounted for, rows read back and
membership (tables), conditions, facts. Sentences follow from the report's
fields; none says that a study is private.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from cloister.governance.audit import MEMORISED, VIOLATES, AuditReport, LanguageFindings
from cloister.report.auditcharts import bounds_chart, inversion_chart
from cloister.report.auditlanguage import (
    exposure_figure,
    language_conditions,
    language_lines,
    language_section,
    whose,
)
from cloister.report.auditwords import say_audit
from cloister.report.markup import Markup, element, join
from cloister.report.parts import figure
from cloister.report.texts import Language
from cloister.report.words import percent, seconds_in_words

__all__ = ["audit_html", "audit_summary"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MORE_STYLE = ".chart + .scroll { margin-top: 16px; }\n"


def audit_html(report: AuditReport, lang: Language = "en") -> str:
    """Return the whole page, UTF-8 text."""
    style = resources.files("cloister.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{say_audit(lang, 'title')} {report.study} · Cloister"),
        element("style", Markup(style + _MORE_STYLE)),
    )
    texts = isinstance(report.language, LanguageFindings)
    sections = (
        language_section(report, lang),
        _bounds(report, lang),
        _checks(report, lang),
        *(() if texts else (_inversion(report, lang), _membership(report, lang))),
        _conditions(report, lang),
        _about(report, lang),
    )
    body = element("body", _opening(report, lang), element("main", *sections, id="results"))
    return "<!doctype html>\n" + element("html", head, body, lang="zh-CN" if lang == "zh" else "en") + "\n"


def audit_summary(report: AuditReport, lang: Language = "en") -> str:
    """Return the verdict and the findings as lines of text."""
    lines = [f"{_headline(report, lang)}: {_lead(report, lang)}"]
    lines += [
        f"  {say_audit(lang, bound.attack)}, {say_audit(lang, bound.method)}: {bound.epsilon:.3f} "
        f"({bound.correct}/{bound.guesses}, {bound.confidence:g})"
        for bound in report.bounds
    ]
    lines += [
        f"  {say_audit(lang, check.name)}: {say_audit(lang, 'holds' if check.holds else 'fails')} "
        f"({check.measured:.4g} / {check.claimed:.4g})"
        for check in report.checks
    ]
    lines += [
        f"  {say_audit(lang, each.view)}: {percent(each.similarity, lang)} "
        f"({say_audit(lang, 'chance')} {percent(each.chance, lang)})"
        for each in report.inversion
    ]
    found = report.membership
    if found is not None:
        lines.append(
            f"  {say_audit(lang, 'membership')}: {percent(found.auc, lang)} "
            f"({say_audit(lang, 'guessing', value=percent(0.5, lang))})"
        )
    lines += [f"  {line}" for line in language_lines(report, lang)]
    lines.append(say_audit(lang, whose(report)))
    return "\n".join(lines)


def _headline(report: AuditReport, lang: Language) -> str:
    return say_audit(lang, report.verdict or "no claim")


def _lead(report: AuditReport, lang: Language) -> str:
    memorised = report.verdict == MEMORISED
    if report.claimed is None or report.bound is None:
        chance = "lead chance none" if isinstance(report.language, LanguageFindings) else "lead none"
        return say_audit(lang, "lead memorised none" if memorised else chance, study=report.study)
    facts = {
        "bound": f"{report.bound:.3f}",
        "claimed": f"{report.claimed:.4g}",
        "confidence": f"{report.confidence:g}",
        "study": report.study,
    }
    kind = "violates" if report.verdict == VIOLATES else "memorised" if memorised else "consistent"
    if memorised and report.claim is not None and report.claim.unit != "record":
        kind, facts["unit"] = "memorised unit", report.claim.unit
    said = say_audit(lang, f"lead {kind}", **facts)
    failed = [say_audit(lang, check.name) for check in report.failed]
    return said + (say_audit(lang, "lead failed", checks="; ".join(failed)) if failed else "")


def _opening(report: AuditReport, lang: Language) -> Markup:
    own = report.rows == "own"
    said = say_audit(lang, whose(report))
    return element(
        "header",
        element("a", say_audit(lang, "skip"), class_="skip", href="#results"),
        element(
            "p",
            element("strong", "Cloister"),
            f" · {say_audit(lang, 'title')} · {report.study}",
            class_="eyebrow",
        ),
        element("h1", _headline(report, lang)),
        element("p", _lead(report, lang), class_="lead"),
        element("ul", element("li", said), class_="warnings")
        if own
        else element("p", said, class_="promise"),
        _figures(report, lang),
    )


def _figures(report: AuditReport, lang: Language) -> Markup:
    none = say_audit(lang, "none")
    claim = report.claim
    claimed = none if report.claimed is None else f"{report.claimed:.4g}"
    note = (
        ""
        if claim is None
        else say_audit(
            lang,
            "claimed note",
            delta=f"{claim.delta:g}",
            adversary=say_audit(lang, f"adversary {claim.adversary}"),
        )
    )
    bound = none if report.bound is None else f"{report.bound:.3f}"
    shown = "" if report.bound is None else say_audit(lang, "bound note", confidence=f"{report.confidence:g}")
    found = report.membership
    ranked = none if found is None else percent(found.auc, lang)
    return element(
        "dl",
        figure(say_audit(lang, "claimed"), claimed, note, "together"),
        figure(say_audit(lang, "bound"), bound, shown, "alone"),
        exposure_figure(report, lang)
        or figure(say_audit(lang, "membership"), ranked, say_audit(lang, "membership note"), "centralised"),
        class_="figures",
    )


def _bounds(report: AuditReport, lang: Language) -> Markup:
    if report.canaries is None:
        return Markup("")
    rows = [
        (
            say_audit(lang, bound.attack),
            say_audit(lang, bound.method),
            f"{bound.epsilon:.3f}",
            f"{bound.confidence:g}",
            f"{bound.correct} / {bound.guesses}",
        )
        for bound in report.bounds
    ]
    table = _table("bounds", lang, ("attack", "method", "epsilon", "confidence", "guesses"), rows)
    if not report.bounds:
        return Markup("")
    facts = {"each": report.canaries.each, "runs": report.canaries.runs}
    return _section("bounds", lang, bounds_chart(report, lang), table, **facts)


def _checks(report: AuditReport, lang: Language) -> Markup:
    if not report.checks:
        return Markup("")
    rows = [
        (
            say_audit(lang, check.name),
            f"{check.claimed:.4g}",
            f"{check.measured:.4g}",
            say_audit(lang, "holds" if check.holds else "fails"),
        )
        for check in report.checks
    ]
    return _section("checks", lang, _table("checks", lang, ("check", "claimed", "measured", "result"), rows))


def _inversion(report: AuditReport, lang: Language) -> Markup:
    rows = [
        (
            say_audit(lang, each.view),
            percent(each.similarity, lang),
            percent(each.chance, lang),
            percent(each.exact, lang),
            percent(each.exact_by_chance, lang),
        )
        for each in report.inversion
    ]
    table = _table("inversion", lang, ("view", "similarity", "chance", "exact", "chance"), rows)
    return _section("inversion", lang, inversion_chart(report, lang), table)


def _membership(report: AuditReport, lang: Language) -> Markup:
    found = report.membership
    if found is None:
        return element(
            "section",
            element("h2", say_audit(lang, "h membership")),
            element("p", say_audit(lang, "few rows"), class_="note"),
        )
    rows = [
        (say_audit(lang, key), percent(value, lang), percent(guess, lang))
        for key, value, guess in (
            ("auc", found.auc, 0.5),
            ("accuracy", found.accuracy, 0.5),
            ("hits at 1", found.hits_at_1, 0.01),
            ("hits at 10", found.hits_at_10, 0.1),
        )
    ]
    table = _table("membership", lang, ("membership", "result", "chance"), rows)
    return _section("membership", lang, table, models=found.models, rows=found.rows)


def _conditions(report: AuditReport, lang: Language) -> Markup:
    said = language_conditions(report, lang) or [say_audit(lang, "condition mechanism")]
    if report.claim is not None and not isinstance(report.language, LanguageFindings):
        facts = {"steps": report.claim.steps, "shares": report.claim.shares}
        said += [say_audit(lang, "condition adversary", **facts), say_audit(lang, "condition weak")]
    if report.hub_view == "none":
        said.append(say_audit(lang, "condition hidden"))
    if report.membership is not None:
        said.append(say_audit(lang, "condition rows", rows=report.membership.rows))
    items = [element("li", each) for each in said]
    return element(
        "section",
        element("h2", say_audit(lang, "h conditions"), id="h-conditions"),
        element("ul", *items),
        class_="limits",
        aria_labelledby="h-conditions",
    )


def _about(report: AuditReport, lang: Language) -> Markup:
    facts = [("plan", element("code", report.plan))]
    claim = report.claim
    if claim is not None:
        mechanism = say_audit(
            lang,
            "mechanism value",
            mode=claim.mode,
            unit=claim.unit,
            noise=f"{claim.noise_multiplier:.4g}",
            rate=f"{claim.rate:g}",
            steps=claim.steps,
        )
        epsilons = {"hub": f"{claim.epsilon_hub:.4g}", "colluders": f"{claim.epsilon_colluders:.4g}"}
        facts += [
            ("mechanism", join([mechanism])),
            ("both", join([say_audit(lang, "both value", **epsilons)])),
        ]
    facts += [("created", join([report.created])), ("took", join([seconds_in_words(report.seconds)]))]
    rows = [element("div", element("dt", say_audit(lang, key)), element("dd", value)) for key, value in facts]
    return element(
        "section",
        element("h2", say_audit(lang, "h about"), id="h-about"),
        element("dl", *rows, class_="facts"),
        class_="about",
        aria_labelledby="h-about",
    )


def _section(name: str, lang: Language, *children: str, **facts: object) -> Markup:
    return element(
        "section",
        element("h2", say_audit(lang, f"h {name}"), id=f"h-{name}"),
        element("p", say_audit(lang, f"h {name} note", **facts), class_="note"),
        *children,
        class_=name,
        aria_labelledby=f"h-{name}",
    )


def _table(name: str, lang: Language, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Markup:
    head = element("tr", *(element("th", say_audit(lang, key), scope="col") for key in columns))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    table = element("table", element("thead", head), element("tbody", join(body)), class_="numbers")
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_labelledby=f"h-{name}")
