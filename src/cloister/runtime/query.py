"""Private statistics wired to vaults and ledgers: one owner's dataset, or several sites in one process.

`ask` answers from one dataset, in this order:
1. the queries are checked against the schema and calibrated; bad input ends here and nothing was read;
2. the dataset is bound to its population by the rows' fingerprints, whatever its name;
3. the exact sums are computed;
4. the ledger is debited, durably; where the budget refuses, nothing is shown;
5. noise is added and answers are returned.

`FederatedQuery` holds the hub and the sites of one query in one process: everything is signed, encrypted,
masked and debited as between organisations, but nothing separates the parties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import IntegrityError, PlanError, PolicyRefused, ProtocolError
from cloister.privacy.accounting import renyi
from cloister.privacy.ledger import Ledger
from cloister.privacy.statistics import Answer, Measured, Query, QueryFile, Release, one_budget
from cloister.runtime.budget import populations_of
from cloister.runtime.ends import HubEnd, SiteEnd
from cloister.runtime.events import Event, OnEvent
from cloister.runtime.querybudget import LedgerQueryBudget, QueryBudget
from cloister.runtime.queryhub import QueryHub
from cloister.runtime.queryplan import QueryMember, QueryPlan, describe
from cloister.runtime.querysite import QuerySite
from cloister.runtime.workers.counting import ExactSums, sums_inside, sums_sandboxed
from cloister.types import RandomBytes
from cloister.vault import Manifest, Vault

__all__ = ["Asked", "FederatedQuery", "QueryParty", "QueryResult", "ask", "plan_query"]


@dataclass(frozen=True)
class Asked:
    """What one owner's dataset answered.

    Attributes:
        answers: in the order of the queries.
        epsilon: of all together, at `delta`.
        delta: of all together.
        populations: who was charged.
    """

    answers: tuple[Answer, ...]
    epsilon: float
    delta: float
    populations: tuple[str, ...]


def ask(
    asked: Query | QueryFile,
    vault: Vault,
    dataset: str,
    *,
    purpose: str,
    ledger: Ledger,
    identity: Identity | None = None,
) -> Asked:
    """Answer queries from a dataset of a vault; see the module's docstring for the order.

    Args:
        asked: one query with its epsilon, or a file of them.
        vault: where the dataset is.
        dataset: its name.
        purpose: what the answers are for.
        ledger: of the vault's owner.
        identity: the owner's; where it is given, a walled worker reads the rows and adds up, and where not,
            this process does.

    Raises:
        InputError: a query does not fit the dataset, or OpenDP is not installed.
        PolicyRefused: the dataset is not for this purpose, no budget covers its rows, or what is left of it
            does not suffice.
    """
    manifest = vault.manifest(dataset)
    release = Release.plan(asked, describe(manifest.schema, manifest.rows))  # 1
    with vault.open(dataset, purpose=purpose) as opened:
        populations = populations_of(ledger, vault, opened.manifest)  # 2
        if opened.manifest != manifest:
            raise IntegrityError("the dataset was replaced meanwhile", where=dataset, fix="Ask again")
        envelope = opened.envelope
    sums = _sums_of(vault, dataset, envelope, purpose, identity)
    measured = Measured(sums(release.questions, release.columns, release.sizes))  # 3
    cost = renyi(release.events, ledger.order(populations))
    ledger.spend(populations, _title(asked, dataset), cost)  # 4
    return Asked(release.publish(measured), release.epsilon, release.delta, populations)  # 5


def _sums_of(
    vault: Vault, dataset: str, envelope: bytes, purpose: str, identity: Identity | None
) -> ExactSums:
    """Return what adds up: in a walled worker where the owner's identity is given, else in this process."""
    if identity is None:
        return sums_inside(vault, dataset, envelope, purpose=purpose)
    return sums_sandboxed(vault, dataset, envelope, purpose=purpose, identity=identity)


def _title(asked: Query | QueryFile, dataset: str) -> str:
    queries = asked.queries if isinstance(asked, QueryFile) else (asked,)
    what = queries[0].title if len(queries) == 1 else f"{len(queries)} queries"
    return f"{what}, {dataset}"[:256]


