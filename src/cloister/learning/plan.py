"""The study plan: who trains what, how, on which data. Frozen data that everything else interprets.

A plan is TOML. Reading it refuses unknown keys (naming the nearest known one), values out of range, and every
table that this version cannot honour. Its digest is SHA-256 over canonical JSON of all its fields, defaults
written out and absent optional fields left out; what is signed, masked and logged is bound to that digest.

    load_plan(path) -> Plan          parse_plan(bytes) -> Plan          plan.to_toml() -> str

The plan holds no rows, keys or addresses. It checks itself alone: whether a schema has its features is for
`FeatureMap`, whether the pinned start is the right one for `cloister.learning.start`.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloister.crypto import canonical_bytes
from cloister.errors import InputError, PlanError
from cloister.files import read_bytes
from cloister.learning.language.layout import Tensor, Window
from cloister.learning.ranges import check_between, check_distinct
from cloister.learning.refusals import check_aggregation, check_averaging, check_language, refuse_unsound
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    EnclaveSection,
    HubEntry,
    LanguageSection,
    ModelSection,
    PrivacySection,
    ReleaseSection,
    Section,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.learning.tensorranges import ranges_within
from cloister.learning.toml import write_toml
from cloister.policy import decode_toml
from cloister.secagg import Encoding, Params
from cloister.secagg.context import MAX_ATTEMPTS
from cloister.secagg.parameters import default_colluders

__all__ = ["MAX_PLAN_BYTES", "Plan", "load_plan", "parse_plan"]

MAX_PLAN_BYTES = 4 << 20
_NOT_HONOURED = {
    "simulation": "simulated sites",
}


class Plan(Section, frozen=True, kw_only=True):
    """A whole study plan; see the module's docstring."""

    study: StudySection
    hub: HubEntry
    sites: tuple[SiteEntry, ...]
    data: DataSection
    model: ModelSection
    training: TrainingSection
    aggregation: AggregationSection = AggregationSection()
    privacy: PrivacySection | None = None
    release: ReleaseSection = ReleaseSection()
    enclave: EnclaveSection | None = None  # null and not a default: plans without it keep their digest
    language: LanguageSection | None = None

    def __post_init__(self) -> None:
        check_between(len(self.sites), self.study.minimum_sites, 100_000, "the number of [[sites]]")
        check_distinct([self.hub.name, *(site.name for site in self.sites)], "names of [hub] and [[sites]]")
        check_distinct(
            [self.hub.identity, *(site.identity for site in self.sites)], "identities of [hub] and [[sites]]"
        )
        check_between(self.attempts, 1, MAX_ATTEMPTS, "[training] rounds with [study] spare_rounds")
        check_language(self.data, self.model, self.language, private=self.privacy is not None)
        check_averaging(self.training, self.language)
        check_aggregation(self.aggregation, self.language, self.privacy)
        if self.privacy is not None:
            refuse_unsound(self.privacy, self.data, self.model, self.training)

    @property
    def digest(self) -> bytes:
        """SHA-256 over the plan's canonical bytes, 32 bytes."""
        return hashlib.sha256(canonical_bytes(_present(msgspec.to_builtins(self)))).digest()

    @property
    def spare_rounds(self) -> int:
        """Attempts beyond `rounds`: as written, else the larger of 3 and 5 %, rounded up."""
        written = self.study.spare_rounds
        return written if written is not None else max(3, (self.training.rounds * 5 + 99) // 100)

    @property
    def attempts(self) -> int:
        """How often a round may be tried in the whole study: rounds and spares."""
        return self.training.rounds + self.spare_rounds

    @property
    def reattest_seconds(self) -> int | None:
        """How old evidence may be that hub and sites ask of each other; None where they ask for none."""
        return self.enclave.reattest_seconds if self.enclave is not None and self.enclave.required else None

    @property
    def block_attempts(self) -> int:
        """Attempts that a ledger debits at a time under `[privacy]`: as written, else a twentieth of all."""
        written = None if self.privacy is None else self.privacy.block_attempts
        return written or -(-self.attempts // 20)

    def params(self, parties: int) -> Params:
        """Return n, c, t, m of the secure sum for a roster of `parties` sites.

        c is a promise about the sites of the plan: where it is not written it comes from their number, not
        the roster's, since the hub proposes the roster and may leave out whom it likes.

        Raises:
            PlanError: no threshold protects such a roster.
        """
        section = self.aggregation
        return Params.derive(
            parties,
            colluders=default_colluders(len(self.sites)) if section.colluders is None else section.colluders,
            threshold=section.threshold,
            noise_minimum=None if self.privacy is None else self.privacy.noise_minimum,
            allow_two=len(self.sites) == 2,
        )

    def encoding(
        self, parties: int, tensors: Sequence[Tensor] = (), window: Window | None = None
    ) -> Encoding:
        """Return the fixed point of a roster of `parties` sites.

        Args:
            parties: vectors that are added at most.
            tensors: of the model's vector, for ranges of their own; without them everything has the plan's
                one range.
            window: which elements of the vector are added; all of them by default.

        Raises:
            PlanError: the ring is too narrow for so many sites, or a range is written for no tensor.
        """
        section = self.aggregation
        ranges = ranges_within(section.tensor_ranges, section.value_range, tensors, window) if tensors else ()
        return Encoding(section.bits, parties, section.value_range, ranges)

    def to_toml(self) -> str:
        """Return TOML that `parse_plan` reads back as an equal plan."""
        return write_toml(msgspec.to_builtins(self))


def parse_plan(data: bytes, *, allow_two: bool = False) -> Plan:
    """Return the plan written in `data`.

    Args:
        data: TOML, UTF-8, at most 4 MiB.
        allow_two: accept two sites, of which each can compute the other's update; for the tutorial alone.

    Raises:
        PlanError: it is not TOML, holds unknown keys, a value out of range, or what this version cannot
            honour.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(
            f"the plan is larger than {MAX_PLAN_BYTES} bytes", fix="Check that it is the right file"
        )
    _refuse_unhonoured(data)
    try:
        plan = decode_toml(data, Plan, "plan")
    except PlanError:
        raise
    except InputError as error:
        raise PlanError(error.what, where=error.where, fix=error.fix) from error
    if plan.study.minimum_sites < 3 and not allow_two:
        raise PlanError(
            "with two sites each can compute the other's update",
            where="[study] minimum_sites",
            fix="Write 3 or more; two sites are for the tutorial",
        )
    plan.encoding(len(plan.sites))
    plan.params(len(plan.sites))
    try:
        plan.params(plan.study.minimum_sites)
    except PlanError as error:
        raise PlanError(
            f"a roster of minimum_sites = {plan.study.minimum_sites} is too small: {error.what}",
            where="[study] minimum_sites",
            fix="Raise minimum_sites; or write a lower threshold or fewer colluders in [aggregation]",
        ) from error
    return plan


def load_plan(path: Path, *, allow_two: bool = False) -> Plan:
    """Return the plan in a file; as `parse_plan`."""
    return parse_plan(read_bytes(path, limit=MAX_PLAN_BYTES, what="plan"), allow_two=allow_two)


def _refuse_unhonoured(data: bytes) -> None:
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return  # decode_toml says it better
    for table, meaning in _NOT_HONOURED.items():
        if table in document:
            raise PlanError(
                f"this version cannot honour {meaning}",
                where=f"[{table}]",
                fix="Take the table out, or use a version that has it; it is never ignored",
            )


def _present(value: object) -> object:
    """Leave absent optional fields out, so that a later version's new ones do not change old digests."""
    if isinstance(value, dict):
        return {key: _present(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_present(each) for each in value]
    return value
