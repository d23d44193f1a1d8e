"""The part of the page on differential privacy: the claim in plain words, budgets, accuracy, the attack.

Nothing is shown of a study that claims nothing; what it says of itself is then in the limits.
"""

from __future__ import annotations

from cloister.report.epsilonchart import epsilon_chart
from cloister.report.markup import Markup, element
from cloister.report.model import Report
from cloister.report.parts import section, table
from cloister.report.privacy import Audit, Budget, Privacy
from cloister.report.privacywords import (
    delta_in_words,
    epsilon_down,
    epsilon_up,
    guess_bound,
    percent_up,
    privacy_values,
)
from cloister.report.texts import say
from cloister.report.words import percent

__all__ = ["privacy_section"]


def privacy_section(report: Report) -> Markup:
    """Return what the study gives away about any one unit; nothing where no privacy is claimed."""
    privacy, lang = report.privacy, report.lang
    if privacy is None:
        return Markup("")
    values = privacy_values(report, privacy)
    how = say(
        lang,
        f"how_{privacy.mode}",
        site=report.subject.site,
        rate=percent(privacy.rate, lang),
        clip=f"{privacy.clip:g}",
        noise=f"{privacy.noise_multiplier:.3g}",
    )
    shown = "shown_public" if report.source.public_rows else "shown_private"
    return section(
        "given",
        say(lang, "h_given", **values),
        element("div", *_claims(report, privacy, values), class_="claims"),
        element("p", say(lang, "worst_case", **values), class_="aside"),
        element("p", how, class_="aside"),
        _budgets(report, privacy),
        _accuracy(report, privacy),
        _audit(report, privacy.audit),
        element("p", say(lang, shown), class_="aside shown"),
        note=say(lang, "h_given_note", **values, chance=f"{round(1 / privacy.delta):,}"),
    )


def _claims(report: Report, privacy: Privacy, values: dict[str, str]) -> list[Markup]:
    """Return a card for each adversary; in local mode there is one for all."""
    lang = report.lang
    if privacy.mode == "local":
        views = [("everybody", privacy.epsilon_colluders, True)]
    else:
        claimed = privacy.adversary
        views = [
            ("hub", privacy.epsilon_hub, claimed == "hub"),
            ("colluders", privacy.epsilon_colluders, claimed == "colluders"),
        ]
    cards = []
    for who, epsilon, promised in views:
        bound = guess_bound(epsilon, privacy.delta)
        told = [element("span", "ε ≤ ", epsilon_up(epsilon))]
        if promised and privacy.epsilon is not None:
            promise = say(lang, "promised", epsilon=f"{privacy.epsilon:g}")
            told += [Markup(" "), element("span", promise, class_="promised")]
        against = say(lang, f"who_{who}", **values)
        cards.append(
            element(
                "div",
                element("h3", against),
                element("p", *told, class_="epsilon"),
                element("p", say(lang, "guess", one=values["one"], value=percent_up(bound, lang))),
                _meter(report, bound),
                class_="claim",
            )
        )
    return cards


def _meter(report: Report, bound: float) -> Markup:
    """Return the chance of a right guess on a scale from a coin's toss to certainty."""
    lang = report.lang
    label = say(lang, "meter", value=percent_up(bound, lang))
    ends = element(
        "p", element("span", say(lang, "coin")), element("span", say(lang, "certain")), class_="ends"
    )
    return element("div", _bar((bound - 0.5) * 2, label), ends, class_="meter")


def _bar(part: float, label: str, kind: str = "bar") -> Markup:
    """Return a bar filled to a part in [0, 1]; its label is for who cannot see it."""
    width = f"{min(max(part, 0.0), 1.0) * 100:.1f}%"
    filled = element("span", style=f"width: {width}")
    return element("span", filled, class_=kind, role="img", aria_label=label)


def _block(title: str, *children: str, name: str) -> Markup:
    """Return a heading of the section and what belongs to it, which stay together on paper."""
    return element("div", element("h3", title, id=f"h-{name}"), *children, class_="block")


def _budgets(report: Report, privacy: Privacy) -> Markup:
    lang, budgets = report.lang, privacy.budgets
    if not budgets:
        return Markup("")
    columns = ("site", "budget_used", "budget_cap", "budget_spent", "budget_left")
    head = element("tr", *(element("th", say(lang, key), scope="col") for key in columns))
    rows = [_budget(report, budget) for budget in budgets]
    deltas = ", ".join(dict.fromkeys(delta_in_words(budget.cap_delta) for budget in budgets))
    note = say(lang, "h_budgets_note", site=report.subject.site, delta=deltas)
    return _block(
        say(lang, "h_budgets", site=report.subject.site),
        element("p", note, class_="note"),
        table("budgets", head, rows, "numbers budgets"),
        name="budgets",
    )


def _budget(report: Report, budget: Budget) -> Markup:
    used = percent_up(budget.spent_share, report.lang)
    label = f"{say(report.lang, 'budget_used')}: {used}"
    return element(
        "tr",
        element("th", budget.site, scope="row"),
        element("td", element("div", _bar(budget.spent_share, label), element("span", used), class_="used")),
        element("td", f"{budget.cap_epsilon:g}"),
        element("td", epsilon_up(budget.spent_epsilon)),
        element("td", epsilon_down(budget.left_epsilon)),
    )


def _accuracy(report: Report, privacy: Privacy) -> Markup:
    chart = epsilon_chart(report, privacy)
    if not chart:
        return chart
    lang = report.lang
    note = say(lang, "h_epsilon_note", runs=min(point.runs for point in privacy.curve))
    if report.metrics.centralised is not None:
        note += say(lang, "h_epsilon_line")
    return _block(say(lang, "h_epsilon"), element("p", note, class_="note"), chart, name="epsilon")


def _audit(report: Report, audit: Audit | None) -> Markup:
    """Return what an attack showed beside what is claimed, or how to run one."""
    lang = report.lang
    title = say(lang, "h_audit")
    if audit is None:
        command = element("pre", element("code", _audit_command(report)), tabindex="0")
        return _block(title, element("p", say(lang, "audit_none"), class_="note"), command, name="audit")
    bound, claimed = epsilon_down(audit.bound), epsilon_up(audit.claimed)
    violated = audit.verdict == "violates the claim"
    how = say(
        lang,
        "audit_how",
        canaries=f"{audit.canaries:,}",
        bound=bound,
        claimed=claimed,
        confidence=percent(audit.confidence, lang),
    )
    shown, most = say(lang, "audit_shown", bound=bound), say(lang, "audit_claimed", claimed=claimed)
    scale = element(
        "div",
        _bar(audit.bound / audit.claimed, f"{shown}; {most}", "bar violated" if violated else "bar"),
        element("p", element("span", shown), element("span", most), class_="ends"),
        class_="meter",
    )
    verdict = say(lang, "audit_violates" if violated else "audit_consistent")
    return _block(
        title,
        element("p", how, class_="note"),
        scale,
        element("p", verdict, class_="verdict violated" if violated else "verdict"),
        name="audit",
    )


def _audit_command(report: Report) -> str:
    """Return the command that attacks this release: it takes what the one that verifies takes."""
    verify = "cloister verify "
    given = report.verify_command
    return "cloister audit " + (given.removeprefix(verify) if given.startswith(verify) else "RELEASE")
