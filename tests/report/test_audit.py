"""An audit's page and summary: the same facts in both languages, self-contained, nothing injected, nothing promised."""

from __future__ import annotations

import html
import re
import string
from html.parser import HTMLParser
from xml.etree import ElementTree

import msgspec
import pytest

from cloister.governance.audit import CONSISTENT, VIOLATES, AuditReport, CanaryFacts, ClaimFacts, judge
from cloister.learning.attacks import CHECKS, VIEWS, Bound, Check, Inversion, Membership
from cloister.report.audit import audit_html, audit_summary
from cloister.report.auditwords import AUDIT_TEXTS, say_audit
from cloister.report.texts import Language

LANGUAGES: tuple[Language, ...] = ("en", "zh")
BOUNDS = (
    Bound("white-box", "independent runs", 0.61, 0.975, 1000, 560),
    Bound("white-box", "f-DP", 0.42, 0.975, 300, 180),
    Bound("white-box", "f-DP, epsilon and delta", 0.3, 0.95, 300, 180),
    Bound("white-box", "Steinke", 0.31, 0.95, 300, 180),
    Bound("white-box", "one canary", 0.05, 0.95, 100, 57),
    Bound("black-box", "f-DP", 0.1, 0.95, 300, 160),
)


def report(*, holds: bool = True, bound: float = 0.61, claimed: float | None = 1.0) -> AuditReport:
    checks = tuple(Check(name, holds or name != "divisor", 1.0, 1.0, "x") for name in CHECKS)
    verdict, said = judge(claimed, bound, 0.95, checks)
    claimless = claimed is None
    return AuditReport(
        claimed=claimed,
        bound=None if claimless else bound,
        confidence=0.95,
        verdict=verdict,
        explanation=said,
        study="heart",
        plan="ab" * 32,
        hub_view="sum",
        rows="synthetic",
        claim=None
        if claimless
        else ClaimFacts(0.8, 1.0, 1e-5, "colluders", "record", "distributed", 3.5, 0.1, 53, 2),
        canaries=None if claimless else CanaryFacts(10, 100, 1000),
        bounds=() if claimless else BOUNDS,
        checks=() if claimless else checks,
        membership=Membership(80, 32, 0.56, 0.01, 0.53, 0.02, 0.13),
        inversion=tuple(Inversion(view, 16, 0.8, 0.7, 0.25, 0.05) for view in VIEWS),
        conditions=("One.",),
        seconds=4.2,
        created="2026-01-31T12:00:00Z",
    )


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br", "hr", "link"}:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> _Balanced:
    reader = _Balanced()
    reader.feed(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    return reader


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", ["consistent", "violates", "failed", "none", "own", "few"])
def test_every_kind_of_page_is_whole_and_loads_nothing(lang: Language, kind: str) -> None:
    made = {
        "consistent": report(),
        "violates": report(bound=1.7),
        "failed": report(holds=False),
        "none": report(claimed=None),
        "own": msgspec.structs.replace(report(), rows="own"),
        "few": msgspec.structs.replace(report(), membership=None),
    }[kind]
    page = audit_html(made, lang)
    reader = parsed(page)
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "<script" not in page
    assert "default-src 'none'" in html.unescape(page)
    assert f'lang="{"zh-CN" if lang == "zh" else "en"}"' in page
    assert say_audit(lang, made.verdict or "no claim") in "".join(reader.text)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_charts_are_well_formed_and_say_what_they_show(lang: Language) -> None:
    page = audit_html(report(), lang)
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)  # noqa: S314
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text
    bars = re.findall(r"<rect ", drawings[0])
    assert len(bars) == len(BOUNDS)
    assert "0.61" in drawings[0]


def test_every_figure_is_on_the_page() -> None:
    text = "".join(parsed(audit_html(report())).text)
    for figure in ("0.610", "560 / 1000", "56.0", "25.0", "53 steps", "3.5", "abab", "4.2"):
        assert figure in text, figure


def test_names_are_text_and_never_markup() -> None:
    page = audit_html(msgspec.structs.replace(report(), study="<b>x</b>"))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_summary_says_the_verdict_first_and_names_what_failed(lang: Language) -> None:
    fine, broken = audit_summary(report(), lang), audit_summary(report(holds=False), lang)
    assert fine.startswith(say_audit(lang, CONSISTENT))
    assert broken.startswith(say_audit(lang, VIOLATES))
    assert say_audit(lang, "divisor") in broken.splitlines()[0]
    assert audit_summary(report(claimed=None), lang).startswith(say_audit(lang, "no claim"))


def test_nothing_says_that_a_study_is_private() -> None:
    for made in (report(), report(claimed=None)):
        text = (audit_html(made) + audit_summary(made)).lower()
        assert not re.search(r"\bis private\b|\bproves\b|\bguarantee", text)


def test_both_languages_take_the_same_names() -> None:
    for key, text in AUDIT_TEXTS.items():
        names = [
            {name for _, name, _, _ in string.Formatter().parse(each) if name} for each in (text.en, text.zh)
        ]
        assert names[0] == names[1], key


def test_everything_that_a_report_names_has_words() -> None:
    for name in (
        *CHECKS,
        *VIEWS,
        CONSISTENT,
        VIOLATES,
        "white-box",
        "black-box",
        *(b.method for b in BOUNDS),
    ):
        for lang in LANGUAGES:
            assert say_audit(lang, name)
