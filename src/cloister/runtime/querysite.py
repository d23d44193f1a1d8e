"""A site that is asked together with others, as a state machine: messages in, messages out.

What it shares with every site of a secure sum, steps 1 to 4, is in `sumsite`; what the roster costs is
derived and reserved in the ledger before it is countersigned. Then, each step refused out of turn:

    5. RoundStart: the attempt is debited, durably; then rows are read, noise is added, the vector is masked,
       Upload
    6. Request: answered by the rules of `secagg`
    7. Finish: the sum, from which the site reads the same answers as the hub; Done with the signed debit

The exact sums exist for the length of one call and never in a message. A fresh attempt has fresh noise, and
is debited again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.crypto import Buffer, Identity, PublicIdentity, sha256
from cloister.errors import PolicyRefused, ProtocolError
from cloister.privacy.statistics import Answer, FederatedRelease
from cloister.runtime.agreed import agreed_of
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.messages import Done, Finish, Message, Ready, Request, RosterOffer, RoundStart, Upload
from cloister.runtime.querybudget import QueryBudget
from cloister.runtime.queryplan import QueryPlan
from cloister.runtime.sumsite import SumSite
from cloister.runtime.workers.counting import ExactSums
from cloister.secagg import EpochContext, Roster
from cloister.types import RandomBytes
from cloister.vault import Schema, open_manifest

__all__ = ["QueryEpoch", "QuerySite"]

BITS = 32


@dataclass(frozen=True)
class QueryEpoch(RosterTerms):
    """What all members of a query's roster agree on. Made by `of`.

    Attributes:
        release: what is answered and paid.
    """

    release: FederatedRelease

    @classmethod
    def of(
        cls,
        plan: QueryPlan,
        schema: Schema,
        number: int,
        members: tuple[PublicIdentity, ...],
        manifests: Mapping[str, bytes],
    ) -> QueryEpoch:
        """Return the terms of a roster. Raises PlanError where it protects nobody."""
        named = {member.name: member for member in plan.sites}
        context = EpochContext(
            plan_digest=plan.digest,
            roster=Roster(members),
            epoch=number,
            attempts=plan.attempts,
            params=plan.params(len(members)),
            bits=BITS,
            hub_view="sum",
        )
        rows = {member.name: named[member.name].rows for member in members}
        return cls(context, rows, manifests, plan.release(schema, len(members)))

    def read_total(self, total: Buffer) -> NDArray[np.uint32]:
        """Return uint32[size] of a sum's bytes. Raises ProtocolError where there are more or fewer."""
        if len(total) != 4 * self.release.size:
            raise ProtocolError(f"a sum of {len(total)} bytes is not what was asked for")
        return np.frombuffer(total, dtype="<u4").astype(np.uint32)

    def answers(self, survivors: tuple[str, ...], total: Buffer) -> tuple[Answer, ...]:
        """Return the answers in a sum. Raises ProtocolError, InputError where it is not one of this
        roster's."""
        rows = sum(self.rows[name] for name in survivors)
        return self.release.answers(self.read_total(total), survivors=len(survivors), rows=rows)


class QuerySite(SumSite[QueryEpoch]):
    """One site of one query.

    Args:
        plan: what its owner agreed to be asked.
        identity: the site's own keys.
        hub: the hub that the plan names.
        trusted: public identities the owner trusts, by fingerprint.
        manifest: signed manifest of its dataset.
        schema: of its dataset.
        sums: adds up over its rows, for the plan's purpose; what it returns is private and gets noise here.
        budget: debited before anything leaves.
        insecure_test_random: source of keys, seeds, shares and noise in tests.

    Raises:
        PolicyRefused: the plan does not name this site, its dataset's rows, or this hub.
    """

    def __init__(
        self,
        plan: QueryPlan,
        identity: Identity,
        hub: PublicIdentity,
        *,
        trusted: Mapping[str, PublicIdentity],
        manifest: bytes,
        schema: Schema,
        sums: ExactSums,
        budget: QueryBudget,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        super().__init__(
            agreed_of(plan),
            identity,
            hub,
            trusted=trusted,
            manifest=manifest,
            rows=open_manifest(manifest, identity.public).rows,
            budget=budget,
            insecure_test_random=insecure_test_random,
        )
        if self.rows != next(site.rows for site in plan.sites if site.name == self.name):
            raise PolicyRefused(
                "the query states another number of rows than this site's manifest",
                where=self.name,
                fix="Ask anew: the dataset was replaced since",
            )
        self._plan = plan
        self._schema = schema
        self._sums = sums
        self._budget = budget
        self.answers: tuple[Answer, ...] | None = None

    def __repr__(self) -> str:
        return f"QuerySite({self._identity.name})"

    # --- what the shared part asks ----------------------------------------------------------------

    def _terms(
        self,
        number: int,
        members: Sequence[PublicIdentity],
        rows: Mapping[str, int],
        manifests: Mapping[str, bytes],
    ) -> QueryEpoch:
        epoch = QueryEpoch.of(self._plan, self._schema, number, tuple(members), manifests)
        if epoch.rows != rows:
            raise ProtocolError("offered a roster with other row counts than the plan's", peer=self._hub.name)
        return epoch

    def _admit(self, terms: QueryEpoch) -> None:
        # whomever epsilon speaks of, the ledger pays for those who see most
        self._budget.admit(self._plan, terms.release.events("colluders"))

    def _after_setup(self) -> tuple[tuple[type[Message], ...], Ready]:
        return (RoundStart, RosterOffer), Ready(self._secure_sum().setup_digest)

    # --- the sum ----------------------------------------------------------------------------------

    def _on_round_start(self, start: RoundStart) -> list[Message]:
        if not self._attempt < start.attempt < self._plan.attempts or start.outcome is not None:
            raise ProtocolError("started an attempt that was used or is beyond the plan", peer=self._hub.name)
        release = self._current().terms.release
        self._attempt = start.attempt
        self._budget.enter(start.attempt)
        sums = self._sums(release.questions, release.columns, release.sizes)
        vector = release.noised(sums, insecure_test_random=self._random)
        body = self._secure_sum().upload(start.attempt, vector, self._plan.digest)
        self._expected = (Request, RoundStart, Finish)
        return [Upload(start.attempt, memoryview(body))]

    def _on_finish(self, message: Finish) -> list[Message]:
        outcome = message.outcome
        if outcome.attempt != self._attempt:
            raise ProtocolError("ended with an attempt that is not running", peer=self._hub.name)
        # the secure sum refuses lists that are too short, repeat a site, or are not the one this site chose
        total = self._current().terms.read_total(outcome.total)
        self._secure_sum().open_sum(outcome.attempt, outcome.survivors, total, self._plan.digest)
        self.answers = self._current().terms.answers(tuple(outcome.survivors), outcome.total)
        self._expected = ()
        self.finished = True
        return [Done(sha256(outcome.total), debit=self.leave())]
