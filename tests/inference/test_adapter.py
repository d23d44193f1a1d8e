"""A released language model's file: what is written is read back, and nothing else passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load
from tests.inference.adapters import CLASSES, PREFIX, make_adapter, make_card, make_tensors
from tests.inference.artifacts import make_artifact

from cloister.crypto import canonical_bytes
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.released import artifact_from_bytes, of_tables
from cloister.inference.tensors import read_tensors, write_tensors
from cloister.learning.language.adapter import draw_a, named_tensors, vector_of
from cloister.learning.language.layout import Tensor
from cloister.learning.sections import ModelSection

A = f"{PREFIX}layers.0.q_proj.lora_A.weight"
B = f"{PREFIX}layers.0.q_proj.lora_B.weight"
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("causal-lm", {}),
    ("causal-lm", {"method": "lora-alternating"}),
    ("causal-lm", {"format": "chat"}),
    ("causal-lm", {"method": "full", "rank": 0}),
    ("text-classifier", {}),
    ("text-classifier", {"method": "full", "rank": 0}),
]
GOOD = make_adapter().to_bytes()


@pytest.mark.parametrize(("kind", "language"), KINDS)
def test_every_kind_is_read_back_as_it_was_written(kind: str, language: dict[str, Any]) -> None:
    artifact = make_adapter(kind, **language)
    data = artifact.to_bytes()
    found = artifact_from_bytes(data)
    assert isinstance(found, AdapterArtifact)
    assert found.card == artifact.card
    assert list(found.card.texts.columns) == list(artifact.card.order)
    assert found.tensors.keys() == artifact.tensors.keys()
    assert all(np.array_equal(found.tensors[name], each) for name, each in artifact.tensors.items())
    assert found.to_bytes() == data
    assert load(data).keys() == artifact.tensors.keys()  # a standard file
    if kind == "causal-lm":
        assert found.columns == ("answer",)
    else:
        assert found.columns == ("prediction", *(f"probability={name}" for name in CLASSES))


def test_the_kinds_of_releases_are_told_apart() -> None:
    table = make_artifact("boolean", ModelSection(kind="logistic"))
    assert of_tables(artifact_from_bytes(table.to_bytes())).card == table.card
    with pytest.raises(InputError, match="language model's"):
        of_tables(artifact_from_bytes(GOOD))
    with pytest.raises(IntegrityError, match="nothing else"):
        artifact_from_bytes(write_tensors({"w": np.zeros(1, np.float32)}, "{}"))


def replaced(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    tensors = make_tensors(make_card())
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (replaced(lambda t: t[B].__setitem__((0, 0), np.nan)), "not finite"),
        (replaced(lambda t: t[B].__setitem__((3, 1), -np.inf)), "not finite"),
        (replaced(lambda t: t.pop(A)), "one of A and B"),
        (replaced(lambda t: t.pop(B)), "one of A and B"),
        (replaced(lambda t: t.update({"extra": np.zeros(3, np.float32)})), "no tensor of an adapter"),
        (
            replaced(lambda t: t.update({f"{PREFIX}x.lora_A.default.weight": t[A]})),
            "no tensor of an adapter",
        ),
        (replaced(lambda t: t.update({f"{PREFIX}.lora_A.weight": t[A]})), "no tensor of an adapter"),
        (replaced(lambda t: t.update({"head.bias": np.zeros(3, np.float32)})), "no tensor of an adapter"),
        (replaced(lambda t: t.update({B: np.zeros((64, 3), np.float32)})), "not of rank 2"),
        (replaced(lambda t: t.update({B: np.zeros(128, np.float32)})), "not of rank 2"),
        (
            replaced(lambda t: t.update({A: t[A][:1], B: np.zeros((64, 1), np.float32)})),
            "not of rank 2",
        ),
        (replaced(lambda t: t.update({A: t[A] + np.float32(1e-6)})), "seed"),
        (replaced(lambda t: t.update({A: np.zeros_like(t[A])})), "seed"),
        (replaced(lambda t: t.clear() or t.update(w=np.zeros(1, np.float32))), "no tensor of an adapter"),
        ({}, "no adapter"),
    ],
)
def test_tensors_that_are_not_the_cards_are_refused(tensors: dict[str, Any], words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        AdapterArtifact(make_card(), tensors)


def test_another_seed_or_rank_or_target_in_the_card_is_refused() -> None:
    card, tensors = make_card(), make_tensors(make_card())
    other = msgspec.structs.replace(card, model=msgspec.structs.replace(card.model, seed=8))
    with pytest.raises(IntegrityError, match="seed"):
        AdapterArtifact(other, tensors)
    with pytest.raises(IntegrityError, match="not of rank 4"):
        AdapterArtifact(make_card(rank=4), tensors)
    with pytest.raises(IntegrityError, match="none of the plan's targets"):
        AdapterArtifact(make_card(targets=("q_proj",)), tensors)
    with pytest.raises(IntegrityError, match="trained the whole base"):
        AdapterArtifact(make_card(method="full", rank=0), tensors)
    alternating = make_card(method="lora-alternating")
    tensors[A] = np.ones_like(tensors[A])
    assert AdapterArtifact(alternating, tensors).tensors[A][0, 0] == 1.0  # there A was trained


def test_a_classifier_has_its_head() -> None:
    card = make_card("text-classifier")
    for name, value in (
        ("head.bias", None),
        ("head.weight", None),
        ("head.bias", np.zeros(4, np.float32)),
        ("head.weight", np.zeros((4, 64), np.float32)),
        ("head.weight", np.zeros(3, np.float32)),
    ):
        tensors = make_tensors(card)
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
        with pytest.raises(IntegrityError, match="no head of 3 classes"):
            AdapterArtifact(card, tensors)


def rewritten(change: Callable[[dict[str, Any]], object], data: bytes = GOOD) -> bytes:
    """The file with its card changed."""
    tensors, text = read_tensors(data)
    card = json.loads(text)
    change(card)
    return write_tensors(tensors, canonical_bytes(card).decode())


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(format="cloister-adapter/2"),
        lambda card: card.update(extra=1),
        lambda card: card.update(order=["hint"]),
        lambda card: card.update(order=["hint", "question", "question"]),
        lambda card: card["texts"].update(classes=3),
        lambda card: card["texts"].update(format="text"),
        lambda card: card["texts"].update(label_name="question"),
        lambda card: card["texts"]["columns"].clear(),
        lambda card: card["language"].update(rank=-1),
        lambda card: card["language"].update(base="nothing"),
        lambda card: card["model"].update(kind="logistic"),
        lambda card: card["model"].update(classes=3),
        lambda card: card.update(rounds=0),
        lambda card: card.update(plan="A" * 64),
        lambda card: card.update(name="support\x1b[2Jverified"),  # names are printed, and name models
        lambda card: card.update(name="../support"),
        lambda card: card.update(name="support\n# Verified"),
    ],
)
def test_a_card_that_does_not_hang_together_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(IntegrityError):
        artifact_from_bytes(rewritten(change))


def test_a_card_has_one_spelling() -> None:
    tensors, text = read_tensors(GOOD)
    with pytest.raises(IntegrityError, match="canonical"):
        AdapterArtifact.from_bytes(write_tensors(tensors, text + " "))
    with pytest.raises(IntegrityError, match=r"canonical|parse"):
        AdapterArtifact.from_bytes(write_tensors(tensors, text.replace('"rank":2', '"rank":2.0')))


def file_of(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]} | changes


META = {"__metadata__": {"cloister": "{}"}}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (META, b""),
        (META | {"a": entry(0, 4)}, bytes(8)),
        (META | {"a": entry(0, 8)}, bytes(4)),
        (META | {"a": entry(4, 8)}, bytes(8)),
        (META | {"a": entry(4, 8), "b": entry(0, 4)}, bytes(8)),  # not in the order of their names
        (META | {"a": entry(0, 8), "b": entry(4, 8)}, bytes(8)),
        (META | {"a": entry(0, 4, dtype="F16")}, bytes(4)),
        (META | {"a": entry(0, 8, dtype="F64", shape=[1])}, bytes(8)),
        (META | {"a": entry(0, 4, shape=[True])}, bytes(4)),
        (META | {"a": entry(0, 4, shape=[1.0])}, bytes(4)),
        (META | {"a": entry(0, 4, shape=[-1])}, bytes(4)),
        (META | {"a": entry(0, 0, shape=[0])}, b""),
        (META | {"a": entry(0, 4, shape=[1 << 30, 1 << 30])}, bytes(4)),
        (META | {"a": entry(0, 4, shape=[1] * 9)}, bytes(4)),
        (META | {"a": entry(0, 4, more=1)}, bytes(4)),
        (META | {"a b": entry(0, 4)}, bytes(4)),
        (META | {"": entry(0, 4)}, bytes(4)),
        (META | {"a" * 513: entry(0, 4)}, bytes(4)),
        ({"a": entry(0, 4)}, bytes(4)),
        ({"__metadata__": {"cloister": "{}", "format": "pt"}, "a": entry(0, 4)}, bytes(4)),
    ],
)
def test_a_file_that_another_reader_may_take_is_refused(header: dict[str, Any], data: bytes) -> None:
    with pytest.raises(IntegrityError, match="not a model file"):
        read_tensors(file_of(header, data))
    assert read_tensors(file_of(META | {"a": entry(0, 4), "b": entry(4, 8)}, bytes(8)))[1] == "{}"


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_makes_another_file(place: int, change: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= change
    try:
        found = artifact_from_bytes(bytes(data))
    except CloisterError:
        return
    assert found.to_bytes() != GOOD or found.to_bytes() == bytes(data)


def test_a_vector_becomes_named_tensors_and_back() -> None:
    card = make_card()
    tensors = make_tensors(card)
    layout = [Tensor(name, each.shape) for name, each in tensors.items() if ".lora_B." in name][::-1]
    frozen = [Tensor(name, each.shape) for name, each in tensors.items() if ".lora_A." in name]
    vector = np.concatenate([tensors[each.name].reshape(-1) for each in layout])
    found = named_tensors(card, layout, frozen, vector)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert np.array_equal(vector_of(layout, found), vector)
    with pytest.raises(IntegrityError, match="parameters"):
        named_tensors(card, layout, frozen, vector[:-1])
    with pytest.raises(IntegrityError, match="fit this base"):
        vector_of([Tensor("other", (3,))], found)
    with pytest.raises(IntegrityError, match="fit this base"):
        vector_of([Tensor(A, (1, 128))], found)


def test_a_drawn_a_is_the_same_for_ever() -> None:
    drawn = draw_a(7, A, (2, 64))
    assert drawn.dtype == np.float32
    assert drawn.shape == (2, 64)
    assert np.abs(drawn).max() <= 0.125
    assert not np.array_equal(drawn, draw_a(8, A, (2, 64)))
    assert not np.array_equal(drawn, draw_a(7, B, (2, 64)))
    assert draw_a(7, "x", (1, 4)).tolist() == DRAWN


DRAWN = [[0.30050262808799744, -0.3827545940876007, 0.15706700086593628, 0.1255468875169754]]
