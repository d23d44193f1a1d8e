"""Attacks on private statistics: more answers than the budget, one row's trace in an answer, the hub's view."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.privacy.statistics.tables import declarations, table
from tests.runtime.asked import OPEN, close_ledgers, make_parties, make_vault, plan_for, rows, schema
from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity
from cloister.errors import InputError, PlanError, PolicyRefused, ProtocolError
from cloister.privacy.accounting import renyi
from cloister.privacy.ledger import Cap, Ledger
from cloister.privacy.mechanisms import DiscreteGaussian
from cloister.privacy.statistics import FederatedRelease, Federation, Query, QueryFile, Release
from cloister.privacy.statistics.noise import LaplaceNoise
from cloister.runtime import querysite
from cloister.runtime.messages import Message, RoundStart, Upload, encode_message
from cloister.runtime.query import FederatedQuery, ask
from cloister.runtime.queryplan import QueryMember, QueryPlan
from cloister.runtime.sumhub import SumHub

pytest.importorskip("opendp")


@pytest.fixture(autouse=True)
def _ledgers_are_closed() -> Iterator[None]:
    yield
    close_ledgers()


# --- the budget ------------------------------------------------------------------------------------------


def test_differencing_and_averaging_end_where_the_budget_does(tmp_path: Path) -> None:
    """A victim's row is in one dataset and not in the other; both pay from one budget, so their difference is
    never known better than the cap allows, however often it is asked for."""
    identity = Identity.generate("owner")
    everybody = rows(60, 1)
    vault = make_vault(tmp_path / "vault", identity, everybody)
    vault.add_table(everybody.slice(1), name="without", schema=schema(), purposes=[PURPOSE])
    ledger = Ledger.open(tmp_path / "ledger", identity)
    OPEN.append(ledger)
    cap = Cap.of(1.0, 1e-4)
    ledger.declare("people", cap)
    ledger.bind("people", vault.manifest("rows").dataset_id, vault.fingerprints("rows"))
    answers: dict[str, list[float]] = {"rows": [], "without": []}
    query = Query(statistic="sum", column="age", epsilon=0.05)
    refused = False
    for turn in range(400):
        name = ("rows", "without")[turn % 2]
        try:
            result = ask(query, vault, name, purpose=PURPOSE, ledger=ledger)
        except PolicyRefused:
            refused = True
            break
        assert result.populations == ("people",)
        answers[name].append(result.answers[0].value)
    assert refused
    status = ledger.status("people")
    assert status.spent.rdp <= cap.rdp
    assert status.epsilon_spent <= cap.epsilon
    # the best that averaging gives: the victim's age (0 to 120) stays hidden in noise far wider than that
    asked = len(answers["without"])
    deviation = math.sqrt(2 * 2 * (60.0 / 0.05) ** 2 / asked)
    assert deviation > 120.0


def test_a_second_answer_from_the_same_sums_is_refused() -> None:
    data = table(50)
    release = Release.plan(Query(statistic="count", epsilon=1.0), declarations(50))
    measured = release.measure(data)
    release.publish(measured)
    with pytest.raises(InputError):
        release.publish(measured)


# --- one row's trace -------------------------------------------------------------------------------------

EPSILON = 0.7
TRIALS = 60_000


def laplace_outputs(present: bool, *, scale: float = 1.0) -> np.ndarray:
    """A count's published values about the same rows, with and without one."""
    from cloister.privacy.statistics import central

    data = table(20, people=20)
    data = data if present else data.slice(1)
    query = Query(statistic="count", column="age", epsilon=EPSILON)
    release = Release.plan(query, declarations(data.num_rows))
    (vector,) = release.measure(data).vectors
    noise = release.items[0].noise
    assert isinstance(noise, LaplaceNoise)
    return central.laplace(np.repeat(vector, TRIALS), noise.scale * scale)


def worst_ratio(one: np.ndarray, other: np.ndarray) -> float:
    """Log of the largest ratio of frequencies, less three standard errors, over values that are frequent."""
    values = range(int(min(one.min(), other.min())), int(max(one.max(), other.max())) + 1)
    worst = 0.0
    for value in values:
        a, b = int((one == value).sum()), int((other == value).sum())
        if min(a, b) >= 200:
            worst = max(worst, abs(math.log(a / b)) - 3.5 * math.sqrt(1 / a + 1 / b))
    return worst


