"""From the rows of several sites to an answer: a study of a language model, run, released, verified and asked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.runtime.languageparties import Kind, base, parties, plan_for

from cloister.crypto import Identity
from cloister.governance import TrainedStudy, TrustAnchors, Verdict, release, verify_release
from cloister.governance.folder import MODEL, MODEL_CARD
from cloister.inference import AdapterArtifact, artifact_from_bytes
from cloister.inference.language.adapted import learner_of
from cloister.inference.language.answers import LanguagePredictor
from cloister.learning.modelfiles import PlainFolder
from cloister.log import Cosigner, Log
from cloister.privacy.ledger import Cap, Ledger
from cloister.runtime import Party, Study

PRIVATE: dict[str, Any] = {"noise_multiplier": 4.0, "delta": 1e-4, "clip": 1.0, "rate": 0.5, "microbatch": 8}
PERSON: dict[str, Any] = {"unit": "person", "sites_per_unit": 1, "expected_units": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("base"))


def ledgers(root: Path, members: Sequence[Party], stack: contextlib.ExitStack) -> list[Party]:
    """The parties with a ledger each, in which their rows have a budget."""
    found = []
    for each in members:
        ledger = stack.enter_context(Ledger.open(root / "ledgers" / each.identity.name, each.identity))
        ledger.declare("customers", Cap.of(20.0, 1e-3))
        manifest = each.vault.manifest("train")
        ledger.bind("customers", manifest.dataset_id, each.vault.fingerprints("train"))
        found.append(replace(each, ledger=ledger))
    return found


def trained_and_released(root: Path, kind: Kind, folder: Path, **changes: Any) -> tuple[np.ndarray, Verdict]:
    """The vector that a study ended with, and what its release's reader finds."""
    hub, privacy = Identity.generate("hub"), changes.get("privacy")
    members = parties(root, kind, [12, 15, 9], folder, persons=privacy is not None and "unit" in privacy)
    with contextlib.ExitStack() as stack:
        if privacy is not None:
            members = ledgers(root, members, stack)
        plan = plan_for(hub, members, kind, folder, **changes)
        result = Study(plan, hub, members).run()
    release(
        root / "release",
        TrainedStudy.of_result(result),
        signer=hub,
        log=Log(root / "log", hub.fingerprint),
        cosigners=[Cosigner(root / "heads" / each.identity.name, each.identity) for each in members],
        created="2026-03-01T12:00:00Z",
        base=folder,
    )
    anchors = TrustAnchors.of([hub.public, *(each.identity.public for each in members)])
    return result.model, verify_release(root / "release", anchors)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("causal-lm", {}),
        ("text-classifier", {"aggregation": {"bits": 8, "value_range": 0.5}}),
        pytest.param("causal-lm", {"language": {"method": "lora-alternating"}}, marks=pytest.mark.slow),
        pytest.param("causal-lm", {"language": {"method": "full", "rank": 0}}, marks=pytest.mark.slow),
    ],
)
def test_a_study_is_released_and_asked(
    tmp_path: Path, folder: Path, kind: Kind, changes: dict[str, Any]
) -> None:
    model, verdict = trained_and_released(tmp_path, kind, folder, **changes)
    assert verdict.ok, verdict.failed
    artifact = artifact_from_bytes(verdict.files[MODEL])
    assert isinstance(artifact, AdapterArtifact)
    learner, params = learner_of(artifact, PlainFolder(folder), scratch=tmp_path)
    assert params.tobytes() == model.tobytes()
    predictor = LanguagePredictor(artifact, learner, params, 8)
    asked = "text" if kind == "text-classifier" else "question"
    answers = predictor.predict(pa.table({asked: ["my bill is wrong", "a loan"]}))
    assert answers.num_rows == 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", [{}, PERSON, {**PERSON, "adaptive_quantile": 0.5}])
@pytest.mark.parametrize("method", ["lora", "lora-alternating"])
def test_a_private_study_is_released_with_its_epsilon(
    tmp_path: Path, folder: Path, unit: dict[str, Any], method: str
) -> None:
    language = {"method": method, "overlong": "truncate"}
    _, verdict = trained_and_released(
        tmp_path, "text-classifier", folder, privacy={**PRIVATE, **unit}, language=language
    )
    assert verdict.ok, verdict.failed
    card = verdict.files[MODEL_CARD].decode()
    assert f"by {unit.get('unit', 'row')}, distributed" in card
    assert verdict.certificate is not None
    privacy = verdict.certificate.statement.predicate.privacy
    assert privacy is not None
    assert f"{privacy.epsilon_colluders:g} with colluding sites" in card
    assert not any("taken as stated" in line for line in verdict.unchecked)
