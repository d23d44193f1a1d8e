"""A released model: its parameters, and everything needed to read rows for it and to name its answers.

The file is safetensors (see `tensors`); the card lies in its header as canonical JSON. A card is
believed only if it hangs together: the feature map is the one that its own columns, label and model
define, it carries no statistics of any site's rows, and the model they define has exactly as many
parameters as the file.

That the card belongs to a plan and a schema is for `cloister.governance.verify_release` to check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from numpy.typing import NDArray

from cloister.crypto import canonical_bytes
from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.files import read_bytes
from cloister.inference.tensors import MODEL_LIMIT, read_vector, write_vector
from cloister.learning import DataSection, FeatureMap, Model, ModelSection, Plan, build_model, plan_features
from cloister.vault import Column, Schema

__all__ = ["ModelArtifact", "ModelCard", "answer_labels", "answer_names", "load_model"]


def answer_names(classes: Sequence[str], outputs: int) -> tuple[str, ...]:
    """Return the names of an answer's columns.

    Args:
        classes: names of the label's classes; none for a number.
        outputs: 1 where one probability says it all, of two classes.
    """
    if not classes:
        return ("value",)
    if outputs == 1:
        return ("prediction", "probability")
    return ("prediction", *(f"probability={name}" for name in classes))


def answer_labels(names: Sequence[str], label: Column, classes: NDArray[np.generic]) -> pa.Array:
    """Return numbers of classes as the label's own values: true or false, whole numbers, or names.

    Args:
        names: of the classes, in the order of their numbers.
        label: the schema's declaration of the label.
        classes: n numbers of classes.
    """
    found = pa.array(names, pa.string()).take(pa.array(classes.astype(np.int64)))
    kind = {"integer": pa.int64(), "boolean": pa.bool_()}.get(label.type, pa.string())
    return found.cast(kind)


class ModelCard(Struct, frozen=True, forbid_unknown_fields=True):
    """What a released model says about itself.

    Attributes:
        format: version of the card.
        name: the study's name.
        plan: hex SHA-256 of the plan's canonical bytes.
        rounds: rounds of training that lie behind it.
        model: kind and shape.
        order: the features' names in the order in which the model takes them; canonical JSON sorts the
            names in `features`.
        features: how rows become numbers and numbers become answers.
    """

    format: Literal["cloister-model/1"]
    name: Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z")]
    plan: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rounds: Annotated[int, Meta(ge=1, le=2**31)]
    model: ModelSection
    order: tuple[str, ...]
    features: FeatureMap

    def ordered(self) -> ModelCard:
        """Return the card with its features in `order`. Raises InputError where the names are others."""
        columns = self.features.columns
        if len(self.order) != len(columns) or set(self.order) != columns.keys():
            raise InputError("its order of columns names others than it has")
        features = msgspec.structs.replace(
            self.features, columns={name: columns[name] for name in self.order}
        )
        return msgspec.structs.replace(self, features=features)


def _check_features(features: FeatureMap, model: ModelSection) -> None:
    if features.means is not None or features.deviations is not None:
        raise InputError("it carries statistics of somebody's rows")
    if features.label_name in features.columns:
        raise InputError("its label is also a feature")
    schema = Schema({**features.columns, features.label_name: features.label})
    data = DataSection(
        schema=schema.digest().hex(),
        features=tuple(features.columns),
        label=features.label_name,
        scaling=features.scaling,
    )
    if FeatureMap.build(schema, data, model) != features:
        raise InputError("its columns, label and model do not fit together")


@dataclass(frozen=True)
class ModelArtifact:
    """A released model in memory.

    Attributes:
        card: what it says about itself.
        parameters: float64[d].

    Raises:
        IntegrityError: card and parameters do not fit together.
    """

    card: ModelCard
    parameters: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "card", self.card.ordered())
            _check_features(self.card.features, self.card.model)
        except CloisterError as error:
            raise IntegrityError(
                f"not a released model: {error.what}",
                where=error.where,
                fix="Ask the releaser for the file as it was made",
            ) from error
        if self.card.model.kind != "torch" and self.parameters.shape != (self.model.size,):
            raise IntegrityError(
                f"not a released model: it has {self.parameters.size} parameters, not {self.model.size}",
                fix="Ask the releaser for the file as it was made",
            )

    @cached_property
    def model(self) -> Model:
        """The network that the card describes. Raises InputError where that is code of the user's own."""
        if self.card.model.kind == "torch":
            raise InputError(
                "the model is a module in a Python file, which a release does not carry",
                fix="Read that file; if you trust it, run again with --allow-user-code FILE",
            )
        return build_model(self.card.model, self.card.features.width)

    @classmethod
    def of_plan(cls, plan: Plan, schema: Schema, parameters: NDArray[np.float64]) -> ModelArtifact:
        """Return the artefact of a finished study.

        Args:
            plan: the plan that was run.
            schema: the schema it names.
            parameters: float64[d], the model to release.

        Raises:
            PlanError: the schema is not the plan's.
            IntegrityError: the parameters do not fit the plan's model.
        """
        features = plan_features(plan, schema)
        card = ModelCard(
            "cloister-model/1",
            plan.study.name,
            plan.digest.hex(),
            plan.training.rounds,
            plan.model,
            plan.data.features,
            features,
        )
        return cls(card, parameters)

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelArtifact:
        """Return the artefact in the bytes of a `model.safetensors`.

        Raises:
            IntegrityError: not a model file, not a card, or the two do not fit together.
        """
        parameters, text = read_vector(data)
        try:
            card = msgspec.json.decode(text, type=ModelCard)
            canonical = canonical_bytes(card)
        except (msgspec.DecodeError, UnicodeError, CloisterError, RecursionError) as error:
            raise IntegrityError(
                f"the model's card does not parse: {error}",
                fix="Ask the releaser for the file as it was made",
            ) from error
        if canonical != text.encode():
            raise IntegrityError(
                "the model's card is not in canonical form",
                fix="Ask the releaser for the file as it was made",
            )
        return cls(card, parameters)

    def to_bytes(self) -> bytes:
        """Return the bytes of its `model.safetensors`; the same artefact gives the same bytes."""
        return write_vector(self.parameters, canonical_bytes(self.card).decode())


def load_model(path: Path) -> ModelArtifact:
    """Read a `model.safetensors`.

    Raises:
        InputError: it cannot be read or is too large.
        IntegrityError: it is not a released model.
    """
    try:
        return ModelArtifact.from_bytes(read_bytes(path, limit=MODEL_LIMIT, what="model"))
    except IntegrityError as error:
        raise IntegrityError(error.what, where=str(path), fix=error.fix) from error