def test_one_row_shifts_a_count_within_what_epsilon_allows_and_by_that_much() -> None:
    with_row, without = laplace_outputs(True), laplace_outputs(False)
    assert worst_ratio(with_row, without) <= EPSILON
    # the attack is not blind: the row does show, to nearly the stated extent
    assert with_row.mean() - without.mean() == pytest.approx(1.0, abs=0.1)
    assert math.log((with_row >= 20).mean() / (without >= 20).mean()) > 0.5 * EPSILON


def test_half_the_noise_would_be_caught() -> None:
    assert worst_ratio(laplace_outputs(True, scale=0.5), laplace_outputs(False, scale=0.5)) > EPSILON


def test_one_row_shifts_a_federated_sum_within_what_epsilon_and_delta_allow() -> None:
    """Against the hub with its colluder: what is left is a row's part and the noise of the counted shares."""
    epsilon, delta, draws = 1.0, 1e-3, 100_000
    federation = Federation(sites=3, minimum=3, colluders=1)
    query = QueryFile(queries=(Query(statistic="count", column="age"),), epsilon=epsilon, delta=delta)
    release = FederatedRelease.plan(query, declarations(60), federation)
    (item,) = release.items

    def left(row: int, shares: int) -> np.ndarray:
        noise = sum(DiscreteGaussian(item.share).sample(draws) for _ in range(shares))
        return np.asarray(row * item.grid + noise, dtype=float)

    def excess(a: np.ndarray, b: np.ndarray) -> float:
        """The largest P(a > t) - e^epsilon P(b > t), less three standard errors."""
        thresholds = np.quantile(b, np.linspace(0.01, 0.9999, 200))
        above_a, above_b = (1 - np.searchsorted(np.sort(x), thresholds, "right") / draws for x in (a, b))
        error = np.sqrt((above_a + math.exp(2 * epsilon) * above_b) / draws)
        return float((above_a - math.exp(epsilon) * above_b - 3 * error).max())

    counted = federation.counted("colluders")
    assert counted == 2
    assert excess(left(1, counted), left(0, counted)) <= delta
    assert excess(-left(0, counted), -left(1, counted)) <= delta
    # a share that is missing would be caught
    assert excess(left(1, counted - 1), left(0, counted - 1)) > delta


def test_a_group_that_one_row_makes_looks_like_one_that_none_does() -> None:
    """Cells come from declarations: the keys of an answer never tell whether anybody is in them."""
    data = table(100)
    empty = data.filter(pa.compute.not_equal(data["sex"], "male"))
    query = Query(statistic="mean", column="age", by=("ward", "sex"), epsilon=1.0)
    keys = []
    for each in (data, empty):
        release = Release.plan(query, declarations(each.num_rows))
        (answer,) = release.publish(release.measure(each))
        keys.append([cell.group for cell in answer.cells])
    assert keys[0] == keys[1]


# --- the hub's view --------------------------------------------------------------------------------------

ASKED = QueryFile(
    queries=(Query(statistic="histogram", column="income", bins=200), Query(statistic="sum", column="age")),
    epsilon=2.0,
    delta=1e-5,
)


def test_the_hub_holds_no_sites_value_but_the_noisy_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = make_parties(tmp_path, [50, 60, 70])
    hub = Identity.generate("hub")
    handle, noised = SumHub.handle, FederatedRelease.noised
    seen: list[Any] = []
    given: list[np.ndarray] = []
    exact: list[np.ndarray] = []

    def see(self: SumHub[Any], peer: str, message: Message, now: float) -> Any:
        seen.append((encode_message(message), message))
        return handle(self, peer, message, now)

    def give(self: FederatedRelease, sums: list[np.ndarray], **more: Any) -> np.ndarray:
        exact.append(np.concatenate(sums).astype(np.uint32))
        vector = noised(self, sums, **more)
        given.append(vector)
        return vector

    monkeypatch.setattr(SumHub, "handle", see)
    monkeypatch.setattr(FederatedRelease, "noised", give)
    query = FederatedQuery(plan_for(hub, parties, ASKED), hub, parties)
    totals: list[np.ndarray] = []
    on_sum = query.hub._on_sum
    monkeypatch.setattr(
        query.hub, "_on_sum", lambda result, now: totals.append(result.total) or on_sum(result, now)
    )
    query.run()
    assert len(given) == 3
    np.testing.assert_array_equal(totals[0], np.sum(given, axis=0, dtype=np.uint32))
    for payload, _ in seen:
        for vector in (*given, *exact):
            assert vector.astype("<u4").tobytes() not in payload
            assert vector[:8].astype("<u4").tobytes() not in payload
    uploads = [message.body for _, message in seen if isinstance(message, Upload)]
    assert len(uploads) == 3
    # masked: the bytes are uniform, whatever the counts are (most of them small)
    size = given[0].size * 4
    counts = np.bincount(np.frombuffer(b"".join(body[-size:] for body in uploads), np.uint8), minlength=256)
    expected = counts.sum() / 256
    statistic = float((np.square(counts - expected) / expected).sum())
    assert statistic < 255 + 6 * math.sqrt(2 * 255)
    # and an upload says nothing of its vector: their difference is far from small
    for body, vector in zip(uploads, given, strict=True):
        masked = np.frombuffer(body[-size:], "<u4")
        assert np.count_nonzero(masked == vector) <= 2


