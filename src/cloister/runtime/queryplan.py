"""What several sites are asked together: a plan, as frozen as a study's, and what follows from it.

Hub and sites hold the same plan before they talk; its digest enters every key, mask and signature. A plan is
asked once: its nonce is fresh, so the same questions asked again are another plan and are paid for again.

What a roster answers follows from plan, schema and the number of its members alone: thresholds, noise
shares, grids, events and both epsilons. So every site derives what it agrees to, and debits that.
"""

from __future__ import annotations

import functools
import math
import secrets
from typing import Annotated, Literal

import msgspec

from cloister.crypto import canonical_bytes, sha256
from cloister.errors import InputError, PlanError
from cloister.privacy.statistics import Declarations, Declared, FederatedRelease, Federation, QueryFile
from cloister.secagg import Params
from cloister.secagg.parameters import default_colluders
from cloister.types import check_name
from cloister.vault import Schema

__all__ = ["QueryMember", "QueryPlan", "describe"]

Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
MAX_ATTEMPTS = 100


class QueryMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A party of the plan.

    Attributes:
        name: its identity's name.
        identity: its fingerprint.
        dataset: what a site is asked of; empty for the hub.
        rows: how many rows the dataset has, by its signed manifest; 0 for the hub.
    """

    name: str
    identity: str
    dataset: str = ""
    rows: int = 0


class QueryPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Questions to several sites.

    Attributes:
        purpose: what the answers are for; a site opens its dataset for this purpose alone.
        hub: who adds up and learns the sum.
        sites: who is asked, three or more.
        schema: digest of the schema that all their datasets have, 64 hexadecimal digits.
        queries: one budget of epsilon and delta, and the questions.
        colluders: sites that may tell the hub what they know; None for max(1, ceil(n / 3) - 1) of the n
            sites of the plan.
        adversary: against whom epsilon is: the hub with the colluders, or the hub alone.
        sites_per_unit: at how many sites one unit may have rows.
        attempts: how often a sum may be tried; each is reserved before, and charged when it begins.
        deadline_seconds: how long the hub waits before a site counts as dropped out.
        nonce: 64 hexadecimal digits, fresh for each plan.
        version: of the meaning of these fields.

    Raises:
        PlanError, InputError: they contradict each other.
    """

    purpose: str
    hub: QueryMember
    sites: tuple[QueryMember, ...]
    schema: Hex32
    queries: QueryFile
    colluders: int | None = None
    adversary: Literal["hub", "colluders"] = "colluders"
    sites_per_unit: int = 1
    attempts: int = 1
    deadline_seconds: float = 60.0
    nonce: Hex32 = msgspec.field(default_factory=lambda: secrets.token_hex(32))
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        for member in (self.hub, *self.sites):
            check_name(member.name)
        for what, values in (
            ("name", [member.name for member in (self.hub, *self.sites)]),
            ("identity", [member.identity for member in self.sites]),
        ):
            if len(set(values)) < len(values):
                raise PlanError(f"two parties of the query share a {what}", fix="Name each once")
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise PlanError(f"attempts = {self.attempts}", fix=f"Take 1 to {MAX_ATTEMPTS}")
        if not (math.isfinite(self.deadline_seconds) and self.deadline_seconds > 0.0):
            raise PlanError(f"deadline_seconds = {self.deadline_seconds:g}", fix="Take a positive number")
        if any(member.rows < 0 for member in self.sites):
            raise PlanError("a site has a negative number of rows", fix="Copy it from its manifest")
        self.federation(len(self.sites))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes, 32 bytes."""
        return sha256(canonical_bytes(self))

    @property
    def rows(self) -> int:
        """Rows of all sites together."""
        return sum(member.rows for member in self.sites)

    @property
    def title(self) -> str:
        """What is asked, in a few words without any value."""
        queries = self.queries.queries
        return (
            queries[0].title if len(queries) == 1 else f"{len(queries)} queries over {len(self.sites)} sites"
        )

    def params(self, members: int) -> Params:
        """Return the thresholds of a roster.

        c is a promise about the sites of the plan: where it is not written it comes from their number, not
        the roster's, since the hub proposes the roster and may leave out whom it likes.

        Raises:
            PlanError: they protect nobody.
        """
        colluders = default_colluders(len(self.sites)) if self.colluders is None else self.colluders
        return Params.derive(members, colluders=colluders)

    def federation(self, members: int) -> Federation:
        """Return who adds up, for a roster of so many members. Raises PlanError."""
        params = self.params(members)
        return Federation(
            sites=members,
            minimum=params.minimum,
            colluders=params.colluders,
            adversary=self.adversary,
            sites_per_unit=min(self.sites_per_unit, members),
        )

    def release(self, schema: Schema, members: int) -> FederatedRelease:
        """Return what a roster of so many members answers and pays.

        Args:
            schema: the one that the plan names.
            members: of the roster.

        Raises:
            InputError: a query does not fit the schema, or the rows the ring.
            PlanError: the schema is another, or too few members.
        """
        if schema.digest().hex() != self.schema:
            raise PlanError("the schema is not the one that the query names", fix="Use that of the sites")
        return _release(canonical_bytes(self), canonical_bytes(schema), members)

    @classmethod
    def read(cls, data: bytes) -> QueryPlan:
        """Parse canonical bytes. Raises InputError where they are no such plan."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError("this is no plan of a query", fix="Ask for it again") from error


@functools.lru_cache(maxsize=8)
def _release(plan: bytes, schema: bytes, members: int) -> FederatedRelease:
    """Calibrate once: the hub and all sites of a process derive the same."""
    own = QueryPlan.read(plan)
    declared = describe(msgspec.json.decode(schema, type=Schema), own.rows)
    return FederatedRelease.plan(own.queries, declared, own.federation(members))


def describe(schema: Schema, rows: int) -> Declarations:
    """Return what a schema declares, for statistics: features and labels that are no free text.

    Args:
        schema: of a dataset.
        rows: how many it has.

    Raises:
        InputError: the schema declares no column that can be asked of.
    """
    columns = {}
    for name, column in schema.columns.items():
        if column.role not in ("feature", "label") or column.type == "text":
            continue
        columns[name] = Declared(
            kind=column.type,
            bounds=column.bounds,
            categories=column.categories,
            missing=column.missing == "allow",
        )
    units = schema.by_role("unit")
    return Declarations(columns=columns, rows=rows, unit=units[0] if units else None)
