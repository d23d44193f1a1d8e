"""The report of a private study: what must hold, what is said, and what is not shown."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.sample import SITES, claim, private_sample, sample

from cloister.errors import InputError
from cloister.report import (
    Audit,
    Baselines,
    Budget,
    EpsilonPoint,
    Metrics,
    Report,
    load_report,
    report_json,
    with_words,
    write_report,
)
from cloister.report.charts import accuracy_chart
from cloister.report.epsilonchart import epsilon_chart
from cloister.report.html import report_html
from cloister.report.privacysection import privacy_section
from cloister.report.privacywords import (
    delta_in_words,
    epsilon_down,
    epsilon_up,
    guess_bound,
    percent_up,
    told_privacy,
)
from cloister.report.words import outcome

NB = "\u00a0"


def _text(markup: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", markup, flags=re.DOTALL))


# --- what must hold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilon_hub": 3.1}, "must not be above"),
        ({"epsilon_hub": math.nan}, "must not be above"),
        ({"epsilon_colluders": math.inf}, "must not be above"),
        ({"epsilon": 2.9}, "above what the plan claims"),
        ({"epsilon": 2.3, "adversary": "hub"}, "above what the plan claims"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"rate": 0.0}, "sampling rate"),
        ({"rate": 1.5}, "sampling rate"),
        ({"budgets": claim().budgets * 2}, "twice"),
        ({"curve": tuple(reversed(claim().curve))}, "rise"),
        ({"curve": (claim().curve[0],) * 2}, "rise"),
    ],
)
def test_a_claim_that_does_not_hold_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        claim(**changes)


def test_the_plan_may_claim_the_smaller_epsilon_or_none() -> None:
    assert claim(adversary="hub", epsilon=2.4).claimed == claim().epsilon_hub
    assert claim(epsilon=None).claimed == claim().epsilon_colluders
    assert claim(epsilon_hub=3.0, epsilon_colluders=3.0, mode="local").claimed == 3.0


@pytest.mark.parametrize(("spent", "left", "delta"), [(6.1, 1.0, 1e-4), (1.0, 6.1, 1e-4), (1.0, 1.0, 0.0)])
def test_nobody_spends_or_keeps_more_than_the_cap(spent: float, left: float, delta: float) -> None:
    with pytest.raises(ValueError, match="cap"):
        Budget("harbour", 6.0, delta, spent, left, 0.5)


def test_an_attack_that_found_more_is_never_consistent() -> None:
    with pytest.raises(ValueError, match="violates"):
        Audit(3.0, 3.1, 0.95, 100, "consistent with the claim")
    assert Audit(3.0, 1.0, 0.95, 100, "violates the claim").bound == 1.0  # a check may fail without a bound


@pytest.mark.parametrize(
    "privacy",
    [
        claim(budgets=(Budget("stranger", 6.0, 1e-4, 1.0, 1.0, 0.1),)),
        claim(baselines=Baselines(0.9, {"stranger": 0.9}, 3)),
    ],
)
def test_privacy_names_participants_only(privacy: Any) -> None:
    with pytest.raises(ValueError, match="no participant"):
        sample(privacy=privacy)


CLOSED: dict[str, Any] = {
    "source": msgspec.structs.replace(sample().source, public_rows=False),
    "metrics": Metrics(0.9, None, {}),
    "testing": msgspec.structs.replace(sample().testing, federated_by_site={}, more={}),
    "curves": (),
    "privacy": claim(curve=(), baselines=None),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": claim(baselines=None)},
        {"privacy": claim(curve=())},
        {"curves": sample().curves},
        {"metrics": Metrics(0.9, 0.9, {})},
        {"metrics": Metrics(0.9, None, {"harbour": 0.9})},
        {"testing": msgspec.structs.replace(CLOSED["testing"], federated_by_site={"harbour": 0.9})},
        {"testing": msgspec.structs.replace(CLOSED["testing"], more={"auc": 0.9})},
    ],
)
def test_rows_that_are_not_public_have_no_curve_and_no_comparison(changes: dict[str, Any]) -> None:
    assert private_sample(**CLOSED).privacy is not None
    with pytest.raises(ValueError, match="not public"):
        private_sample(**(CLOSED | changes))


def test_written_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    told = write_report(tmp_path, private_sample())
    assert load_report(tmp_path / "report.json") == told
    assert told.privacy == claim()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"epsilon_hub": 2.3554', b'"epsilon_hub": 3.5'),
        (b'"spent_share": 0.326', b'"spent_share": 1.5'),
        (b'"verdict": "consistent with the claim"', b'"verdict": "private"'),
        (b'"mode": "distributed"', b'"mode": "central"'),
        (b'"bound": 1.3705', b'"bound": 9.0'),
        (b'"runs": 10', b'"runs": 0'),
    ],
)
def test_reading_checks_what_writing_checked(tmp_path: Path, old: bytes, new: bytes) -> None:
    data = report_json(private_sample())
    assert old in data
    (tmp_path / "report.json").write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match="not a report"):
        load_report(tmp_path / "report.json")


@pytest.mark.parametrize("changes", [{"noise_multiplier": -1.0}, {"clip": 0.0}, {"colluders": -1}])
def test_a_figure_out_of_range_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write_report(tmp_path / "out", private_sample(privacy=claim(**changes)))


# --- figures in words -------------------------------------------------------------------------------------


@given(st.floats(0.001, 50))
def test_bounds_are_rounded_away_from_what_looks_good(value: float) -> None:
    assert float(epsilon_up(value)) >= value - 1e-10
    assert float(epsilon_down(value)) <= value + 1e-10
    assert float(epsilon_up(value)) - float(epsilon_down(value)) <= 0.01 + 1e-9


def test_whole_figures_stay_whole() -> None:
    assert (epsilon_up(3.0), epsilon_down(4.24)) == ("3.00", "4.24")
    assert (percent_up(0.914, "en"), percent_up(0.9141, "zh")) == (f"91.4{NB}%", "91.5%")
    assert [delta_in_words(delta) for delta in (1e-4, 2e-5, 0.001, 1e-9)] == [
        "0.0001",
        "0.00002",
        "0.001",
        "1e-09",
    ]


@given(st.floats(0, 6), st.floats(0, 0.1))
def test_no_guess_of_randomised_response_beats_the_bound_and_one_reaches_it(
    epsilon: float, delta: float
) -> None:
    """The tight example: with delta the truth is shown, else the bit is flipped with odds e**epsilon."""
    right = delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    assert guess_bound(epsilon, delta) == pytest.approx(right, abs=1e-12)
    assert guess_bound(0.0, 0.0) == 0.5
    assert guess_bound(2000.0, 1e-4) == 1.0


# --- what is said -----------------------------------------------------------------------------------------


def test_the_outcome_puts_the_same_privacy_first_and_says_what_has_none() -> None:
    assert outcome(private_sample()) == (
        f"Its accuracy on patients it never saw: 96.5{NB}%, with privacy (epsilon 3.00); each hospital alone "
        f"with the same privacy: 71.2{NB}% to 92.5{NB}%. Without privacy: each hospital alone 91.2{NB}% to "
        f"95.3{NB}%, all rows in one place 97.1{NB}%."
    )
    assert outcome(private_sample(**CLOSED)) == (
        f"Its accuracy on patients it never saw: 90.0{NB}%, with privacy (epsilon 3.00)."
    )


def test_no_sentence_denies_a_claim_and_none_makes_one_where_there_is_none() -> None:
    private, plain = with_words(private_sample()), with_words(sample())
    lines = (*private.not_protected, private.privacy_note, private.headline)
    assert not any("No differential privacy" in line or "no epsilon" in line for line in lines)
    assert any("one of the patients" in line for line in private.not_protected)
    assert any("more than 1 of 4 hospitals" in line for line in private.not_protected)
    assert private.privacy_note.startswith("epsilon 2.36 against the hub and every reader, 3.00 with 1 of 4")
    assert any("No differential privacy" in line for line in plain.not_protected)
    assert "no epsilon" in plain.privacy_note
    page = _text(report_html(plain))
    assert "psilon, at most" not in page
    assert "gives away" not in page


def test_the_note_follows_the_claim_whatever_it_was_before() -> None:
    plain = with_words(sample())
    private = with_words(msgspec.structs.replace(plain, privacy=claim()))
    assert private.privacy_note.startswith("epsilon 2.36")
    assert with_words(private) == private


def test_what_is_opened_has_noise_in_it() -> None:
    told = with_words(private_sample())
    seen = {(sight.party, sight.what): sight.verdict for sight in told.who_could_see_what}
    assert seen["The hub", "Sum of updates"] == seen["The hub", "Model"] == "noised"
    assert seen["A reader of the release", "Model"] == "noised"
    assert seen["Who answers predictions", "A question and its answer"] == "sees"
    assert seen["The hub", "One site's update"] == "sealed"


def test_local_mode_has_one_epsilon_against_everybody() -> None:
    privacy = claim(mode="local", epsilon_hub=3.0, epsilon_colluders=3.0, curve=(), baselines=None)
    report = private_sample(privacy=privacy)
    assert told_privacy(report)[0] == "Privacy: epsilon 3.00 against everybody; delta 0.0001"
    assert _text(report_html(report)).count("ε ≤") == 1
    assert not any("tell the hub their noise" in line for line in with_words(report).not_protected)


def test_a_unit_column_is_named() -> None:
    page = _text(report_html(private_sample(privacy=claim(unit="device"))))
    assert "What this gives away about any one “device”" in page
    assert "one of the patients" not in page


def test_the_terminal_is_told_the_least_that_anybody_has_left() -> None:
    lines = told_privacy(private_sample())
    assert lines == [
        "Privacy: epsilon 2.36 against the hub and every reader, 3.00 with 1 of 4 hospitals helping the hub; "
        "delta 0.0001",
        "Budget of each hospital: epsilon 6 in all, 3.40 spent, 4.24 left for one more release",
    ]
    poor = Budget("meadow", 6.0, 2e-4, 5.8, 0.7, 0.9)
    budgets = (*claim().budgets[:3], poor)
    assert told_privacy(private_sample(privacy=claim(budgets=budgets)))[1].startswith(
        "Budget of meadow, the least left: epsilon 6 in all, 5.80 spent, 0.70 left"
    )
    assert told_privacy(private_sample(privacy=claim(budgets=()))) == lines[:1]
    assert told_privacy(sample()) == []


# --- the page ---------------------------------------------------------------------------------------------


def _shown(**changes: Any) -> str:
    report = private_sample(**changes)
    return _text(privacy_section(report))


def test_the_section_says_who_how_much_and_what_is_left() -> None:
    page = _shown()
    for said in (
        "Had any one of the patients been left out",
        "about 1 in 10,000",
        "Against the hub and every reader of the model",
        "Against a hub that 1 of 4 hospitals tell their noise",
        "ε ≤ 2.36",
        "ε ≤ 3.00",
        "the plan promises at most 3",
        f"in at most 91.4{NB}%",
        f"in at most 95.3{NB}%",
        f"32.6{NB}%",
        "delta of the caps: 0.0002",
        "1,008 made-up rows",
        "consistent with the claim",
        "only because this case declares its rows public",
    ):
        assert said in page, said
    assert page.count("4.24") == len(SITES)
    assert privacy_section(sample()) == ""


def test_without_an_audit_the_command_that_runs_one_is_shown() -> None:
    page = _shown(privacy=claim(audit=None))
    assert "None was run" in page
    assert "cloister audit out/release --trust out/trust" in page
    odd = _shown(privacy=claim(audit=None), verify_command="something else")
    assert "cloister audit RELEASE" in odd


def test_an_audit_that_refutes_the_claim_is_loud() -> None:
    markup = privacy_section(
        private_sample(privacy=claim(audit=Audit(3.0, 4.117, 0.95, 900, "violates the claim")))
    )
    assert "That violates the claim: do not rely on it." in markup
    assert 'class="verdict violated"' in markup
    assert "width: 100.0%" in markup
    assert "shown: at least 4.11" in markup


def test_without_public_rows_there_is_no_chart_and_a_reason() -> None:
    page = report_html(private_sample(**CLOSED))
    assert 'id="epsilon-wide-title"' not in page
    assert "these rows are not declared public" in page
    assert "only because" not in _text(page)


def test_a_curve_of_one_point_is_no_curve() -> None:
    privacy = claim(curve=claim().curve[:1])
    assert epsilon_chart(private_sample(privacy=privacy), privacy) == ""
    assert "What privacy costs" not in _shown(privacy=privacy)


@pytest.mark.parametrize("epsilons", [(0.001, 0.002), (0.5, 0.51), (3.0, 900.0), (1e-6, 1e6)])
@pytest.mark.parametrize(("accuracy", "deviation"), [(0.0, 0.0), (0.5, 0.7), (1.0, 0.0)])
def test_the_chart_holds_any_curve(epsilons: tuple[float, float], accuracy: float, deviation: float) -> None:
    privacy = claim(curve=tuple(EpsilonPoint(one, accuracy, deviation, 1) for one in epsilons))
    for metrics in (sample().metrics, Metrics(accuracy, None, {})):
        chart = epsilon_chart(private_sample(metrics=metrics), privacy)
        assert "this study" in chart
        assert ("without privacy" in chart) == (metrics.centralised is not None)


def test_the_chart_marks_the_study_and_the_training_without_privacy() -> None:
    chart = epsilon_chart(private_sample(), claim())
    assert chart.count("this study 96.5") == 2  # wide and narrow
    assert chart.count("without privacy 97.1") == 2
    assert "from 83.6" in chart
    assert "at epsilon 7.15" in chart


def test_the_accuracy_chart_shows_both_and_says_which_is_which() -> None:
    chart = accuracy_chart(private_sample())
    for figure in ("92.5", "94.7", "71.2", "91.2", "94.9", "97.1"):
        assert chart.count(f"{figure}{NB}%") >= 2, figure
    bare = accuracy_chart(private_sample(privacy=claim(baselines=None)))
    assert "without" in bare
    alone = accuracy_chart(private_sample(**CLOSED))
    assert "without</text>" not in alone


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_one_card_has_the_claimed_epsilon(lang: Literal["en", "zh"]) -> None:
    def card(**changes: Any) -> str:
        page = report_html(private_sample(lang=lang, **changes))
        found = re.search(r'<div class="epsilon">.*?</div>', page)
        assert found is not None
        return _text(found[0])

    assert "3.00" in card()
    assert "2.36" in card()
    assert card(privacy=claim(adversary="hub", epsilon=2.4)).split().index("2.36") < 6


def test_chinese() -> None:
    subject = msgspec.structs.replace(sample().subject, site="医院", sites="医院", rows="病人")
    report: Report = with_words(private_sample(lang="zh", subject=subject))
    page = _text(report_html(report))
    for said in (
        "关于单个病人，这会透露多少",
        "方案承诺至多 3",
        "每家医院用掉了多少",
        "隐私保护使准确率降低多少",
    ):
        assert said in page
    assert not re.search(
        r"[a-z]{3,} [a-z]{3,} [a-z]{3,}", _text(privacy_section(report)).replace("epsilon", "")
    )
    assert told_privacy(report)[0].startswith("隐私：面对中心和所有读者 epsilon 为 2.36")
