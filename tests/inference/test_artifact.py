"""A released model: it reads back as it was, and one that does not hang together is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.governance.releases import identity, make_plan, schema
from tests.inference.artifacts import make_artifact

from cloister.crypto import canonical_bytes
from cloister.errors import CloisterError, InputError, IntegrityError, PlanError
from cloister.inference import ModelArtifact, ModelCard, load_model
from cloister.inference.tensors import read_vector, write_vector
from cloister.learning.sections import ModelSection

LOGISTIC = ModelSection(kind="logistic")
ARTIFACT = make_artifact("boolean", LOGISTIC)


def with_card(change: Any) -> bytes:
    parameters, text = read_vector(ARTIFACT.to_bytes())
    card = json.loads(text)
    change(card)
    return write_vector(parameters, canonical_bytes(card).decode())


@pytest.mark.parametrize(
    ("label", "model"),
    [
        ("boolean", LOGISTIC),
        ("number", ModelSection(kind="linear")),
        ("category", ModelSection(kind="softmax", classes=3)),
        ("integer", ModelSection(kind="mlp", hidden=(4, 3), classes=3)),
    ],
)
def test_a_model_reads_back(label: str, model: ModelSection, tmp_path: Path) -> None:
    artifact = make_artifact(label, model)
    (tmp_path / "model.safetensors").write_bytes(artifact.to_bytes())
    again = load_model(tmp_path / "model.safetensors")
    assert again.card == artifact.card
    assert list(again.card.features.columns) == ["age", "pain", "fluid"]  # not sorted, as JSON would have it
    assert again.card.features.names == artifact.card.features.names
    assert again.parameters.tobytes() == artifact.parameters.tobytes()
    assert again.to_bytes() == artifact.to_bytes()


def test_the_card_of_a_plan_names_plan_and_rounds() -> None:
    plan = make_plan(identity("hub"), [identity(f"site{n}") for n in range(3)])
    artifact = ModelArtifact.of_plan(plan, schema(), np.zeros(5))
    assert artifact.card.plan == plan.digest.hex()
    assert (artifact.card.name, artifact.card.rounds) == ("heart", 5)
    assert list(artifact.card.features.columns) == ["age", "pressure", "pain"]
    again = ModelArtifact.from_bytes(artifact.to_bytes())
    assert again.card.features.names == ("age", "pressure", "pain=typical", "pain=atypical")


def test_another_schema_or_size_than_the_plans_is_refused() -> None:
    plan = make_plan(identity("hub"), [identity(f"site{n}") for n in range(3)])
    with pytest.raises(IntegrityError, match="parameters"):
        ModelArtifact.of_plan(plan, schema(), np.zeros(6))
    other = msgspec.structs.replace(schema(), columns={**schema().columns})
    other.columns.pop("pressure")
    with pytest.raises(PlanError, match="not the one that the plan names"):
        ModelArtifact.of_plan(plan, other, np.zeros(4))


def test_a_card_that_is_no_text_is_refused() -> None:
    good = ARTIFACT.to_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    header["__metadata__"]["cloister"] = "\ud800"
    text = json.dumps(header).encode()
    with pytest.raises(IntegrityError, match="does not parse"):
        ModelArtifact.from_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(more=1),
        lambda card: card.pop("plan"),
        lambda card: card.update(format="cloister-model/2"),
        lambda card: card.update(plan="A" * 64),
        lambda card: card.update(plan="a" * 64 + "\n"),
        lambda card: card.update(rounds=0),
        lambda card: card["model"].update(kind="pickle"),
        lambda card: card["model"].update(kind="softmax", classes=3),
        lambda card: card["features"].update(classes=3),
        lambda card: card["features"].update(means=[0.0] * 6, deviations=[1.0] * 6),
        lambda card: card["features"]["columns"]["age"].pop("bounds"),
        lambda card: card["features"]["columns"]["age"].update(bounds=[100, 18]),
        lambda card: card["features"]["columns"]["pain"].update(categories=["none", "none"]),
        lambda card: card["features"]["columns"].pop("pain"),
        lambda card: card.update(order=["age", "pain"]),
        lambda card: card.update(order=["age", "pain", "pain"]),
        lambda card: card.update(order=["age", "pain", "fluid", "more"]),
        lambda card: card["features"].update(label_name="age"),
        lambda card: card["features"]["label"].update(role="feature"),
    ],
)
def test_a_card_that_does_not_hang_together_is_refused(change: Any) -> None:
    with pytest.raises(IntegrityError):
        ModelArtifact.from_bytes(with_card(change))


@pytest.mark.parametrize(
    "name", ["../up", "a b", "Heart", "x\n# y", "<b>", "-x", "a" * 64, "", "naïve", "x\n"]
)
def test_a_name_that_no_study_may_have_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="card does not parse"):
        ModelArtifact.from_bytes(with_card(lambda card: card.update(name=name)))


def test_another_spelling_of_the_card_is_refused() -> None:
    parameters, text = read_vector(ARTIFACT.to_bytes())
    for spelling in (json.dumps(json.loads(text)), text + " ", text.replace("heart", "h\\u0065art")):
        with pytest.raises(IntegrityError, match="canonical"):
            ModelArtifact.from_bytes(write_vector(parameters, spelling))


def test_text_that_is_no_card_is_refused() -> None:
    for text in ("", "[]", "{}", "[" * 5000, '{"format": NaN}'):
        with pytest.raises(CloisterError):
            ModelArtifact.from_bytes(write_vector(ARTIFACT.parameters, text))


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no model at all")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model(path)
    with pytest.raises(InputError, match="cannot read"):
        load_model(tmp_path / "absent")


def test_parameters_are_not_shown() -> None:
    assert "0.8" not in repr(ARTIFACT)
    assert ModelCard.__doc__
