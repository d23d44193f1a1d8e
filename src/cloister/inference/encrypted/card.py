"""What a client needs to know of a model to encrypt rows for it, and nothing of its parameters.

A card says how rows become numbers (columns, bounds, categories, scaling: all public, from the schema), what
the scores mean, which circuit computes them, and by how much its polynomials may change a score. It names
the model by SHA-256. A score of rows that were encrypted by another card than the model's is refused.

A card is believed only if it hangs together; it is not signed. Whoever forges one gets rows that are
encrypted all the same, under a key that never leaves the client.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import CloisterError, InputError
from cloister.inference.artifact import ModelArtifact
from cloister.inference.encrypted.network import MAX_FEATURES, MAX_OUTPUTS, Head, Network
from cloister.inference.encrypted.parameters import Circuit
from cloister.learning import FeatureMap
from cloister.vault import Schema

__all__ = ["CARD_LIMIT", "Card"]

CARD_LIMIT = 4 << 20


class Card(Struct, frozen=True, forbid_unknown_fields=True):
    """See the module's docstring.

    Attributes:
        format: version.
        study: the study's name.
        model: hex SHA-256 of the model's file.
        circuit: which parameters, and which computation.
        head: what a score means: a value, a logit, or logits of all classes.
        outputs: scores of a row.
        error: bound of what polynomials change in a score; 0 without a hidden layer.
        order: the features' names in the model's order; canonical JSON sorts those in `features`.
        features: how rows become numbers.

    Raises:
        InputError: it does not hang together.
    """

    format: Literal["cloister-he-card/1"]
    study: Annotated[str, Meta(min_length=1, max_length=63)]
    model: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    circuit: Circuit
    head: Head
    outputs: Annotated[int, Meta(ge=1, le=MAX_OUTPUTS)]
    error: Annotated[float, Meta(ge=0.0, le=1.0)]
    order: tuple[str, ...]
    features: FeatureMap

    def __post_init__(self) -> None:
        features = self.features
        try:
            Schema({**features.columns, features.label_name: features.label}).require_complete()
        except CloisterError as error:
            raise _not_a_card(error.what) from error
        texts = any(column.type == "text" for column in features.columns.values())
        wanted = {"value": (0, 1), "logistic": (2, 1), "softmax": (features.classes, features.classes)}
        checks = (
            features.means is None and not texts and features.label_name not in features.columns,
            len(self.order) == len(features.columns) and set(self.order) == features.columns.keys(),
            0 < features.width <= MAX_FEATURES,
            (features.classes, self.outputs) == wanted[self.head],
            len(features.class_names) == features.classes,
            self.head != "value" or features.label.bounds is not None,
            self.circuit == "linear" or features.scaling == "bounds",
        )
        if not all(checks):
            raise _not_a_card("its parts do not fit together")
        columns = {name: features.columns[name] for name in self.order}
        msgspec.structs.force_setattr(self, "features", msgspec.structs.replace(features, columns=columns))

    @classmethod
    def of(cls, artifact: ModelArtifact) -> Card:
        """Return the card of a released model. Raises InputError where it is not scored under encryption."""
        network, card = Network.of(artifact), artifact.card
        return cls(
            "cloister-he-card/1",
            card.name,
            sha256(artifact.to_bytes()).hex(),
            network.circuit,
            network.head,
            network.outputs,
            network.error,
            card.order,
            card.features,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Card:
        """Return the card in a file. Raises InputError where it is none."""
        if len(data) > CARD_LIMIT:
            raise _not_a_card("it is too large")
        try:
            card = msgspec.json.decode(data, type=cls)
            canonical = card.to_bytes()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _not_a_card("it does not parse") from error
        if canonical != data:
            raise _not_a_card("it is not in canonical form")
        return card

    def to_bytes(self) -> bytes:
        """Return its canonical bytes."""
        return canonical_bytes(self)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of its canonical bytes."""
        return sha256(self.to_bytes()).hex()


def _not_a_card(reason: str) -> InputError:
    return InputError(
        f"not a card for encrypted scoring: {reason}", fix="Ask whoever has the model for `cloister he card`"
    )
