"""Asking a model: every secret has room for its answer, on a base with hardly any places too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.governance.languageaudits import language_plan
from tests.runtime.languageparties import base, schema

from cloister.crypto import StreamRandom
from cloister.governance.languagestage import opened
from cloister.learning.attacks.languagelistener import LearnerListener, _pages, encoded
from cloister.learning.attacks.languagesecrets import KINDS, make_plant, text_rows

CONTEXT = 96


@pytest.mark.parametrize("places", [CONTEXT, 512])
def test_an_answer_has_room_for_its_secret_and_no_more_than_the_base(
    tmp_path: Path, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    folder = base(tmp_path, context=places)
    plan = language_plan("causal-lm", folder, sites=3, language={"context": CONTEXT})
    random = StreamRandom(b"l" * 32)
    plant = make_plant(copies=(1,), each=10, coins=0, kinds=KINDS, insecure_test_random=random)
    secrets = [each.secret for each in plant.secrets]
    with opened(plan, schema("causal-lm"), folder, "cpu") as stage:
        learner, asked = stage.learner, []
        answer = learner.generate

        def generate(params: Any, prompts: Sequence[Sequence[int]], most: int, **options: Any) -> Any:
            asked.append((prompts, most))
            return answer(params, prompts, most, **options)

        monkeypatch.setattr(learner, "generate", generate)
        said = LearnerListener(learner, stage.facts.initial).answers(secrets, 1)
        whole = encoded(learner, text_rows(secrets, "pairs")).lengths
    assert said is not None
    assert [len(each) for each in said] == [2] * 10
    rooms = {tuple(prompt): most for prompts, most in asked for prompt in prompts}
    prompts = [learner.words.prompt(secret.question) for secret in secrets]
    own = np.array([n - len(prompt) for n, prompt in zip(whole, prompts, strict=True)])
    room = np.array([rooms[tuple(prompt)] for prompt in prompts])
    assert (room >= own).all()
    assert room.max() <= own.max() + 8  # what stands in the prompt already is not answered once more
    assert (len({most for _, most in asked}) > 1) == (places == CONTEXT)


def test_pages_hold_prompts_of_one_room() -> None:
    rooms = [20] * 70 + [12, 20, 12]
    pages = list(_pages(rooms))
    assert [(len(page), room) for page, room in pages] == [(2, 12), (64, 20), (7, 20)]
    assert sorted(number for page, _ in pages for number in page) == list(range(73))
