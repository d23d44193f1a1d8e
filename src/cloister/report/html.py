"""report.html: one file that a manager can read, print and keep.

It loads nothing and runs nothing (a content policy in the page forbids both); its style is inlined, its
charts are inline SVG. Every text goes through `markup.element`, which escapes it. Light, dark, narrow screens
and paper are all served by the style sheet.

Order of the page: the result in words, the figures, the seven stages, accuracy, what is given away (where
the study claims differential privacy), which software got the keys (where evidence was asked for), curves,
who took part, who could see what, the certificate in words, what is not protected, how to verify, where the
rows came from.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from cloister.report.enclavesection import enclave_section, unprotected_banner
from cloister.report.icons import icon
from cloister.report.markup import Markup, element
from cloister.report.model import Report, Stage
from cloister.report.parts import figure, section
from cloister.report.privacy import Privacy
from cloister.report.privacysection import privacy_section
from cloister.report.privacywords import epsilon_up, privacy_values
from cloister.report.sections import (
    about_section,
    accuracy_section,
    certificate_section,
    curves_section,
    limits_section,
    sites_section,
    verify_section,
    who_sees_section,
)
from cloister.report.texts import Language, say, say_does
from cloister.report.words import (
    bytes_in_words,
    headline,
    outcome,
    percent,
    percent_range,
    points_in_words,
    seconds_in_words,
    with_words,
)

__all__ = ["report_html"]

_ZONES: Final = (("inside", 0, 2), ("between", 2, 4), ("out", 4, 7))
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def report_html(report: Report) -> str:
    """Return the whole page, UTF-8 text."""
    report = with_words(report)
    style = resources.files("cloister.report").joinpath("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.title} · Cloister"),
        element("style", Markup(style)),
    )
    parts = (
        _stages(report),
        accuracy_section(report),
        privacy_section(report),
        enclave_section(report),
        curves_section(report),
        sites_section(report),
        who_sees_section(report),
        certificate_section(report),
        limits_section(report),
        verify_section(report),
        about_section(report),
    )
    body = element(
        "body", unprotected_banner(report), _opening(report), element("main", *parts, id="results")
    )
    lang = "zh-CN" if report.lang == "zh" else "en"
    return "<!doctype html>\n" + element("html", head, body, lang=lang) + "\n"


def _opening(report: Report) -> Markup:
    lang, subject = report.lang, report.subject
    space = "" if lang == "zh" else " "
    told = list(report.warnings)
    if unprotected_banner(report):
        told.insert(0, say(lang, "not_hardware_banner"))
    warnings = [element("li", warning) for warning in told]
    return element(
        "header",
        element("a", say(lang, "skip"), class_="skip", href="#results"),
        element(
            "p", element("strong", "Cloister"), f" · {say(lang, 'report')} · {report.title}", class_="eyebrow"
        ),
        element("h1", headline(report)),
        element("p", outcome(report), class_="lead"),
        element(
            "p", say(lang, "no_row_moved", site=subject.site), space, report.source.note, class_="promise"
        ),
        element("ul", *warnings, class_="warnings", aria_label=say(lang, "warnings"))
        if warnings
        else Markup(""),
        _figures(report),
    )


def _figures(report: Report) -> Markup:
    lang, metrics, privacy = report.lang, report.metrics, report.privacy
    note = say(lang, "together_note" if privacy is None else "together_note_private")
    cards = [figure(say(lang, "together"), percent(metrics.federated, lang), note, "together")]
    if privacy is not None:
        cards.append(figure(say(lang, "epsilon"), epsilon_up(privacy.claimed), _against(report), "epsilon"))
        cards += _private_comparisons(report, privacy)
    else:
        cards += _comparisons(report)
    return element("dl", *cards, class_="figures" if len(cards) < 4 else "figures four")


def _comparisons(report: Report) -> list[Markup]:
    """Return a figure for each site alone and for one collector, all without privacy as the study is."""
    lang, metrics, cards = report.lang, report.metrics, []
    if metrics.local:
        ranked = sorted(metrics.local.items(), key=lambda item: item[1])
        (low_site, low), (high_site, high) = ranked[0], ranked[-1]
        span = percent_range(low, high, lang)
        note = say(lang, "alone_note", low_site=low_site, high_site=high_site)
        cards.append(figure(say(lang, "alone"), span, note, "alone"))
    if metrics.centralised is not None:
        gap = round(metrics.centralised - metrics.federated, 3)
        key = "centralised_above" if gap > 0 else "centralised_below" if gap < 0 else "centralised_same"
        note = say(lang, key, points=points_in_words(gap, lang))
        cards.append(
            figure(say(lang, "centralised"), percent(metrics.centralised, lang), note, "centralised")
        )
    return cards


def _private_comparisons(report: Report, privacy: Privacy) -> list[Markup]:
    """Return the same figures of a private study: at its privacy where that was computed, and without."""
    lang, metrics, same = report.lang, report.metrics, privacy.baselines
    spans = [
        ("alone", _span(same.local, lang) if same else "", _span(metrics.local, lang)),
        (
            "centralised",
            percent(same.centralised, lang) if same else "",
            "" if metrics.centralised is None else percent(metrics.centralised, lang),
        ),
    ]
    cards = []
    for kind, private, bare in spans:
        if private:
            note = say(lang, "same_privacy_note", value=bare) if bare else say(lang, "same_privacy")
            cards.append(figure(say(lang, kind), private, note, kind))
        elif bare:
            cards.append(figure(say(lang, kind), bare, say(lang, "without_note"), kind))
    return cards


def _span(accuracies: dict[str, float], lang: Language) -> str:
    return percent_range(min(accuracies.values()), max(accuracies.values()), lang) if accuracies else ""


def _against(report: Report) -> str:
    """Return against whom the claimed epsilon holds, and the other one."""
    privacy = report.privacy
    if privacy is None:
        raise TypeError("the report claims no privacy")
    key = "epsilon_note_local" if privacy.mode == "local" else f"epsilon_note_{privacy.adversary}"
    return say(report.lang, key, **privacy_values(report, privacy))


def _stages(report: Report) -> Markup:
    lang = report.lang
    subject = {"site": report.subject.site, "sites": report.subject.sites}
    total = sum(stage.seconds for stage in report.stages)
    zones = []
    for zone, first, end in _ZONES:
        label = element("p", say(lang, f"zone_{zone}", **subject), class_="zone-name")
        steps = element(
            "ol", *(_stage(report, stage) for stage in report.stages[first:end]), start=str(first + 1)
        )
        zones.append(element("div", label, steps, class_=f"zone {zone}"))
    return section(
        "stages",
        say(lang, "h_stages"),
        element("div", *zones, class_="way"),
        note=say(lang, "h_stages_note", seconds=seconds_in_words(total)),
    )


def _stage(report: Report, stage: Stage) -> Markup:
    lang = report.lang
    moved = element(
        "span", bytes_in_words(stage.bytes), " ", element("span", say(lang, f"bytes_{stage.name}"))
    )
    return element(
        "li",
        element("span", icon(stage.name), class_="dot"),
        element("h3", say(lang, f"stage_{stage.name}")),
        element("p", seconds_in_words(stage.seconds), class_="time"),
        element("p", moved, class_="moved"),
        element("p", say_does(lang, stage.name, private=report.privacy is not None), class_="does"),
    )
