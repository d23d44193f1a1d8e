"""Sentences made from a report's facts.

Every claim here follows from a field of the report; what depends on a setting (what the hub may see) is read
from that setting. Nothing is claimed that the study did not do: no enclave, no proof of honest execution,
and no epsilon unless the report has `privacy`. What the certificate says in words comes from the certificate,
not from here.
"""

from __future__ import annotations

import msgspec

from cloister.report.model import Report, Sight, Verdict
from cloister.report.privacywords import epsilon_up, privacy_note, privacy_values
from cloister.report.texts import Language, say

__all__ = [
    "bytes_in_words",
    "count_in_words",
    "headline",
    "outcome",
    "percent",
    "percent_range",
    "points_in_words",
    "seconds_in_words",
    "with_words",
]

_ENGLISH = (
    "No",
    "One",
    "Two",
    "Three",
    "Four",
    "Five",
    "Six",
    "Seven",
    "Eight",
    "Nine",
    "Ten",
    "Eleven",
    "Twelve",
)
_CHINESE = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二")
_PARTIES = ("site", "hub", "network", "answerer", "asker", "reader")
_THINGS = ("rows", "update", "sum", "model", "question")


def percent(value: float, lang: Language) -> str:
    """Return a fraction as a percentage with one decimal: `96.5 %` (no-break space), `96.5%` in Chinese."""
    return f"{value * 100:.1f}" + ("%" if lang == "zh" else "\u00a0%")


def percent_range(low: float, high: float, lang: Language) -> str:
    """Return `91.2 – 95.3 %`, or one percentage where both read the same."""
    first, last = percent(low, lang), percent(high, lang)
    return last if first == last else f"{low * 100:.1f}\u2009–\u2009{last}"


def points_in_words(value: float, lang: Language) -> str:
    """Return the size of a difference of two fractions in points, without its sign."""
    return say(lang, "points", value=f"{abs(value) * 100:.1f}")


def count_in_words(count: int, lang: Language) -> str:
    """Return a small number as a word that opens a sentence, a larger one in digits."""
    words = _CHINESE if lang == "zh" else _ENGLISH
    return words[count] if 0 <= count < len(words) else str(count)


def seconds_in_words(seconds: float) -> str:
    """Return a duration: `340 ms`, `3.4 s`, `2 min 5 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}\u00a0ms"
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s"


def bytes_in_words(count: int) -> str:
    """Return a size in decimal units: `812 B`, `48.2 kB`, `1.6 MB`."""
    if count < 1000:
        return f"{count}\u00a0B"
    value, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.1f}\u00a0{units[0]}"


def headline(report: Report) -> str:
    """Return who trained what: `Four hospitals trained one model.`"""
    return say(
        report.lang,
        "trained",
        count=count_in_words(len(report.participants), report.lang),
        sites=report.subject.sites,
    )


def outcome(report: Report) -> str:
    """Return the accuracies in a sentence or two, leaving out what was not measured.

    Where the released model is private, others at the same privacy come first, and those without privacy
    are called so.
    """
    if report.privacy is not None:
        return _private_outcome(report)
    lang, metrics, subject = report.lang, report.metrics, report.subject
    parts = [say(lang, "unseen", rows=subject.rows, value=percent(metrics.federated, lang))]
    if metrics.local:
        low, high = _ends(metrics.local, lang)
        key = "alone_same" if low == high else "alone_each"
        parts.append(say(lang, key, site=subject.site, low=low, high=high))
    if metrics.centralised is not None:
        parts.append(say(lang, "one_place", value=percent(metrics.centralised, lang)))
    return "".join(parts) + say(lang, "stop")


def _private_outcome(report: Report) -> str:
    lang, metrics, subject, privacy = report.lang, report.metrics, report.subject, report.privacy
    if privacy is None:
        raise TypeError("the report claims no privacy")
    value, epsilon = percent(metrics.federated, lang), epsilon_up(privacy.claimed)
    told = say(lang, "unseen_private", rows=subject.rows, value=value, epsilon=epsilon)
    if privacy.baselines is not None and privacy.baselines.local:
        low, high = _ends(privacy.baselines.local, lang)
        told += say(lang, "alone_private", site=subject.site, low=low, high=high)
    told += say(lang, "stop")
    bare = []
    if metrics.local:
        low, high = _ends(metrics.local, lang)
        bare.append(say(lang, "without_alone", site=subject.site, low=low, high=high))
    if metrics.centralised is not None:
        bare.append(say(lang, "without_one_place", value=percent(metrics.centralised, lang)))
    if not bare:
        return told
    return told + say(lang, "without") + say(lang, "comma").join(bare) + say(lang, "stop")


def _ends(accuracies: dict[str, float], lang: Language) -> tuple[str, str]:
    return percent(min(accuracies.values()), lang), percent(max(accuracies.values()), lang)


def with_words(report: Report) -> Report:
    """Return the report with its sentences made anew from its facts, in its language."""
    return msgspec.structs.replace(
        report,
        headline=headline(report) + ("" if report.lang == "zh" else " ") + outcome(report),
        who_could_see_what=_sights(report),
        not_protected=_limits(report),
        privacy_note=privacy_note(report),
    )


def _sights(report: Report) -> tuple[Sight, ...]:
    """Party by thing: the hub's cells follow from `hub_view`; a site gets the sum from successive models.

    Under differential privacy whatever is opened has noise in it.
    """
    seen: Verdict = "sees" if report.privacy is None else "noised"
    hub: Verdict = seen if report.aggregation.hub_view == "sum" else "never"
    verdicts: dict[str, tuple[Verdict, ...]] = {
        "site": ("own", "own", seen, seen, "never"),
        "hub": ("never", "sealed", hub, hub, "never"),
        "network": ("never", "sealed", "sealed", "sealed", "sealed"),
        "answerer": ("never", "never", "never", seen, "sees"),
        "asker": ("never", "never", "never", "never", "own"),
        "reader": ("never", "never", "never", seen, "never"),
    }
    subject = msgspec.structs.asdict(report.subject)
    return tuple(
        Sight(say(report.lang, f"p_{party}", **subject), say(report.lang, f"w_{thing}"), verdict)
        for party in _PARTIES
        for thing, verdict in zip(_THINGS, verdicts[party], strict=True)
    )


def _limits(report: Report) -> tuple[str, ...]:
    privacy, sums = report.privacy, report.aggregation
    hub = "sum" if sums.hub_view == "sum" else "none"
    values = {"site": report.subject.site, "sites": report.subject.sites, "parties": str(sums.parties)}
    if privacy is None:
        order = ["model", hub, "colluders", "rosters"]
    else:
        values |= privacy_values(report, privacy)
        order = ["epsilon", "repeats", "sum_private" if hub == "sum" else hub, "colluders"]
        order += ["rosters_private"] if privacy.mode == "local" else ["noise", "rosters_private"]
    order += ["integrity", "answer", "quantum", "process"]
    if report.enclave is not None and report.enclave.protection != "hardware":
        order.insert(0, "enclave")
    if report.source.public_rows and (report.metrics.local or report.metrics.centralised is not None):
        order.append("public" if privacy is None else "public_private")
    values["colluders"] = str(sums.colluders)
    return tuple(say(report.lang, f"limit_{part}", **values) for part in order)
