"""What a released language model says about itself: its card. No torch.

A card is believed where it hangs together (`check_card`); that tensors belong to it is `adapter`'s to check.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloister.errors import InputError, PlanError
from cloister.learning.language.texts import TextMap
from cloister.learning.plan import Plan
from cloister.learning.sections import DataSection, LanguageSection, ModelSection
from cloister.vault import Schema

__all__ = ["AdapterCard", "check_card", "plan_card"]


class AdapterCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a released language model says about itself.

    Attributes:
        format: version of the card.
        name: the study's name.
        plan: hex SHA-256 of the plan's canonical bytes.
        rounds: rounds of training that lie behind it.
        model: kind, classes and seed.
        language: base and tokenizer by their digests; method, rank and scale of what was trained.
        order: the prompt's columns in their order; canonical JSON sorts the names in `texts`.
        texts: how rows become texts, and numbers of classes become answers.
    """

    format: Literal["cloister-adapter/1"]
    name: Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z")]
    plan: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    rounds: Annotated[int, Meta(ge=1, le=2**31)]
    model: ModelSection
    language: LanguageSection
    order: tuple[str, ...]
    texts: TextMap

    def ordered(self) -> AdapterCard:
        """Return the card with its columns in `order`. Raises InputError where the names are others."""
        columns = self.texts.columns
        if len(self.order) != len(columns) or set(self.order) != columns.keys():
            raise InputError("its order of columns names others than it has")
        texts = msgspec.structs.replace(self.texts, columns={name: columns[name] for name in self.order})
        return msgspec.structs.replace(self, texts=texts)

    @property
    def adapted(self) -> bool:
        """Whether it is an adapter; else the base's own parameters were trained."""
        return self.language.method != "full"

    @property
    def scale(self) -> float:
        """What B A is multiplied with: alpha / rank; 0.0 where there is no adapter."""
        return self.language.alpha / self.language.rank if self.adapted else 0.0


def plan_card(plan: Plan, schema: Schema) -> AdapterCard:
    """Return the card of a finished study's model.

    Raises:
        PlanError: the plan trains no language model, or the schema is not the plan's.
    """
    if plan.language is None:
        raise PlanError("the plan trains no language model", where="[model] kind")
    return AdapterCard(
        "cloister-adapter/1",
        plan.study.name,
        plan.digest.hex(),
        plan.training.rounds,
        plan.model,
        plan.language,
        plan.data.features,
        TextMap.build(schema, plan.data, plan.model, plan.language),
    )


def check_card(card: AdapterCard) -> None:
    """Raise InputError, or PlanError, unless a card's columns, label, model and language fit together."""
    texts = card.texts
    if not card.model.is_language:
        raise InputError("it is no language model's")
    if texts.label_name in texts.columns:
        raise InputError("its label is also a column of the prompt")
    schema = Schema({**texts.columns, texts.label_name: texts.label})
    data = DataSection(schema=schema.digest().hex(), features=tuple(texts.columns), label=texts.label_name)
    if TextMap.build(schema, data, card.model, card.language) != texts:
        raise InputError("its columns, label and model do not fit together")
