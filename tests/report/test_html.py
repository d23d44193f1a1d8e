"""The page stands alone, runs nothing, and shows hostile names as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, Literal
from xml.etree import ElementTree

import msgspec
import pytest
from tests.report.sample import claim, private_sample, sample

from cloister.report import Epoch, Metrics, Participant, Report, with_words
from cloister.report.charts import accuracy_chart, curves_chart
from cloister.report.epsilonchart import epsilon_chart
from cloister.report.html import report_html
from cloister.report.markup import Markup, element, join

EVIL = (
    "</text></svg></title><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\" onload='x' --><b>$x_1$ {case}"
)
VOID = {"meta", "br", "hr", "link", "img", "input"}
HTML_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3", "p"),
    *("a", "ul", "ol", "li", "dl", "dt", "dd", "div", "span", "strong", "table", "thead", "tbody", "tr"),
    *("th", "td", "pre", "code"),
}
SVG_TAGS = {"svg", "g", "path", "rect", "circle", "text", "defs", "clippath", "use", "style", "tspan"}
HANDLER = re.compile(r"on[a-z]+\Z")


class _Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(page: str) -> _Page:
    reader = _Page()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def _poisoned(lang: Literal["en", "zh"]) -> Report:
    names = tuple(f"{EVIL}{number}" for number in range(4))
    clean = sample(names=names, lang=lang)
    subject = msgspec.structs.replace(clean.subject, site=EVIL, sites=EVIL, rows=EVIL, positive=EVIL)
    source = msgspec.structs.replace(clean.source, text=EVIL, licence=EVIL, note=EVIL)
    return msgspec.structs.replace(
        clean,
        **dict.fromkeys(("case", "title", "question", "created", "verify_command"), EVIL),
        certificate=msgspec.structs.replace(clean.certificate, path=EVIL),
        study=msgspec.structs.replace(clean.study, hub=EVIL),
        testing=msgspec.structs.replace(clean.testing, more={EVIL: 0.5}),
        subject=subject,
        source=source,
        software={EVIL: EVIL},
        warnings=(EVIL,),
        certificate_in_words=(EVIL,),
    )


def _private(lang: Literal["en", "zh"]) -> Report:
    return private_sample(lang=lang)


def _poisoned_private(lang: Literal["en", "zh"]) -> Report:
    report = _poisoned(lang)
    names = tuple(participant.name for participant in report.participants)
    return msgspec.structs.replace(report, privacy=claim(names, unit=EVIL, audit=None))


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(
    "make",
    [lambda lang: sample(lang=lang), _poisoned, _private, _poisoned_private],
    ids=["plain", "hostile", "private", "private and hostile"],
)
def test_the_page_holds_only_known_tags_and_no_handlers(lang: Literal["en", "zh"], make: Any) -> None:
    page = _read(report_html(make(lang)))
    assert page.tags <= HTML_TAGS | SVG_TAGS
    assert not [name for name, _ in page.attributes if HANDLER.match(name)]
    links = {value for name, value in page.attributes if name in ("href", "src", "xlink:href")}
    assert all(link is not None and link.startswith("#") for link in links)
    assert ("lang", "zh-CN" if lang == "zh" else "en") in page.attributes


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(("make", "least"), [(_poisoned, 20), (_poisoned_private, 45)])
def test_hostile_text_is_shown_as_text(lang: Literal["en", "zh"], make: Any, least: int) -> None:
    page = _read(report_html(make(lang)))
    assert page.text.count("<script>alert(1)</script>") >= least
    assert "{case}" in page.text


@pytest.mark.parametrize("make", [sample, private_sample])
def test_the_page_loads_nothing(make: Any) -> None:
    page = report_html(make())
    policies = [value or "" for name, value in _read(page).attributes if name == "content"]
    assert any("default-src 'none'" in policy and "script-src" not in policy for policy in policies)
    for needle in ("<script", "<link", "<img", "@import", "@font-face", "src=", "javascript:", "data:"):
        assert needle not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page))
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("make", [sample, private_sample])
def test_no_place_is_left_open_and_every_part_is_there(lang: Literal["en", "zh"], make: Any) -> None:
    text = _read(report_html(make(lang=lang))).text
    visible = text.split("}\n")[-1]
    assert not re.search(r"\{[a-z_]+\}", visible)
    told = with_words(make(lang=lang))
    for line in (*told.certificate_in_words, *told.not_protected, told.verify_command, *told.warnings):
        assert line in text
    for site in told.participants:
        assert site.name in text
    for digest in (told.certificate.sha256, told.certificate.model_sha256, told.study.plan_sha256):
        assert digest in text


@pytest.mark.parametrize("make", [sample, private_sample])
def test_ids_are_unique(make: Any) -> None:
    page = report_html(make())
    ids = [value for name, value in _read(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', page):
        assert target in ids


def test_without_baselines_there_are_no_empty_frames() -> None:
    testing = msgspec.structs.replace(sample().testing, federated_by_site={})
    report = sample(metrics=Metrics(0.9, None, {}), curves=(), testing=testing)
    text = _read(report_html(report)).text
    assert "How the model grew" not in text
    assert "Each alone" not in text
    assert "All in one place" not in text


def test_charts_are_wellformed_named_and_coloured_by_the_page() -> None:
    report = private_sample()
    charts = (accuracy_chart(sample()), curves_chart(sample()), accuracy_chart(report))
    for chart in (*charts, epsilon_chart(report, claim())):
        root = ElementTree.fromstring(chart)  # noqa: S314 (made here)
        drawings = list(root)
        assert [drawing.get("class") for drawing in drawings] == ["wide", "narrow"]
        for drawing in drawings:
            assert drawing.get("role") == "img"
            assert drawing[0].tag.endswith("title")
            assert (drawing[0].text or "").strip()
        assert not re.search(r"#0[1-6]0[1-6]0[1-6]", chart)
        assert "var(--accent)" in chart
        assert "<text" in chart


def test_charts_are_the_same_bytes_each_time() -> None:
    assert accuracy_chart(sample()) == accuracy_chart(sample())
    assert curves_chart(sample()) == curves_chart(sample())
    assert epsilon_chart(private_sample(), claim()) == epsilon_chart(private_sample(), claim())


@pytest.mark.parametrize("value", [0.0, 0.003, 0.5, 0.994, 1.0])
def test_charts_hold_any_accuracy(value: float) -> None:
    metrics = Metrics(value, value, dict.fromkeys(sample().metrics.local, value))
    assert "<text" in accuracy_chart(sample(metrics=metrics))
    points = tuple(msgspec.structs.replace(point, accuracy=value) for point in sample().curves)
    assert "<text" in curves_chart(sample(curves=points))


def test_long_names_are_shortened_in_the_chart_and_whole_in_the_table() -> None:
    names = tuple(f"{'long-' * 11}{number}" for number in range(4))
    report = sample(names=names)
    assert names[0] not in accuracy_chart(report)
    assert names[0] in report_html(report)


def test_curves_without_loss_or_with_gaps() -> None:
    curves = tuple(msgspec.structs.replace(point, loss=None) for point in sample().curves)
    assert "Loss" not in curves_chart(sample(curves=curves)).split("</title>")[-1]
    gap = (msgspec.structs.replace(sample().curves[0], accuracy=None), *sample().curves[1:])
    assert "<text" in curves_chart(sample(curves=gap))


def test_markup_escapes_by_default() -> None:
    assert element("p", "<b>", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;</p>'
    assert element("p", element("b", "x")) == "<p><b>x</b></p>"
    assert join(["<", Markup("<br>")]) == "&lt;<br>"
    assert element("meta", http_equiv="x") == '<meta http-equiv="x">'


def test_many_sites() -> None:
    names = [f"site{number:03d}" for number in range(40)]
    report = sample(
        participants=tuple(Participant(name, 10) for name in names),
        metrics=Metrics(0.9, 0.9, dict.fromkeys(names, 0.8)),
        testing=msgspec.structs.replace(sample().testing, federated_by_site=dict.fromkeys(names, 0.9)),
    )
    assert "40 hospitals trained one model." in report_html(report)


@pytest.mark.parametrize(
    ("lang", "said"), [("en", "set up 2 times: rounds 1 to 25 by"), ("zh", "第 26 至 40 轮")]
)
def test_who_took_part_when_is_said_where_it_changed(lang: Any, said: str) -> None:
    report = sample(lang=lang)
    names = tuple(participant.name for participant in report.participants)
    epochs = (Epoch(1, 25, names[:-1]), Epoch(26, 40, names[1:]))
    changed = msgspec.structs.replace(report, study=msgspec.structs.replace(report.study, epochs=epochs))
    assert said in report_html(changed)
    one = msgspec.structs.replace(report.study, epochs=(Epoch(1, 40, names),))
    assert said not in report_html(msgspec.structs.replace(report, study=one))
