"""Which models are scored, and what their cards say."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from tests.inference.artifacts import make_artifact

from cloister.crypto import canonical_bytes
from cloister.errors import InputError
from cloister.inference import ModelArtifact
from cloister.inference.encrypted import Card
from cloister.inference.encrypted.network import Network
from cloister.learning.sections import ModelSection

LOGISTIC = ModelSection(kind="logistic")


@pytest.mark.parametrize(
    ("label", "section", "scaling", "reason", "way_out"),
    [
        (
            "boolean",
            ModelSection(kind="mlp", hidden=(2, 2), classes=2),
            "bounds",
            "2 hidden layers",
            "cloister serve",
        ),
        (
            "boolean",
            ModelSection(kind="mlp", hidden=(2,), classes=2),
            "local",
            "nothing bounds",
            'scaling = "bounds"',
        ),
        ("number", ModelSection(kind="mlp", hidden=(257,)), "bounds", "larger than", "smaller"),
        (
            "number",
            ModelSection(kind="mlp", hidden=(60,)),
            "bounds",
            "may change a score",
            'activation = "tanh"',
        ),
        (
            "number",
            ModelSection(kind="torch", code="a" * 64, factory="make"),
            "bounds",
            "Python file",
            "walled worker",
        ),
    ],
)
def test_other_models_are_refused_with_a_way_out(
    label: str, section: ModelSection, scaling: str, reason: str, way_out: str
) -> None:
    if section.kind == "torch":
        made = make_artifact(label, ModelSection(kind="linear"))
        artifact = ModelArtifact(msgspec.structs.replace(made.card, model=section), made.parameters)
    else:
        artifact = make_artifact(label, section, scaling=scaling)
    with pytest.raises(InputError) as caught:
        Card.of(artifact)
    assert reason in caught.value.what
    assert way_out in caught.value.fix


def test_parameters_that_do_not_fit_the_modulus_are_refused() -> None:
    artifact = make_artifact("number", ModelSection(kind="linear"))
    for parameters in (np.full(6, 3000.0), np.full(6, 1e300)):
        with pytest.raises(InputError, match="so large that a score may reach"):
            Network.of(ModelArtifact(artifact.card, parameters))


@pytest.mark.parametrize("scaling", ["bounds", "local"])
def test_a_card_round_trips(scaling: str) -> None:
    card = Card.of(make_artifact("boolean", LOGISTIC, scaling=scaling))
    again = Card.from_bytes(card.to_bytes())
    assert again == card
    assert list(again.features.columns) == ["age", "pain", "fluid"]
    assert (again.circuit, again.head, again.outputs, again.error) == ("linear", "logistic", 1, 0.0)


def test_a_card_holds_no_parameter() -> None:
    """Cards of two models of one study differ in the model's digest alone."""
    cards = [json.loads(Card.of(make_artifact("boolean", LOGISTIC, seed=seed)).to_bytes()) for seed in (1, 2)]
    assert cards[0].pop("model") != cards[1].pop("model")
    assert cards[0] == cards[1]


def test_a_hidden_layer_s_card_tells_its_error() -> None:
    section = ModelSection(kind="mlp", hidden=(3,), activation="relu")
    card = Card.of(make_artifact("number", section))
    assert 0.0 < card.error < 0.05
    assert float(f"{card.error:.1e}") == card.error  # two digits: it tells no more of the parameters


def altered(**changes: object) -> bytes:
    card = json.loads(Card.of(make_artifact("boolean", LOGISTIC)).to_bytes())
    for path, value in changes.items():
        *folders, name = path.split("__")
        place = card
        for folder in folders:
            place = place[folder]
        place[name] = value
    return canonical_bytes(card)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 10_000,
        b"\xff",
        altered(outputs=2),
        altered(head="softmax"),
        altered(head="value"),
        altered(circuit="cubic"),
        altered(error=float(2)),
        altered(order=["age", "pain"]),
        altered(order=["age", "pain", "pain"]),
        altered(features__label_name="age"),
        altered(features__classes=3),
        altered(features__means=[0.0] * 5, features__deviations=[1.0] * 5),
        altered(features__columns__age={"type": "integer"}),
        altered(features__columns__age={"type": "text"}),
        altered(features__columns__age={"type": "integer", "bounds": [5, 1]}),
        altered(more=1),
        altered()[:-1] + b" }",
    ],
)
def test_what_does_not_hang_together_is_no_card(data: bytes) -> None:
    with pytest.raises(InputError, match="not a card"):
        Card.from_bytes(data)
