"""Under privacy a row that cannot be learnt says nothing by being refused: nobody leaves, nobody is told."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.runtime.budgets import Noting
from tests.runtime.languageparties import base, parties, party, plan_for, table
from tests.runtime.world import World

from cloister.crypto import Identity
from cloister.runtime import RoundDone


@pytest.mark.slow
def test_a_site_with_rows_of_nothing_stays_under_privacy(tmp_path: Path) -> None:
    hub, folder = Identity.generate("hub"), base(tmp_path / "made")
    rows = table("causal-lm", 10, 7)
    answers, questions = (rows.column(name).to_pylist() for name in ("answer", "question"))
    answers[3], answers[5], questions[6] = " \n", "zebra " * 200, "\t"
    members = parties(tmp_path, "causal-lm", [12, 15, 9], folder)
    broken = pa.table({"question": questions, "answer": answers})
    members.append(party(tmp_path, "causal-lm", "site3", broken, folder))
    plan = plan_for(
        hub,
        members,
        "causal-lm",
        folder,
        privacy={"noise_multiplier": 1e-4, "delta": 1e-4, "clip": 1.0, "rate": 1.0, "microbatch": 16},
        training={"rounds": 1, "local_steps": 1},
    )
    budgets = {each.identity.name: Noting(each.identity) for each in members}
    world = World(plan, hub, members, refusing_leave=True, budgets=budgets)
    world.start()
    world.run()
    assert world.hub.finished, world.hub.stopped
    assert not world.refusals
    done = [event for event in world.events if isinstance(event, RoundDone)]
    assert [each.survivors for each in done] == [("site0", "site1", "site2", "site3")]