@dataclass(frozen=True)
class QueryParty:
    """A site and what it brings.

    Attributes:
        identity: its keys.
        vault: where its rows are; the plan names the dataset.
        ledger: debited before anything leaves.
        trusted: the identities its owner trusts; None where one owner runs everybody and trusts all of them.
    """

    identity: Identity
    vault: Vault
    ledger: Ledger
    trusted: tuple[PublicIdentity, ...] | None = None


@dataclass(frozen=True)
class QueryResult:
    """What a query over several sites answered.

    Attributes:
        plan: what was asked.
        answers: in the order of the queries.
        survivors: the sites whose rows are in them.
        rows: how many rows these have.
        epsilon: of one sum against the plan's adversary, at `delta`.
        epsilon_hub: against the hub and outsiders.
        epsilon_colluders: against the hub with the plan's colluders.
        delta: of all of these.
        attempts: how many sums were tried and charged.
        debits: each site's signed statement of what its ledger was charged.
        bytes_sent: by everybody.
        transport: "memory".
    """

    plan: QueryPlan
    answers: tuple[Answer, ...]
    survivors: tuple[str, ...]
    rows: int
    epsilon: float
    epsilon_hub: float
    epsilon_colluders: float
    delta: float
    attempts: int
    debits: Mapping[str, bytes]
    bytes_sent: int
    transport: str = "memory"


def plan_query(
    queries: Query | QueryFile,
    hub: PublicIdentity,
    sites: Sequence[tuple[PublicIdentity, Manifest]],
    *,
    purpose: str,
    colluders: int | None = None,
    adversary: str = "colluders",
    sites_per_unit: int | None = None,
    attempts: int = 1,
) -> QueryPlan:
    """Return a plan over datasets of one schema.

    Args:
        queries: what is asked, with one budget.
        hub: who adds up.
        sites: each site and the manifest of its dataset.
        purpose: what the answers are for.
        colluders: see `QueryPlan`.
        adversary: "colluders" or "hub".
        sites_per_unit: at how many sites one unit may have rows; must be said where the schema has a unit.
        attempts: how often a sum may be tried; each is reserved at every site.

    Raises:
        PlanError: too few sites, or different schemas. InputError: no budget.
        PolicyRefused: a dataset is not for this purpose.
    """
    if not sites:
        raise PlanError("no site is asked", fix="Name three or more")
    (first, manifest), *others = sites
    for site, other in others:
        if other.schema.digest() != manifest.schema.digest():
            raise PlanError(
                f"{site.name} added its rows with another schema than {first.name}",
                fix="All sites of a query use the same schema file",
            )
    for site, own in sites:
        if purpose not in own.purposes:
            raise PolicyRefused(
                f"the dataset {own.name!r} of {site.name} may not be used for {purpose!r}",
                fix=f"It was added for {', '.join(map(repr, own.purposes))}",
            )
    if sites_per_unit is None and any(column.role == "unit" for column in manifest.schema.columns.values()):
        raise PlanError(
            "nobody says at how many sites one unit may have rows",
            fix="Say --sites-per-unit 1 if no unit has rows at two sites, else the largest number of sites",
        )
    return QueryPlan(
        purpose=purpose,
        hub=QueryMember(hub.name, hub.fingerprint),
        sites=tuple(QueryMember(site.name, site.fingerprint, own.name, own.rows) for site, own in sites),
        schema=manifest.schema.digest().hex(),
        queries=one_budget(queries),
        colluders=colluders,
        adversary="hub" if adversary == "hub" else "colluders",
        sites_per_unit=sites_per_unit or 1,
        attempts=attempts,
    )


