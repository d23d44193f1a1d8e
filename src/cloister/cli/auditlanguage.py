"""What `cloister audit` is told about a language model, and which audit it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cloister.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from cloister.governance.audit import AuditReport
    from cloister.learning import Plan
    from cloister.vault import Schema

__all__ = ["LanguageAudit", "Model", "numbers"]

Model: TypeAlias = Callable[[], Any]
"""Returns the finished model: its vector, or the tensors of a release."""

_MOST_COPIES = 10_000


@dataclass(frozen=True)
class LanguageAudit:
    """The options, as they were written.

    Args:
        base: folder of the base.
        copies: such as "1,4,20".
        secrets: of each number of copies.
        canaries: coins.
        planted: an owner's list.
    """

    base: Path | None
    copies: str | None
    secrets: int | None
    canaries: int | None
    planted: Path | None

    def check(self, plan: Plan) -> None:
        """Refuse options that do not go together.

        Raises:
            InputError: options of language models for another one, or options of a rehearsal with a list.
        """
        named = {"--copies": self.copies, "--secrets": self.secrets, "--planted": self.planted}
        given = [name for name, value in named.items() if value is not None]
        if given and not plan.model.is_language:
            raise InputError(
                f"{given[0]} is for language models", where=f"study {plan.study.name}", fix="Leave it out"
            )
        if self.planted is not None and (len(given) > 1 or self.canaries is not None):
            raise InputError(
                "--planted says itself what was planted",
                fix="Leave out --copies, --secrets and --canaries, or leave out --planted",
            )

    def run(
        self,
        plan: Plan,
        schema: Schema,
        rows: Mapping[str, int],
        tables: Mapping[str, pa.Table],
        model: Model,
        confidence: float,
        progress: Callable[[str, int, int], None],
    ) -> AuditReport:
        """Run the audit that is meant; raises as `governance.auditlanguage`."""
        from cloister.governance.auditlanguage import Planting, ask_model, rehearse
        from cloister.governance.certificate import moment

        common: dict[str, Any] = {"created": moment(), "confidence": confidence, "progress": progress}
        if self.planted is None:
            planting = Planting(
                copies=numbers(self.copies) if self.copies is not None else Planting.copies,
                each=Planting.each if self.secrets is None else _positive(self.secrets),
                coins=Planting.coins if self.canaries is None else self.canaries,
            )
            return rehearse(plan, schema, self.base, rows=rows, tables=tables, planting=planting, **common)
        from cloister.governance.plantfile import read_plant

        file = read_plant(self.planted)
        if file.schema != schema.digest().hex():
            raise InputError(
                "these canaries are of another schema than the study's",
                where=str(self.planted),
                fix="Give the list that belongs to the rows of this study",
            )
        return ask_model(plan, schema, self.base, model(), file.plant, rows=rows, **common)


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of `--copies`. Raises InputError."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= _MOST_COPIES for part in parts):
        raise InputError(
            f"--copies is no list of numbers of 1 to {_MOST_COPIES}", fix="Write, for example, 1,4,20"
        )
    return tuple(int(part) for part in parts)


def _positive(number: int) -> int:
    if not 1 <= number <= 1000:
        raise InputError("--secrets is not between 1 and 1000", fix="Leave it out for 5")
    return number