def test_a_hub_that_starts_an_attempt_again_gets_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two vectors of one site with different noise would average it away; each attempt is used, and paid, once."""
    parties = make_parties(tmp_path, [50, 60, 70])
    hub = Identity.generate("hub")
    query = FederatedQuery(plan_for(hub, parties, ASKED, attempts=2), hub, parties)
    answers: list[str] = []
    handle = querysite.QuerySite._handle

    def twice(self: querysite.QuerySite, message: Any) -> Any:
        replies = handle(self, message)
        if isinstance(message, RoundStart):
            with pytest.raises(ProtocolError):
                handle(self, message)
            with pytest.raises(ProtocolError):
                handle(self, RoundStart(0, 2))
            answers.append(self.name)
        return replies

    monkeypatch.setattr(querysite.QuerySite, "_handle", twice)
    query.run()
    assert len(answers) == 3
    for party in parties:
        (entry,) = party.ledger.status("people").entries
        assert entry.count == 1


def test_nothing_private_is_in_a_representation_or_a_refusal(tmp_path: Path) -> None:
    parties = make_parties(tmp_path, [50, 60, 70])
    hub = Identity.generate("hub")
    query = FederatedQuery(plan_for(hub, parties, ASKED), hub, parties)
    release = Release.plan(Query(statistic="sum", column="age", epsilon=1.0), declarations(50))
    measured = release.measure(table(50))
    shown = [repr(site) for site in query.sites.values()] + [repr(query.hub), repr(measured)]
    exact = str(int(measured.vectors[0][0]))
    assert all(exact not in text and "note" not in text for text in shown)


def members_of(count: int) -> tuple[QueryMember, ...]:
    return tuple(QueryMember(f"site{n}", f"{n:064x}", "rows", 100) for n in range(1, count + 1))


def test_a_hub_gains_no_trust_by_leaving_sites_out() -> None:
    """The hub proposes the roster: if the colluders that are feared were counted from it, three sites of
    nine would be enough to be asked alone, two of them the hub's."""
    query = QueryFile(queries=(Query(statistic="count"),), epsilon=1.0, delta=1e-6)
    plan = QueryPlan(
        purpose=PURPOSE,
        hub=QueryMember("hub", "f" * 64),
        sites=members_of(9),
        schema=schema().digest().hex(),
        queries=query,
    )
    assert plan.params(9).colluders == 2
    with pytest.raises(PlanError):
        plan.params(3)
    assert [plan.params(n).colluders for n in range(4, 9)] == [2] * 5
    assert plan.federation(4).counted("colluders") == 2


@pytest.mark.parametrize("adversary", ["hub", "colluders"])
def test_the_ledger_pays_for_the_larger_view_whatever_epsilon_speaks_of(
    tmp_path: Path, adversary: str
) -> None:
    parties = make_parties(tmp_path, [50, 50, 50, 50])
    hub = Identity.generate("hub")
    query = Query(statistic="count", epsilon=1.0, delta=1e-5)
    plan = plan_for(hub, parties, query, adversary=adversary)
    FederatedQuery(plan, hub, parties).run()
    order = parties[0].ledger.order("people")
    due = renyi(plan.release(schema(), 4).events("colluders"), order)
    for party in parties:
        assert party.ledger.status("people").spent.rdp == pytest.approx(due.rdp, rel=1e-9)
