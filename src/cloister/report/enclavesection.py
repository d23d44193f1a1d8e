"""The part of the page on trusted execution; nothing is shown of a study that asked for no evidence."""

from __future__ import annotations

from cloister.report.enclave import Attestation, Enclave
from cloister.report.markup import Markup, element
from cloister.report.model import Report
from cloister.report.parts import section, table
from cloister.report.texts import say

__all__ = ["enclave_section", "unprotected_banner"]

_DIGITS = 16


def unprotected_banner(report: Report) -> Markup:
    """Return what stands on every sheet of a run that no hardware protected; nothing for any other."""
    if report.enclave is None or report.enclave.protection == "hardware":
        return Markup("")
    return element("p", say(report.lang, "not_hardware"), class_="unprotected")


def enclave_section(report: Report) -> Markup:
    """Return who showed what evidence, and what came of it."""
    enclave, lang = report.enclave, report.lang
    if enclave is None:
        return Markup("")
    columns = ("enclave_who", "enclave_kind", "enclave_package", "enclave_verdict")
    head = element("tr", *(element("th", say(lang, key), scope="col") for key in columns))
    rows = [_attestation(report, each) for each in enclave.attestations]
    return section(
        "enclave",
        say(lang, "h_enclave"),
        table("enclave", head, rows, "attestations"),
        *_refusals(report, enclave),
        element("p", say(lang, "enclave_log", count=enclave.log_entries), class_="aside"),
        _walls(report, enclave),
        note=say(lang, "h_enclave_note", site=report.subject.site),
    )


def _attestation(report: Report, each: Attestation) -> Markup:
    lang = report.lang
    vouches = say(lang, "enclave_hardware" if each.protection == "hardware" else "not_hardware")
    verdict = say(lang, "enclave_accepted", keys=each.keys) if each.accepted else say(lang, "enclave_refused")
    return element(
        "tr",
        element("th", _name(report, each), scope="row"),
        element("td", f"{each.kind} · {vouches}"),
        element("td", element("code", each.package[:_DIGITS]) if each.package else "–"),
        element("td", verdict, class_="yes" if each.accepted else "no"),
    )


def _name(report: Report, each: Attestation) -> str:
    if not each.changed:
        return each.who
    return say(report.lang, "enclave_changed", who=each.who, changed=each.changed)


def _refusals(report: Report, enclave: Enclave) -> list[Markup]:
    """Return why somebody was refused, a line each."""
    separator = say(report.lang, "semicolon")
    return [
        element(
            "p",
            element("strong", _name(report, each)),
            " · ",
            say(report.lang, "enclave_because", reasons=separator.join(each.reasons)),
            class_="aside refused",
        )
        for each in enclave.attestations
        if not each.accepted
    ]


def _walls(report: Report, enclave: Enclave) -> Markup:
    if not enclave.walls:
        return Markup("")
    rows = [
        element("div", element("dt", name), element("dd", state)) for name, state in enclave.walls.items()
    ]
    return element(
        "div",
        element("h3", say(report.lang, "h_walls"), id="h-walls"),
        element("p", say(report.lang, "h_walls_note"), class_="note"),
        element("dl", *rows, class_="facts"),
        class_="block",
    )
