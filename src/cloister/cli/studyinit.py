"""What `cloister study init` writes: a plan from its sites, a schema and a few options.

The sites are homes on this machine (`--site`), whose signed manifests say schema, rows and purposes; or,
between organisations, identities that this home trusts (`--partner`), whose datasets are only named. Then the
schema comes from a file, and whether a dataset has it, and allows the purpose, each site sees for itself.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.cli import common
from cloister.errors import InputError, PlanError, PolicyRefused

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.learning import Plan
    from cloister.vault import Manifest, Schema

__all__ = [
    "Kind",
    "Proposed",
    "Unit",
    "classes",
    "code_of",
    "from_homes",
    "from_trust",
    "no_label",
    "plan_of",
    "private",
    "widths",
]


class Kind(enum.StrEnum):
    """Kinds of model."""

    LINEAR = "linear"
    LOGISTIC = "logistic"
    SOFTMAX = "softmax"
    MLP = "mlp"
    TORCH = "torch"
    CAUSAL_LM = "causal-lm"
    TEXT_CLASSIFIER = "text-classifier"


@dataclass(frozen=True)
class Proposed:
    """Who is to take part, and with what.

    Attributes:
        sites: each with the name of its dataset.
        schema: of all datasets.
        rows: of all sites together; None where nobody said.
        seen: whether the datasets' manifests were read.
    """

    sites: tuple[tuple[PublicIdentity, str], ...]
    schema: Schema
    rows: int | None
    seen: bool

    def entries(self) -> list[dict[str, str]]:
        """Return what `[[sites]]` says."""
        return [
            {"name": site.name, "identity": site.fingerprint, "dataset": dataset}
            for site, dataset in self.sites
        ]

    def counted(self) -> int:
        """Return the rows. Raises InputError where nobody said how many."""
        if self.rows is None:
            raise InputError(
                "a private plan depends on how many rows there are",
                where="--rows",
                fix="Give about how many all partners have together; each of them publishes its number",
            )
        return self.rows


def from_homes(homes: Sequence[Path], datasets: Sequence[str], purpose: str) -> Proposed:
    """Return the sites that are homes on this machine, as their manifests describe them.

    Raises:
        InputError: a home or a dataset is not there, or there are as many names as neither sites nor one.
        PolicyRefused: a dataset may not be used for the purpose.
        PlanError: schemas differ.
    """
    names = _a_dataset_each(datasets, len(homes), "--site")
    members = [common.member(home, dataset) for home, dataset in zip(homes, names, strict=True)]
    _allow(purpose, members)
    sites = tuple((site, dataset) for (site, _), dataset in zip(members, names, strict=True))
    rows = sum(manifest.rows for _, manifest in members)
    return Proposed(sites, _common_schema(members), rows, seen=True)


def from_trust(
    partners: Sequence[str], datasets: Sequence[str], schema: Path | None, rows: int | None
) -> Proposed:
    """Return the sites that are known by their identities alone.

    Args:
        partners: names of trusted identities.
        datasets: names of their datasets; one for all, or one for each in the same order.
        schema: the file that all of them used.
        rows: how many they have together.

    Raises:
        InputError: a name is not trusted or there twice, the schema or what fits is missing.
    """
    from cloister.vault import load_schema

    if schema is None:
        raise InputError(
            "the partners' rows are elsewhere, so the plan needs their schema",
            where="--schema",
            fix="Give the file that all partners add their rows with",
        )
    if rows is not None and rows < 1:
        raise InputError("there are no rows", where="--rows", fix="Give how many all partners have together")
    twice = sorted({name for name in partners if partners.count(name) > 1})
    if twice:
        raise InputError("a partner is named twice", where=", ".join(twice), fix="Name each once")
    names = _a_dataset_each(datasets, len(partners), "--partner")
    store = common.trust_store()
    sites = tuple((store.get(name), dataset) for name, dataset in zip(partners, names, strict=True))
    return Proposed(sites, load_schema(schema), rows, seen=False)


def _a_dataset_each(datasets: Sequence[str], count: int, option: str) -> Sequence[str]:
    if len(datasets) in (1, count):
        return list(datasets) if len(datasets) == count else list(datasets) * count
    raise InputError(
        f"{len(datasets)} datasets are named for {count} sites",
        where="--dataset",
        fix=f"Give one name for all, or one for each {option} in the same order",
    )


def _allow(purpose: str, members: Sequence[tuple[PublicIdentity, Manifest]]) -> None:
    """Raise PolicyRefused unless every dataset may be used for the purpose."""
    for member, manifest in members:
        if purpose not in manifest.purposes:
            allowed = " or ".join(map(repr, manifest.purposes))
            raise PolicyRefused(
                f"the dataset {manifest.name!r} of {member.name} may not be used for {purpose!r}",
                fix=f"Give --purpose as {allowed}, or have the rows added for this purpose too",
            )


def _common_schema(members: Sequence[tuple[PublicIdentity, Manifest]]) -> Schema:
    """Return the schema that all datasets have. Raises PlanError where they differ."""
    first, manifest = members[0]
    for member, other in members[1:]:
        if other.schema.digest() != manifest.schema.digest():
            raise PlanError(
                f"{member.name} added its rows with another schema than {first.name}",
                where="[data] schema",
                fix="All sites of a study use the same schema file",
            )
    return manifest.schema


def no_label() -> str:
    """Raise PlanError: the schema has no label."""
    raise PlanError(
        "the schema declares no label", where="[data] label", fix='Give one column role = "label"'
    )


def widths(kind: Kind, hidden: list[int] | None) -> list[int]:
    """Return the hidden layers: 16 wide where a perceptron is asked for and no width is given."""
    if hidden and kind is not Kind.MLP:
        raise InputError(
            f"a {kind.value} model has no hidden layers", fix="Use --model mlp, or leave --hidden out"
        )
    return hidden or ([16] if kind is Kind.MLP else [])


def classes(kind: Kind, schema: Schema) -> int:
    """Return the label's classes, 0 for a number."""
    label = schema.columns[schema.label or no_label()]
    if kind in (Kind.LINEAR, Kind.CAUSAL_LM):
        return 0
    if label.categories is not None:
        return len(label.categories)
    return 2 if label.type == "boolean" else 0


