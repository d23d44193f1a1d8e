"""The hub of a query over several sites: it adds up one noisy vector.

What it shares with every hub of a secure sum, its order and its deadlines, is in `sumhub`. It sends everybody
the sum, and collects their ledgers' signed debits. An attempt that was burnt is
followed by a fresh one, with fresh noise and at everybody's renewed expense.

It holds masked vectors, their sum, and what the sum says. The sum has its noise before it is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloister.crypto import Identity, PublicIdentity, keyring, sha256
from cloister.errors import ProtocolError
from cloister.privacy.ledger import open_debit
from cloister.privacy.statistics import Answer
from cloister.runtime.agreed import agreed_of
from cloister.runtime.messages import Done, Finish, Join, Outcome
from cloister.runtime.queryplan import QueryPlan
from cloister.runtime.querysite import QueryEpoch
from cloister.runtime.sumhub import SumHub
from cloister.secagg import RoundSum, model_digest
from cloister.vault import Manifest, Schema

__all__ = ["QueryHub"]


class QueryHub(SumHub[QueryEpoch]):
    """The hub of one query.

    Args:
        plan: what is asked.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: the public schema that the plan names.

    Attributes:
        answers: once there is a sum.
        survivors: whose rows are in it.
        debits: signed statement of each site's ledger, as they come in.
        finished: whether everybody has the sum, or was waited for.
        stopped: why there is none, or None.

    Raises:
        PlanError: another hub is named, or a site's identity is not the plan's.
    """

    ACTIVITY = "query"

    def __init__(
        self,
        plan: QueryPlan,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        schema: Schema,
    ) -> None:
        super().__init__(
            agreed_of(plan),
            identity,
            sites,
            schema=plan.schema,
            deadline_seconds=plan.deadline_seconds,
        )
        self._plan = plan
        self._schema = schema
        self.answers: tuple[Answer, ...] | None = None
        self.survivors: tuple[str, ...] = ()
        self._tag = b""

    def __repr__(self) -> str:
        return f"QueryHub({self._phase}, attempt {self._attempt})"

    @property
    def epoch(self) -> QueryEpoch:
        """The terms of the newest roster. Raises ProtocolError before there is one."""
        return self._current().terms

    @property
    def attempts(self) -> int:
        """How many sums were tried."""
        return self._attempt + 1

    # --- what the shared part asks ----------------------------------------------------------------

    def _terms(self, number: int, names: Sequence[str]) -> QueryEpoch:
        members = tuple(self._sites[name] for name in names)
        return QueryEpoch.of(self._plan, self._schema, number, members, self._manifests(names))

    def _check_join(self, peer: str, join: Join, manifest: Manifest) -> None:
        rows = next(site.rows for site in self._plan.sites if site.name == peer)
        if not join.rows == manifest.rows == rows:
            raise ProtocolError("states another row count than its manifest or the query", peer=peer)

    def _prepare(self, now: float) -> tuple[bytes | None, int]:
        return model_digest(self._plan.digest), self.epoch.release.size

    def _on_sum(self, result: RoundSum, now: float) -> None:
        total = result.total.astype("<u4").tobytes()
        self.answers = self.epoch.answers(result.survivors, total)
        self.survivors, self._tag = result.survivors, sha256(total)
        self._enter("done", now)
        self._broadcast(Finish(Outcome(0, self._attempt, list(result.survivors), memoryview(total))))

    def _on_done(self, peer: str, message: Done) -> None:
        if message.tag != self._tag:
            raise ProtocolError("ended with another sum", peer=peer)
        if message.debit is not None:
            debit = open_debit(message.debit, keyring([self._sites[peer]]))
            if debit.study != self._plan.digest.hex():
                raise ProtocolError("sent the debit of another query", peer=peer)
            self.debits[peer] = message.debit
        self._answered.add(peer)
        self.finished = len(self._answered) == len(self._members())

    def _conclude(self) -> None:
        self.finished = True
