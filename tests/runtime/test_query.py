"""Private statistics wired to vaults and ledgers: one owner, and several sites under masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.runtime.asked import WITH_UNIT, close_ledgers, make_parties, make_vault, plan_for, rows, schema
from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity, keyring
from cloister.errors import InputError, PlanError, PolicyRefused, ProtocolError
from cloister.privacy.accounting import Event, epsilon, renyi
from cloister.privacy.ledger import Cap, Ledger, open_debit
from cloister.privacy.statistics import Query, QueryFile
from cloister.runtime import Burnt, RosterAgreed, Stalled
from cloister.runtime.query import FederatedQuery, QueryParty, ask
from cloister.runtime.queryplan import QueryPlan, describe

MEAN = Query(statistic="mean", column="age", by=("sex",), epsilon=0.5)
SHARED = QueryFile(
    queries=(
        Query(statistic="mean", column="age", by=("sex",)),
        Query(statistic="histogram", column="income", bins=4),
        Query(statistic="quantiles", column="age", levels=(0.5,)),
    ),
    epsilon=4.0,
    delta=1e-5,
)


@pytest.fixture(autouse=True)
def _ledgers_are_closed() -> Iterator[None]:
    yield
    close_ledgers()


class Purse:
    """A budget in memory: what was asked of it, in order."""

    def __init__(self, *, refuse: str = "") -> None:
        self.said: list[str] = []
        self.refuse = refuse

    def admit(self, plan: QueryPlan, events: Sequence[Event]) -> None:
        self._say("admit")

    def enter(self, attempt: int) -> None:
        self._say(f"enter {attempt}")

    def close(self) -> bytes | None:
        self._say("close")
        return None

    def _say(self, what: str) -> None:
        if what == self.refuse:
            raise PolicyRefused("the budget is spent")
        self.said.append(what)


def spent(ledger: Ledger) -> float:
    return ledger.status("people").spent.rdp


# --- one owner ------------------------------------------------------------------------------------------


def test_an_answer_is_paid_from_the_ledger(tmp_path: Path) -> None:
    (party,) = make_parties(tmp_path, [80])
    result = ask(MEAN, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    assert (result.epsilon, result.delta, result.populations) == (0.5, 0.0, ("people",))
    order = party.ledger.order("people")
    due = renyi(result.answers[0].events, order).rdp
    assert spent(party.ledger) == pytest.approx(due)
    ask(MEAN, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    assert spent(party.ledger) == pytest.approx(2 * due)
    (entry,) = party.ledger.status("people").entries
    assert (entry.name, entry.count) == ("mean of age by sex, rows", 2)


def test_a_file_is_paid_at_once_or_not_at_all(tmp_path: Path) -> None:
    (party,) = make_parties(tmp_path, [80], cap=Cap.of(1.0, 1e-4))
    file = QueryFile(queries=SHARED.queries, epsilon=0.4)
    result = ask(file, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    assert len(result.answers) == 3
    before = spent(party.ledger)
    with pytest.raises(PolicyRefused):
        ask(
            QueryFile(queries=SHARED.queries, epsilon=10.0),
            party.vault,
            "rows",
            purpose=PURPOSE,
            ledger=party.ledger,
        )
    assert spent(party.ledger) == before


def test_nothing_is_shown_where_the_ledger_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The debit comes before noise is drawn: what fails on the way shows nothing."""
    from cloister.privacy.statistics import Release

    (party,) = make_parties(tmp_path, [80])
    order: list[str] = []
    publish = Release.publish
    monkeypatch.setattr(Release, "publish", lambda *args: order.append("publish") or publish(*args))
    monkeypatch.setattr(Ledger, "spend", lambda *args: order.append("spend"))
    ask(MEAN, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    assert order == ["spend", "publish"]

    def full(*args: object) -> None:
        raise PolicyRefused("the budget is spent")

    order.clear()
    monkeypatch.setattr(Ledger, "spend", full)
    with pytest.raises(PolicyRefused):
        ask(MEAN, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    assert order == []


def test_the_same_rows_under_another_name_pay_from_the_same_budget(tmp_path: Path) -> None:
    (party,) = make_parties(tmp_path, [80])
    party.vault.add_table(rows(80, 0), name="again", schema=schema(), purposes=[PURPOSE])
    ask(MEAN, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger)
    once = spent(party.ledger)
    result = ask(MEAN, party.vault, "again", purpose=PURPOSE, ledger=party.ledger)
    assert result.populations == ("people",)
    assert spent(party.ledger) == pytest.approx(2 * once)


def test_rows_without_a_budget_and_a_wrong_purpose_are_refused(tmp_path: Path) -> None:
    identity = Identity.generate("owner")
    vault = make_vault(tmp_path / "vault", identity, rows(40, 3))
    with Ledger.open(tmp_path / "ledger", identity) as ledger:
        with pytest.raises(PolicyRefused, match="budget"):
            ask(MEAN, vault, "rows", purpose=PURPOSE, ledger=ledger)
        with pytest.raises(PolicyRefused, match="may not be used"):
            ask(MEAN, vault, "rows", purpose="marketing", ledger=ledger)


@pytest.mark.parametrize(
    "query",
    [
        Query(statistic="mean", column="wage", epsilon=1.0),
        Query(statistic="mean", column="note", epsilon=1.0),
        Query(statistic="count", by=("note",), epsilon=1.0),
        Query(statistic="count", epsilon=1.0, delta=0.05),
    ],
)
def test_bad_input_is_told_before_anything_is_opened_or_paid(tmp_path: Path, query: Query) -> None:
    (party,) = make_parties(tmp_path, [40])
    with pytest.raises(InputError):
        ask(query, party.vault, "rows", purpose="marketing", ledger=party.ledger)
    assert spent(party.ledger) == 0.0


def test_a_unit_column_makes_the_answer_per_unit(tmp_path: Path) -> None:
    (party,) = make_parties(tmp_path, [90], text=WITH_UNIT, people=30)
    people = len(set(rows(90, 0, people=30)["person"].to_pylist()))
    query = Query(statistic="count", epsilon=8.0)
    (answer,) = ask(query, party.vault, "rows", purpose=PURPOSE, ledger=party.ledger).answers
    assert answer.value == pytest.approx(people, abs=5)
    assert "each person" in answer.protects


def test_a_schema_is_described_without_identifiers_and_text() -> None:
    declared = describe(schema(WITH_UNIT), 10)
    assert set(declared.columns) == {"age", "income", "sex", "ill"}
    assert declared.unit == "person"
    assert declared.columns["income"].missing
    assert not declared.columns["age"].missing


# --- several sites --------------------------------------------------------------------------------------


def federated(
    tmp_path: Path, sizes: Sequence[int], queries: Query | QueryFile = SHARED, **fields: Any
) -> tuple[FederatedQuery, list[QueryParty]]:
    cap, text, people = fields.pop("cap", None), fields.pop("text", None), fields.pop("people", None)
    budgets = fields.pop("budgets", None)
    more = {"text": text} if text else {}
    parties = make_parties(tmp_path, sizes, cap=cap, people=people, **more)
    hub = Identity.generate("hub")
    return FederatedQuery(plan_for(hub, parties, queries, **fields), hub, parties, budgets=budgets), parties


def test_three_sites_answer_together_and_each_pays(tmp_path: Path) -> None:
    query, parties = federated(tmp_path, [60, 70, 80])
    result = query.run()
    assert result.survivors == ("site0", "site1", "site2")
    assert (result.rows, result.attempts, result.transport) == (210, 1, "memory")
    assert 3.99 <= result.epsilon == result.epsilon_colluders <= 4.0
    assert result.epsilon_hub < result.epsilon_colluders
    data = [rows(size, seed).to_pylist() for seed, size in enumerate((60, 70, 80))]
    ages = {
        sex: np.mean([row["age"] for part in data for row in part if row["sex"] == sex])
        for sex in ("female", "male")
    }
    for cell in result.answers[0].cells:
        wide = cell.high - cell.low
        assert cell.low - wide <= ages[str(cell.group["sex"])] <= cell.high + wide
    due = [event for answer in result.answers for event in answer.events]
    assert epsilon(due, 1e-5) == result.epsilon
    for party in parties:
        assert spent(party.ledger) == pytest.approx(renyi(due, party.ledger.order("people")).rdp, rel=1e-9)
        assert party.ledger.status("people").reserved.rdp == 0.0
        debit = open_debit(result.debits[party.identity.name], keyring([party.identity.public]))
        assert (debit.study, debit.started, debit.blocks) == (result.plan.digest.hex(), 1, 1)
    assert all(site.answers == result.answers for site in query.sites.values())


def test_the_hub_alone_as_adversary_gives_more_for_the_same_epsilon(tmp_path: Path) -> None:
    one = Query(statistic="count", by=("sex",), epsilon=1.0, delta=1e-5)
    careful = federated(tmp_path / "a", [50, 50, 50, 50], one)[0].run()
    trusting = federated(tmp_path / "b", [50, 50, 50, 50], one, adversary="hub")[0].run()
    assert trusting.epsilon == trusting.epsilon_hub <= 1.0 < trusting.epsilon_colluders
    assert trusting.answers[0].cells[0].error < careful.answers[0].cells[0].error


def test_a_site_that_falls_silent_after_the_set_up_is_left_out(tmp_path: Path) -> None:
    query, parties = federated(tmp_path, [50, 60, 70, 80])
    events: list[object] = []
    lose(query, "site2", after="RoundStart")
    result = query.run(events.append)
    assert result.survivors == ("site0", "site1", "site3")
    assert result.rows == 50 + 60 + 80
    assert set(result.debits) == {"site0", "site1", "site3"}
    assert spent(parties[2].ledger) > 0.0  # it may have been on its way: a debit is not taken back


def test_a_site_that_falls_silent_in_the_set_up_means_a_new_roster(tmp_path: Path) -> None:
    query, parties = federated(tmp_path, [50, 60, 70, 80])
    events: list[object] = []
    lose(query, "site1", after="RosterOffer")
    result = query.run(events.append)
    agreed = [event for event in events if isinstance(event, RosterAgreed)]
    assert agreed[-1].members == result.survivors == ("site0", "site2", "site3")
    assert spent(parties[1].ledger) == 0.0
    assert parties[1].ledger.status("people").reserved.rdp == 0.0


def test_with_too_few_left_the_query_stops_and_says_so(tmp_path: Path) -> None:
    query, _ = federated(tmp_path, [50, 60, 70])
    events: list[object] = []
    lose(query, "site1", after="RoundStart")
    with pytest.raises(ProtocolError, match="waited 10 deadlines for site1"):
        query.run(events.append)
    assert any(isinstance(event, Stalled) for event in events)


def test_a_burnt_attempt_is_paid_and_the_next_one_has_fresh_noise(tmp_path: Path) -> None:
    purses = {f"site{number}": Purse() for number in range(4)}
    query, _ = federated(tmp_path, [50, 60, 70, 80], attempts=2, budgets=purses)
    events: list[object] = []
    hold_answers(query, {"site2", "site3"})
    result = query.run(events.append)
    assert [event.attempt for event in events if isinstance(event, Burnt)] == [0]
    assert result.attempts == 2
    for purse in purses.values():
        assert purse.said[:3] == ["admit", "enter 0", "enter 1"]


def lose(query: FederatedQuery, name: str, *, after: str) -> None:
    """From the first message of this kind on, `name` gets and sends nothing."""
    site, end = query.sites[name], query._ends[name]
    handle, take = site._handle, end.take
    lost = False

    def on_handle(message: Any) -> Any:
        nonlocal lost
        replies = handle(message)
        lost = lost or type(message).__name__ == after
        if not lost:
            return replies
        end.link.close()
        return []

    def on_take(datagram: bytes, now: float) -> None:
        if not lost:
            take(datagram, now)

    site._handle = on_handle  # type: ignore[method-assign]
    end.take = on_take  # type: ignore[method-assign]


def hold_answers(query: FederatedQuery, names: set[str]) -> None:
    """Let these sites not answer the requests of the first attempt."""
    for name in names:
        site = query.sites[name]
        handle = site._handle

        def on_handle(message: Any, handle: Any = handle) -> Any:
            if type(message).__name__ == "Request" and message.attempt == 0:
                return []
            return handle(message)

        site._handle = on_handle  # type: ignore[method-assign]


def test_a_budget_that_refuses_at_one_site_stops_before_anybody_pays(tmp_path: Path) -> None:
    query, parties = federated(tmp_path, [50, 60, 70], cap=[None, Cap.of(1.0, 1e-4), None])
    with pytest.raises(PolicyRefused) as caught:
        query.run()
    assert "site1" in str(caught.value)
    for party in parties:
        assert spent(party.ledger) == 0.0
        assert party.ledger.status("people").reserved.rdp == 0.0


def test_rows_are_read_and_sent_only_after_the_debit(tmp_path: Path) -> None:
    purses = {f"site{number}": Purse(refuse="enter 0" if number == 1 else "") for number in range(3)}
    query, _ = federated(tmp_path, [50, 60, 70], budgets=purses)
    opened: list[str] = []
    for name, site in query.sites.items():
        sums = site._sums

        def watched(*asked: Any, name: str = name, sums: Any = sums) -> Any:
            assert purses[name].said[-1] == "enter 0"
            opened.append(name)
            return sums(*asked)

        site._sums = watched
    with pytest.raises(PolicyRefused):
        query.run()
    assert "site1" not in opened


def test_the_same_plan_is_not_answered_twice_for_one_payment(tmp_path: Path) -> None:
    query, parties = federated(tmp_path, [50, 60, 70])
    query.run()
    once = spent(parties[0].ledger)
    again = FederatedQuery(query.plan, query_hub(query), parties)
    again.run()
    assert spent(parties[0].ledger) == pytest.approx(2 * once)


def query_hub(query: FederatedQuery) -> Identity:
    return query.hub._identity


def test_units_are_bounded_over_sites_too(tmp_path: Path) -> None:
    one = Query(statistic="count", epsilon=2.0, delta=1e-5)
    with pytest.raises(PlanError, match="at how many sites"):
        federated(tmp_path / "unsaid", [60, 60, 60], one, text=WITH_UNIT, people=20)
    query, parties = federated(
        tmp_path / "said", [60, 60, 60], one, text=WITH_UNIT, people=20, sites_per_unit=1
    )
    result = query.run()
    people = sum(len(set(rows(60, seed, people=20)["person"].to_pylist())) for seed in range(3))
    assert result.answers[0].value == pytest.approx(people, abs=60)
    twice = plan_for(query_hub(query), parties, one, sites_per_unit=2)
    release = twice.release(schema(WITH_UNIT), 3)
    plain = query.plan.release(schema(WITH_UNIT), 3)
    assert release.items[0].share > 3.9 * plain.items[0].share


# --- what is refused ------------------------------------------------------------------------------------


def test_plans_that_fit_nobody_are_refused(tmp_path: Path) -> None:
    parties = make_parties(tmp_path, [40, 40, 40])
    hub = Identity.generate("hub")
    with pytest.raises(PlanError, match="third site"):
        plan_for(hub, parties[:2], SHARED)
    (other,) = make_parties(tmp_path / "other", [40], text=WITH_UNIT, people=5)
    with pytest.raises(PlanError, match="another schema"):
        plan_for(hub, [*parties[:2], other], SHARED)
    with pytest.raises(InputError, match="no delta"):
        FederatedQuery(plan_for(hub, parties, MEAN), hub, parties)
    plan = plan_for(hub, parties, SHARED)
    for fields in (
        {"sites": (*plan.sites, plan.sites[0])},
        {"attempts": 0},
        {"deadline_seconds": float("nan")},
        {"colluders": 2},
    ):
        with pytest.raises(InputError):
            msgspec.structs.replace(plan, **fields)
    assert QueryPlan.read(msgspec.json.encode(plan)) == plan
    with pytest.raises(InputError):
        QueryPlan.read(b'{"purpose": 1}')


def test_a_site_refuses_what_its_owner_did_not_agree_to(tmp_path: Path) -> None:
    parties = make_parties(tmp_path, [40, 40, 40])
    hub, stranger = Identity.generate("hub"), Identity.generate("stranger")
    plan = plan_for(hub, parties, SHARED)
    with pytest.raises(PolicyRefused, match="hub is not the one"):
        FederatedQuery(plan, stranger, parties)
    wrong = msgspec.structs.replace(
        plan, sites=(msgspec.structs.replace(plan.sites[0], rows=41), *plan.sites[1:])
    )
    with pytest.raises(PolicyRefused, match="another number of rows"):
        FederatedQuery(wrong, hub, parties)
    distrusting = QueryParty(parties[0].identity, parties[0].vault, parties[0].ledger, ())
    with pytest.raises(PolicyRefused, match="does not trust"):
        FederatedQuery(plan, hub, [distrusting, *parties[1:]]).run()
    assert all(spent(party.ledger) == 0.0 for party in parties)
    assert all(party.ledger.status("people").reserved.rdp == 0.0 for party in parties)
