"""Forecasts, against what the protocol really sends and what arrays really weigh."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.invitations import plan_of
from tests.runtime.parties import PURPOSE, parties, schema
from tests.runtime.parties import plan_for as study_plan
from tests.secagg.network import Network, context, vectors

from cloister.crypto import Identity
from cloister.errors import InputError
from cloister.learning import Plan, SiteEntry
from cloister.runtime import MemoryNetwork, Study
from cloister.runtime.forecast import BASE, LINK, Sizes, forecast, sizes_of


def plan_for(n: int, attempts: int, **changes: object) -> Plan:
    sites = tuple(SiteEntry(name=f"site-{i}", identity=f"{i:064x}", dataset="rows") for i in range(1, n + 1))
    rounds = attempts - 2
    study = {"spare_rounds": 2}
    return plan_of(sites=sites, study=study, training={"rounds": rounds}, **changes)


@pytest.mark.parametrize(("n", "attempts"), [(3, 3), (5, 8), (10, 4)])
def test_bytes_are_those_of_the_protocol(n: int, attempts: int) -> None:
    size = 500
    network = Network(context(n, attempts=attempts), set_up=False)
    announced = [site.announce() for site in network.sites.values()]
    for name, message in zip(network.names, announced, strict=True):
        relayed = network.hub.on_announcement(name, message)
    assert relayed is not None
    dealt = [site.deal(relayed) for site in network.sites.values()]
    for name, message in zip(network.names, dealt, strict=True):
        bundles = network.hub.on_deal(name, message)
    assert bundles is not None
    network.finish_setup(bundles)
    data = dict(zip(network.names, vectors(n, 32, size), strict=True))
    network.hub.begin(0)
    uploads = [network.sites[name].upload(0, vector, np.zeros(3)) for name, vector in data.items()]
    for name, message in zip(network.names, uploads, strict=True):
        network.hub.on_upload(name, message)
    requests = network.hub.close()
    answers = [network.sites[name].answer(requests[name]) for name in network.names]

    plan = plan_for(n, attempts)
    assert plan.attempts == attempts
    expected = forecast(plan, Sizes(size, size, None))
    sent = max(map(len, announced)) + max(map(len, dealt))
    assert sent <= expected.setup_bytes <= 1.3 * sent
    assert max(map(len, uploads)) <= expected.upload_bytes <= 1.2 * max(map(len, uploads))
    rest = attempts * (expected.upload_bytes + max(map(len, answers)))
    joined = 3500 + 2300 * (n + 1)
    assert sent + rest <= expected.study_sent_bytes - joined <= 1.3 * (sent + rest) + attempts * 400
    got = sum(map(len, announced)) + max(map(len, bundles.values()))
    outcomes = attempts * (4 * size + max(map(len, requests.values())))
    joined = 2800 * n + 2300 * (n + 1)
    assert got + outcomes <= expected.study_received_bytes - joined
    assert expected.study_received_bytes - joined <= 1.5 * (got + outcomes) + attempts * 1200


def test_a_study_takes_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members, identity = parties(tmp_path, (60, 60, 60)), Identity.generate("hub")
    plan = study_plan(identity, members, study={"spare_rounds": 0}, training={"rounds": 10})
    sent: Counter[str] = Counter()
    received: Counter[str] = Counter()
    deliver = MemoryNetwork.deliver

    def note(self: MemoryNetwork, sender: str, receiver: str, message: bytes) -> None:
        sent[sender] += len(message)
        received[receiver] += len(message)
        deliver(self, sender, receiver, message)

    monkeypatch.setattr(MemoryNetwork, "deliver", note)
    Study(plan, identity, members).run()
    expected = forecast(plan, Sizes(3, 3, None))
    manifest = len(members[0].vault.open("train", purpose=PURPOSE).envelope)
    most = max(sent[member.identity.name] for member in members)
    assert 0.9 * most <= expected.study_sent_bytes + manifest <= 1.5 * most
    most = max(received[member.identity.name] for member in members)
    assert 0.9 * most <= expected.study_received_bytes <= 1.5 * most


def test_memory_of_a_large_model_is_some_vectors_and_models() -> None:
    size = 10_000_000
    at = forecast(plan_for(4, 5), Sizes(size, size, None))
    blind = forecast(plan_for(4, 5, aggregation={"hub_view": "none"}), Sizes(size, size, None))
    assert at.hub_memory_bytes - blind.hub_memory_bytes == 12 * 8 * size
    assert blind.hub_memory_bytes == BASE + 5 * 4 * size + 64 * 16 * 5 + 4 * LINK
    assert at.site_memory_bytes == BASE + 6 * 4 * size + 15 * 8 * size + 66 * 4 * 5
    rows = forecast(plan_for(4, 5), Sizes(size, size, None), rows=1000, columns=10)
    assert rows.site_memory_bytes - at.site_memory_bytes == 16 * 10_000
    narrow = forecast(plan_for(4, 5, aggregation={"bits": 16}), Sizes(size, size, None))
    assert at.hub_memory_bytes - narrow.hub_memory_bytes == 5 * 2 * size


def test_a_vector_of_float32_counts_what_the_server_step_keeps() -> None:
    size = 10_000_000
    sizes = Sizes(size, size, None, single=True)
    plain = forecast(plan_for(4, 5), sizes)
    adam = {"algorithm": "fedadam", "average_last": 2}
    moved = forecast(
        plan_of(sites=plan_for(4, 5).sites, study={"spare_rounds": 2}, training={"rounds": 3} | adam), sizes
    )
    assert plain.hub_memory_bytes == BASE + (2 + 1) * 4 * size + 64 * 16 * 5 + 4 * LINK
    assert moved.hub_memory_bytes - plain.hub_memory_bytes == 3 * 4 * size
    assert moved.site_memory_bytes - plain.site_memory_bytes == 3 * 4 * size


@given(st.integers(3, 30), st.integers(3, 40), st.integers(1, 10**7), st.floats(0.1, 1e5))
@settings(max_examples=40)
def test_more_of_anything_never_costs_less(n: int, attempts: int, size: int, mbit: float) -> None:
    less = forecast(plan_for(n, attempts), Sizes(size, size, None), link_mbit=mbit)
    for more in (
        forecast(plan_for(n + 1, attempts), Sizes(size, size, None), link_mbit=mbit),
        forecast(plan_for(n, attempts + 1), Sizes(size, size, None), link_mbit=mbit),
        forecast(plan_for(n, attempts), Sizes(size + 1, size + 1, None), link_mbit=mbit),
        forecast(plan_for(n, attempts), Sizes(size, size, None), link_mbit=mbit / 2),
    ):
        assert all(getattr(less, each) <= getattr(more, each) for each in less.__struct_fields__)


def test_time_is_that_of_the_hubs_link() -> None:
    """10 sites, a million coordinates: 80 MB through 100 Mbit/s are 6.4 seconds."""
    at = forecast(plan_for(10, 62), Sizes(10**6, 10**6, None), link_mbit=100)
    assert 6.4 <= at.round_seconds <= 6.9
    assert at.study_minutes == pytest.approx(at.round_seconds, rel=0.01)  # 60 rounds
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            forecast(plan_for(10, 62), Sizes(1, 1, None), link_mbit=wrong)


def test_sizes_are_those_of_the_model() -> None:
    assert sizes_of(plan_of(), schema()) == Sizes(3, 3, None)
    private = sizes_of(plan_of(privacy={}), schema())
    assert (private.parameters, private.coordinates) == (3, 3)
    assert private.terms is not None
    assert private.terms.facts.epsilon_colluders <= 1.0