@dataclass(frozen=True)
class Unit:
    """Whose privacy it is: the column, None where nothing was said; at how many sites; how many in all."""

    column: str | None
    sites: int | None
    count: int | None

    def fields(self, schema: Schema, rate: float) -> dict[str, Any]:
        """Return what `[privacy]` says of the unit.

        Raises:
            InputError: the schema has a unit and nobody chose, or an option is missing.
        """
        declared = [name for name, column in schema.columns.items() if column.role == "unit"]
        if self.column is None and declared:
            raise InputError(
                f"the schema says whose row it is ({declared[0]}), and nobody said whether epsilon is of one "
                "row or of all rows of one",
                fix=f"Say --unit {declared[0]} with --sites-per-unit and --units, or --unit record",
            )
        if self.column in (None, "record"):
            if self.sites is not None or self.count is not None:
                raise InputError(
                    "--sites-per-unit and --units belong to a unit column", fix="Name it with --unit"
                )
            return {}
        if self.sites is None or self.count is None or self.count < 1:
            raise InputError(
                f"of the unit {self.column!r} two numbers are needed",
                fix="Say --sites-per-unit, at how many sites one may have rows, and --units, about how many "
                "there are in all, as far as that may be known",
            )
        expected = max(1, round(rate * self.count))
        return {"unit": self.column, "sites_per_unit": self.sites, "expected_units": expected}


def private(
    document: dict[str, Any], schema: Schema, rows: int, epsilon: float, delta: float | None, unit: Unit
) -> dict[str, Any]:
    """Return the tables of a private study: half of all rows in each of its steps, which keeps noise small.

    Steps cost noise, so there are as many as asked for and no local ones; the mean of the last half is
    released, which averages the noise out. The steps of a language model are Adam's, taken at the hub from
    the noisy sum, whose size then does not matter.
    """
    from cloister.learning.refusals import check_delta

    rounds, rate = document["training"]["rounds"], 0.5
    of_unit = unit.fields(schema, rate)
    chosen = float(f"{0.1 / rows:.0e}") if delta is None else delta
    check_delta(chosen, rows)
    training = {"rounds": rounds, "batch": max(1, rows // 2), "local_steps": 1, "learning_rate": 4.0}
    if of_unit:  # whoever has several rows trains on them before the update is clipped
        training |= {"batch": 32, "local_steps": 5, "learning_rate": 0.5}
    end: dict[str, Any] = {"average_last": rounds // 2}
    texts = {}
    if "language" in document:
        end = {"algorithm": "fedadam", "server_learning_rate": 0.005}
        training |= {"learning_rate": 0.5 if of_unit else 1.0}
        # that a row is too long must show nothing
        texts = {"language": document["language"] | {"overlong": "truncate"}}
    return texts | {
        "training": training | end,
        "privacy": {"epsilon": epsilon, "delta": chosen, "clip": 1.0, "rate": rate} | of_unit,
    }


def plan_of(document: dict[str, Any]) -> Plan:
    """Return the plan, with the messages that a file would get."""
    import msgspec

    from cloister.learning import Plan

    try:
        return msgspec.convert(document, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(f"the plan cannot be made: {error}", fix="Correct the option it names") from error


def code_of(kind: Kind, code: Path | None, factory: str | None) -> dict[str, Any]:
    """Return what `[model]` says of a module of the user's own.

    Raises:
        InputError: options do not fit each other, or the file cannot be read.
    """
    from cloister.files import read_bytes

    if (kind is Kind.TORCH) != (code is not None):
        raise InputError(
            "--model torch and --allow-user-code FILE belong together",
            fix="Name the Python file that defines the module, or take another model",
        )
    if code is None:
        if factory is not None:
            raise InputError("--factory is for --model torch", fix="Leave it out")
        return {}
    digest = hashlib.sha256(read_bytes(code, limit=1 << 20, what="model's file")).hexdigest()
    return {"code": digest, "factory": factory or "build"}