class FederatedQuery:
    """The hub and the sites of one query, in one process.

    Args:
        plan: what is asked.
        hub: the identity the plan names as hub.
        sites: one `QueryParty` for each site of the plan.
        budgets: for tests: whom each site asks in the place of its ledger.
        sandboxed: whether each site's rows are read and added up in a walled process of their own.
        insecure_test_random: replaces the operating system's randomness, in tests alone.
    """

    def __init__(
        self,
        plan: QueryPlan,
        hub: Identity,
        sites: Sequence[QueryParty],
        *,
        budgets: Mapping[str, QueryBudget] | None = None,
        sandboxed: bool = False,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self.plan = plan
        self._hub_name = hub.name
        self._random, self._sandboxed = insecure_test_random, sandboxed
        self._budgets = budgets or {}
        public = {party.identity.name: party.identity.public for party in sites}
        schema = sites[0].vault.manifest(self._entry(sites[0]).dataset).schema
        plan.release(schema, len(plan.sites))  # what does not fit ends here, and nobody was asked
        self.sites = {party.identity.name: self._site(party, hub.public, public) for party in sites}
        self.hub = QueryHub(plan, hub, public, schema)
        random = insecure_test_random
        self._hub_end = HubEnd(self.hub, hub, public, plan.digest, insecure_test_random=random)
        self._ends = {
            party.identity.name: SiteEnd(
                self.sites[party.identity.name],
                party.identity,
                hub.public,
                plan.digest,
                insecure_test_random=random,
            )
            for party in sites
        }
        self._now = 0.0
        self._sent = 0

    def run(self, on_event: OnEvent | None = None) -> QueryResult:
        """Carry messages until there is an answer.

        Args:
            on_event: called with each `Event` as it happens.

        Raises:
            PolicyRefused: a site's owner or budget refuses. Attempts that did not begin are given back.
            ProtocolError: the query stopped; it names why.
        """
        notify: Callable[[Event], None] = on_event or (lambda event: None)
        try:
            _tell(self._hub_end.start(self._now), notify)
            for end in self._ends.values():
                end.open(self._now)
            while not (self.hub.finished or self.hub.stopped):
                if not self._carry(notify):  # in one process nobody is slow: who has not answered will not
                    self._now += self.plan.deadline_seconds
                    _tell(self._hub_end.tick(self._now), notify)
            self._carry(notify)
        finally:
            for site in self.sites.values():
                site.leave()
        if self.hub.stopped or self.hub.answers is None:
            raise ProtocolError(
                f"the query stopped: {self.hub.stopped}", fix="Nothing was answered; mend that and ask anew"
            )
        return self._result(self.hub.answers)

    def _carry(self, notify: Callable[[Event], None]) -> bool:
        """Carry what everybody has to send; False where nobody has anything."""
        carried = False
        for end in self._ends.values():
            for datagram in end.poll(self._now):
                carried = True
                self._sent += len(datagram)
                _tell(self._hub_end.receive(datagram, self._now), notify)
        for receiver, datagram in self._hub_end.poll(self._now):
            carried = True
            self._sent += len(datagram)
            try:
                self._ends[receiver].take(datagram, self._now)
            except PolicyRefused as error:
                error.where = f"{receiver}, {error.where}" if error.where else receiver
                raise
        return carried

    def _result(self, answers: tuple[Answer, ...]) -> QueryResult:
        epoch = self.hub.epoch
        return QueryResult(
            plan=self.plan,
            answers=answers,
            survivors=self.hub.survivors,
            rows=sum(epoch.rows[name] for name in self.hub.survivors),
            epsilon=epoch.release.epsilon_against(self.plan.adversary),
            epsilon_hub=epoch.release.epsilon_against("hub"),
            epsilon_colluders=epoch.release.epsilon_against("colluders"),
            delta=epoch.release.delta,
            attempts=self.hub.attempts,
            debits=dict(self.hub.debits),
            bytes_sent=self._sent,
        )

    def _entry(self, party: QueryParty) -> QueryMember:
        for entry in self.plan.sites:
            if entry.name == party.identity.name:
                return entry
        raise PlanError("the query does not name this site", where=party.identity.name, fix="Ask it too")

    def _site(
        self, party: QueryParty, hub: PublicIdentity, public: Mapping[str, PublicIdentity]
    ) -> QuerySite:
        entry = self._entry(party)
        everybody = public.values() if party.trusted is None else (party.identity.public, *party.trusted)
        with party.vault.open(entry.dataset, purpose=self.plan.purpose) as dataset:
            manifest, envelope = dataset.manifest, dataset.envelope
        budget = self._budgets.get(entry.name)
        if budget is None:
            budget = LedgerQueryBudget(party.ledger, populations_of(party.ledger, party.vault, manifest))
        walled = party.identity if self._sandboxed else None
        return QuerySite(
            self.plan,
            party.identity,
            hub,
            trusted={identity.fingerprint: identity for identity in everybody},
            manifest=envelope,
            schema=manifest.schema,
            sums=_sums_of(party.vault, entry.dataset, envelope, self.plan.purpose, walled),
            budget=budget,
            insecure_test_random=self._random,
        )


def _tell(events: Sequence[Event], notify: Callable[[Event], None]) -> None:
    for event in events:
        notify(event)
