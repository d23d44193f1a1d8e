"""A language model behind walls computes what it computes in this process, to the bit, and reads its base there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.runtime.languageparties import base, parties, plan_for, schema
from tests.runtime.parties import PURPOSE

from cloister.crypto import Identity, StreamRandom
from cloister.errors import InputError, IntegrityError
from cloister.learning.privacy import PrivacyTerms
from cloister.runtime.languageworker import LanguageWorker
from cloister.runtime.workers.launch import sandbox
from cloister.runtime.workers.models import known_model
from cloister.runtime.workers.proxy import SandboxedWorker

pytestmark = pytest.mark.slow

QUIET = {"noise_multiplier": 1e-4, "delta": 1e-4, "clip": 1.0, "rate": 0.5, "microbatch": 16}
KIND = "text-classifier"


def test_walls_change_no_bit_and_facts_need_no_weights(tmp_path: Path) -> None:
    folder, hub = base(tmp_path), Identity.generate("hub")
    members = parties(tmp_path, KIND, [12, 15, 9], folder)
    plan = plan_for(hub, members, KIND, folder, privacy=QUIET, data={"public_rows": True})
    first, seed = members[0], bytes(32)
    rows = first.vault.hand_over("train", purpose=PURPOSE)
    held_out = first.vault.hand_over("test", purpose=PURPOSE)
    walled = SandboxedWorker(
        plan,
        first.identity,
        sandbox(),
        rows,
        held_out=held_out,
        base=folder,
        insecure_test_seed=seed,
    )
    with (
        first.vault.open("train", purpose=PURPOSE) as train,
        first.vault.open("test", purpose=PURPOSE) as test,
    ):
        inside = LanguageWorker(
            plan,
            schema(KIND),
            train.table,
            folder,
            evaluation=test.table,
            insecure_test_random=StreamRandom(seed),
        )
        assert walled.facts.pin == inside.facts.pin == known_model(plan, schema(KIND), base=folder).pin
        assert "seccomp" in walled.walls
        terms = PrivacyTerms.of(plan, plan.params(3), walled.facts)
        params = walled.initial
        np.testing.assert_array_equal(
            walled.private_sum(params, 1.0, terms), inside.private_sum(params, 1.0, terms)
        )
        trained = walled.train(params)
        assert trained.dtype == np.float32
        np.testing.assert_array_equal(trained, inside.train(params))
        sums = walled.evaluate(trained)
        assert sums is not None
        np.testing.assert_array_equal(sums, inside.evaluate(trained))
    walled.close()
    inside.close()


def test_another_base_and_none_are_refused_by_the_walled_worker(tmp_path: Path) -> None:
    folder, hub = base(tmp_path), Identity.generate("hub")
    members = parties(tmp_path, KIND, [12, 15, 9], folder)
    plan = plan_for(hub, members, KIND, folder)
    other = base(tmp_path / "other", seed=1)
    rows = members[0].vault.hand_over("train", purpose=PURPOSE)
    with pytest.raises(IntegrityError, match="base model here is not the one"):
        SandboxedWorker(plan, members[0].identity, sandbox(), rows, base=other)
    with pytest.raises(InputError, match="--base DIR"):
        SandboxedWorker(plan, members[0].identity, sandbox(), rows)
