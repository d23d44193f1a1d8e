"""The parts of the page below the seven stages: charts, tables and lists, one function each."""

from __future__ import annotations

from cloister.report.charts import accuracy_chart, curves_chart
from cloister.report.markup import Markup, element
from cloister.report.model import Report
from cloister.report.parts import facts_list, section, table
from cloister.report.privacywords import epsilon_up
from cloister.report.texts import TEXTS, say
from cloister.report.words import percent

__all__ = [
    "about_section",
    "accuracy_section",
    "certificate_section",
    "curves_section",
    "limits_section",
    "sites_section",
    "verify_section",
    "who_sees_section",
]


def accuracy_section(report: Report) -> Markup:
    """Return what working together brought: one dot for each model."""
    lang, tests = report.lang, report.testing.rows
    step = say(lang, "points", value=f"{100 / tests:.1f}") if tests else "–"
    note = say(
        lang, "h_accuracy_note", tests=tests, rows=report.subject.rows, sites=report.subject.sites, step=step
    )
    privacy = report.privacy
    if privacy is not None and privacy.baselines is not None:
        runs, epsilon = privacy.baselines.runs, epsilon_up(privacy.claimed)
        note += say(lang, "h_accuracy_private", epsilon=epsilon, runs=runs)
    elif privacy is not None and (report.metrics.local or report.metrics.centralised is not None):
        note += say(lang, "h_accuracy_bare")
    return section("accuracy", say(lang, "h_accuracy"), accuracy_chart(report), note=note)


def curves_section(report: Report) -> Markup:
    """Return accuracy and loss by round; nothing where no round was measured."""
    chart = curves_chart(report)
    if not chart:
        return chart
    lang, study = report.lang, report.study
    note = say(lang, "h_curves_note", rounds=study.rounds, rows=report.subject.rows)
    if study.average_last > 1:
        note += say(lang, "averaged_note", count=study.average_last)
    return section("curves", say(report.lang, "h_curves"), chart, note=note)


def sites_section(report: Report) -> Markup:
    """Return the sites and their rows."""
    lang, measured = report.lang, report.testing.federated_by_site
    columns = ["site", "train_rows", "test_rows", *(["accuracy_here"] if measured else [])]
    head = element("tr", *(element("th", say(lang, key), scope="col") for key in columns))
    rows = []
    for one in report.participants:
        cells = [f"{one.rows:,}", f"{one.test_rows:,}"]
        if measured:
            cells.append(percent(measured[one.name], lang) if one.name in measured else "–")
        rows.append(
            element("tr", element("th", one.name, scope="row"), *(element("td", cell) for cell in cells))
        )
    note = "" if len(report.study.epochs) < 2 else _when(report)
    return section("sites", say(lang, "h_sites"), table("sites", head, rows, "numbers"), note=note)


def _when(report: Report) -> str:
    """Return who took part in which rounds, where that changed."""
    lang, epochs = report.lang, report.study.epochs
    entries = [
        say(lang, "epoch_when", first=each.first, last=each.last, sites=say(lang, "comma").join(each.sites))
        for each in epochs
    ]
    return say(lang, "epochs_note", count=len(epochs), when=say(lang, "semicolon").join(entries))


def who_sees_section(report: Report) -> Markup:
    """Return the table of parties and things."""
    lang = report.lang
    things = list(dict.fromkeys(sight.what for sight in report.who_could_see_what))
    parties = list(dict.fromkeys(sight.party for sight in report.who_could_see_what))
    cells = {(sight.party, sight.what): sight.verdict for sight in report.who_could_see_what}
    head = element(
        "tr",
        element("th", say(lang, "party"), scope="col"),
        *(element("th", thing, scope="col") for thing in things),
    )
    rows = [
        element(
            "tr",
            element("th", party, scope="row"),
            *(
                element(
                    "td",
                    element("span", say(lang, cells[party, thing]), class_=cells[party, thing]),
                    data_label=thing,
                )
                for thing in things
            ),
        )
        for party in parties
    ]
    view = say(lang, f"view_{report.aggregation.hub_view}")
    note = say(lang, "h_sees_note", view=view)
    if report.privacy is not None:
        note += say(lang, "h_sees_note_private")
    return section("sees", say(lang, "h_sees"), table("sees", head, rows, "matrix"), note=note)


def certificate_section(report: Report) -> Markup:
    """Return what the signed record says, and its digests."""
    lang, certificate, study = report.lang, report.certificate, report.study
    signed = say(
        lang,
        "cert_signed_value",
        hub=study.hub,
        count=certificate.cosignatures,
        sites=report.subject.sites,
        required=certificate.cosignatures_required,
    )
    facts = (
        ("cert_signed", signed),
        ("cert_file", element("code", certificate.path)),
        ("cert_file_sha", element("code", certificate.sha256)),
        ("cert_plan", element("code", study.plan_sha256)),
        ("cert_model", element("code", certificate.model_sha256)),
    )
    items = [element("li", sentence) for sentence in report.certificate_in_words]
    return section("certificate", say(lang, "h_certificate"), element("ul", *items), facts_list(lang, facts))


def limits_section(report: Report) -> Markup:
    """Return what this study does not protect."""
    items = [element("li", sentence) for sentence in report.not_protected]
    return section("limits", say(report.lang, "h_limits"), element("ul", *items))


def verify_section(report: Report) -> Markup:
    """Return the command that checks the release."""
    command = element("pre", element("code", report.verify_command), tabindex="0")
    return section("verify", say(report.lang, "h_verify"), command, note=say(report.lang, "verify_note"))


def about_section(report: Report) -> Markup:
    """Return source, licence, parameters and versions."""
    lang, sums, study = report.lang, report.aggregation, report.study
    rounds = say(
        lang,
        "rounds_value",
        rounds=study.rounds,
        attempts=study.attempts,
        fewest=study.fewest_sites,
        sites=report.subject.sites,
    )
    secure = say(
        lang,
        "secure_sum_value",
        n=sums.parties,
        c=sums.colluders,
        t=sums.threshold,
        m=sums.minimum,
        d=sums.tolerated_dropouts,
        bits=sums.bits,
    )
    measures = ", ".join(
        f"{say(lang, key) if (key := f'measure_{name}') in TEXTS else name} {value:.3f}"
        for name, value in report.testing.more.items()
        if value is not None
    )
    facts = (
        ("question", report.question),
        ("positive", report.subject.positive),
        ("source", report.source.text),
        ("licence", report.source.licence),
        ("rounds", rounds),
        ("secure_sum", secure),
        ("privacy", report.privacy_note),
        ("more_measures", measures),
        ("created", report.created),
        ("software", ", ".join(f"{name} {version}" for name, version in report.software.items())),
    )
    return section("about", say(lang, "h_about"), facts_list(lang, facts))
