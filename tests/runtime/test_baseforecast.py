"""What a base and a pass of rows take: by hand, from a configuration and files of a known size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.learning.plans import make_plan

from cloister.learning import Plan
from cloister.learning.sections import LanguageSection, ModelSection, PrivacySection
from cloister.runtime.baseforecast import base_bytes

NUMBERS, WIDTH, LAYERS, WORDS, CONTEXT = 1_000, 32, 3, 500, 512
RECORD = {"noise_multiplier": 1.0, "delta": 1e-6, "clip": 1.0, "rate": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": WORDS, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(2 * NUMBERS))
    return tmp_path


def plan_of(*, privacy: dict[str, Any] | None = None, batch: int = 8, **language: Any) -> Plan:
    plan = make_plan()
    section = LanguageSection(
        base="a" * 64, tokenizer="b" * 64, format="pairs", context=CONTEXT, overlong="truncate", **language
    )
    return msgspec.structs.replace(
        plan,
        model=ModelSection(kind="causal-lm"),
        language=section,
        training=msgspec.structs.replace(plan.training, batch=batch, local_steps=1),
        privacy=None if privacy is None else PrivacySection(**privacy),
    )


def taken(rows: int, each: int, layers: int) -> int:
    """Activations and scores of so many rows."""
    return layers * each * rows * CONTEXT * WIDTH + 12 * rows * CONTEXT * WORDS


def test_weights_and_a_pass_of_rows(folder: Path) -> None:
    assert base_bytes(make_plan(), folder) == 0
    assert base_bytes(plan_of(), folder) == 4 * NUMBERS + taken(8, 4, 17 * LAYERS)
    assert base_bytes(plan_of(rows_per_pass=2), folder) == 4 * NUMBERS + taken(2, 4, 17 * LAYERS)
    narrow = plan_of(precision="bfloat16", checkpointing=True)
    assert base_bytes(narrow, folder) == 2 * NUMBERS + taken(8, 2, 2 * LAYERS + 17)
    assert base_bytes(plan_of(quantised="nf4"), folder) == NUMBERS // 2 + taken(8, 4, 17 * LAYERS)


def test_clipped_by_record_rows_go_through_in_whole_blocks(folder: Path) -> None:
    """16,384 tokens of rows of 512: 32 rows, however few a pass or a batch has."""
    whole = 4 * NUMBERS + taken(32, 4, 17 * LAYERS)
    assert base_bytes(plan_of(privacy=RECORD), folder) == whole
    assert base_bytes(plan_of(privacy=RECORD, rows_per_pass=2), folder) == whole
    person = RECORD | {"unit": "person", "sites_per_unit": 1, "expected_units": 12}
    units = plan_of(privacy=person, rows_per_pass=2)
    assert base_bytes(units, folder) == 4 * NUMBERS + taken(2, 4, 17 * LAYERS)
