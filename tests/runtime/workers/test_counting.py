"""Statistics in a walled worker: the same exact sums, and nothing else comes out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.runtime.asked import close_ledgers, make_parties, plan_for
from tests.runtime.parties import PURPOSE
from tests.runtime.workers.walls import needs_walls

from cloister.crypto import Identity
from cloister.errors import CloisterError, IntegrityError, PolicyRefused
from cloister.privacy.statistics import FederatedRelease, Query, QueryFile, Release
from cloister.runtime.query import FederatedQuery, QueryParty, ask
from cloister.runtime.queryplan import describe
from cloister.runtime.workers.counting import sums_inside, sums_sandboxed

FILE = QueryFile(
    queries=(
        Query(statistic="count"),
        Query(statistic="mean", column="age", by=("sex",)),
        Query(statistic="histogram", column="income", bins=4),
        Query(statistic="quantiles", column="age", levels=(0.5,)),
    ),
    epsilon=4.0,
    delta=1e-5,
)


@pytest.fixture(autouse=True)
def walls() -> Iterator[None]:
    needs_walls()
    yield
    close_ledgers()


def release_of(party: QueryParty) -> Release:
    manifest = party.vault.manifest("rows")
    return Release.plan(FILE, describe(manifest.schema, manifest.rows))


def test_the_same_sums_inside_and_outside(tmp_path: Path) -> None:
    (party,) = make_parties(tmp_path, [80])
    release, vault = release_of(party), party.vault
    with vault.open("rows", purpose=PURPOSE) as opened:
        envelope = opened.envelope
    asked = (release.questions, release.columns, release.sizes)
    inside = sums_inside(vault, "rows", envelope, purpose=PURPOSE)(*asked)
    walled = sums_sandboxed(vault, "rows", envelope, purpose=PURPOSE, identity=party.identity)
    for _ in range(2):
        found = walled(*asked)
        assert len(found) == len(inside) == 4
        for one, other in zip(found, inside, strict=True):
            assert np.array_equal(one, other)
    for make in (sums_inside, lambda *a, **k: sums_sandboxed(*a, **k, identity=party.identity)):
        with pytest.raises(IntegrityError, match="replaced"):
            make(vault, "rows", envelope + b" ", purpose=PURPOSE)(*asked)
    with pytest.raises(PolicyRefused):
        sums_sandboxed(vault, "rows", envelope, purpose="gossip", identity=party.identity)(*asked)
    wrong = msgspec.structs.replace(FILE.queries[1], column="shoe size")
    with pytest.raises(CloisterError):
        walled([(wrong, 8)], ("age",), (4,))


def test_one_owner_and_several_get_answers_from_walled_workers(tmp_path: Path) -> None:
    parties = make_parties(tmp_path, [80, 70, 90])
    first = parties[0]
    result = ask(FILE, first.vault, "rows", purpose=PURPOSE, ledger=first.ledger, identity=first.identity)
    assert len(result.answers) == 4
    hub = Identity.generate("hub")
    query = FederatedQuery(plan_for(hub, parties, FILE), hub, parties, sandboxed=True)
    answered = query.run()
    assert answered.rows == 240
    assert len(answered.answers) == 4


def test_sums_of_other_sizes_get_no_noise_and_do_not_travel(tmp_path: Path) -> None:
    from cloister.errors import InputError

    parties = make_parties(tmp_path, [80, 70, 90])
    hub = Identity.generate("hub")
    plan = plan_for(hub, parties, FILE)
    release: FederatedRelease = plan.release(parties[0].vault.manifest("rows").schema, 3)
    with pytest.raises(InputError, match="not the sums"):
        release.noised([np.zeros(3, dtype=np.int64)])
