"""A released language model: named float32 tensors in peft's names, and a card that says what they belong to.

The file is safetensors (see `tensors`); the card lies in its header as canonical JSON. It is believed only if
it hangs together (`learning.language.card`), and its tensors only if they are the card's
(`learning.language.adapter`).

That the card belongs to a plan and a schema is for `cloister.governance.verify_release` to check; that the
tensors fit a base, for whoever has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.crypto import canonical_bytes
from cloister.errors import CloisterError, IntegrityError
from cloister.inference.artifact import answer_names
from cloister.inference.tensors import read_tensors, write_tensors
from cloister.learning import Plan
from cloister.learning.language.adapter import check_tensors
from cloister.learning.language.card import AdapterCard, check_card, plan_card
from cloister.vault import Column, Schema

__all__ = ["AdapterArtifact"]

_AS_MADE = "Ask the releaser for the file as it was made"


@dataclass(frozen=True)
class AdapterArtifact:
    """A released language model in memory.

    Attributes:
        card: what it says about itself.
        tensors: float32 by name.

    Raises:
        IntegrityError: card and tensors do not fit together; a number is not finite, a rank another, a
            tensor missing or too many.
    """

    card: AdapterCard
    tensors: Mapping[str, NDArray[np.float32]] = field(repr=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "card", self.card.ordered())
            check_card(self.card)
        except CloisterError as error:
            raise IntegrityError(
                f"not a released language model: {error.what}", where=error.where, fix=_AS_MADE
            ) from error
        check_tensors(self.card, self.tensors)

    @property
    def size(self) -> int:
        """Numbers in the file, d; those of an A that was not trained among them."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def trained(self) -> int:
        """Numbers that were trained."""
        return self.size - (self._counted(".lora_A.") if self.card.language.method == "lora" else 0)

    @property
    def width(self) -> int:
        """Numbers that travelled in a round: of alternating adapters the larger of A and B, and a head."""
        if self.card.language.method != "lora-alternating":
            return self.trained
        a, b = self._counted(".lora_A."), self._counted(".lora_B.")
        return self.size - min(a, b)

    @property
    def generates(self) -> bool:
        """Whether it writes texts; else it tells classes."""
        return self.card.model.kind == "causal-lm"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of an answer: as a table's model names them, or "answer" for a text."""
        if self.generates:
            return ("answer",)
        return answer_names(self.card.texts.class_names, 1 if self.card.model.classes == 2 else 2)

    @property
    def inputs(self) -> Mapping[str, Column]:
        """The columns that are read of a row, by name, as the schema declares them."""
        texts = self.card.texts
        return texts.columns or {texts.label_name: texts.label}

    @classmethod
    def of_plan(
        cls, plan: Plan, schema: Schema, tensors: Mapping[str, NDArray[np.float32]]
    ) -> AdapterArtifact:
        """Return the artefact of a finished study.

        Args:
            plan: the plan that was run.
            schema: the schema it names.
            tensors: as `learning.language.adapter.named_tensors` made them.

        Raises:
            PlanError: the schema is not the plan's, or the plan trains no language model.
            IntegrityError: the tensors do not fit the plan's model.
        """
        return cls(plan_card(plan, schema), tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> AdapterArtifact:
        """Return the artefact in the bytes of a `model.safetensors`.

        Raises:
            IntegrityError: not a model file, not a card, or the two do not fit together.
        """
        tensors, text = read_tensors(data)
        try:
            card = msgspec.json.decode(text, type=AdapterCard)
            canonical = canonical_bytes(card)
        except (msgspec.DecodeError, UnicodeError, CloisterError, RecursionError) as error:
            raise IntegrityError(f"the model's card does not parse: {error}", fix=_AS_MADE) from error
        if canonical != text.encode():
            raise IntegrityError("the model's card is not in canonical form", fix=_AS_MADE)
        return cls(card, tensors)

    def _counted(self, part: str) -> int:
        return sum(tensor.size for name, tensor in self.tensors.items() if part in name)

    def to_bytes(self) -> bytes:
        """Return the bytes of its `model.safetensors`; the same artefact gives the same bytes."""
        return write_tensors(self.tensors, canonical_bytes(self.card).decode())
