"""A whole study in one process: a hub and its sites over the in-memory network.

Everything is as between organisations except the wire and the walls between processes: every message is
serialised, signed and encrypted, every update is masked, every machine sees only its own mailbox. It is for
trying a plan out, for the demo and for simulation; the result says so (`transport = "memory"`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, PlanError, ProtocolError
from cloister.learning import Plan
from cloister.learning.facts import ModelFacts
from cloister.runtime.appraisal import AGGREGATOR, WORKER
from cloister.runtime.attestation import Attesting
from cloister.runtime.drive import drive_hub, drive_site
from cloister.runtime.ends import HubEnd, SiteEnd
from cloister.runtime.epoch import terms_of
from cloister.runtime.events import Event, OnEvent
from cloister.runtime.gate import check_attesting
from cloister.runtime.hub import Hub
from cloister.runtime.party import Party, dataset_of, site_of
from cloister.runtime.result import StudyResult
from cloister.runtime.transport import MemoryNetwork, MemoryTransport
from cloister.types import RandomBytes

__all__ = ["Study"]


class Study:
    """Runs a plan in one process.

    Args:
        plan: a complete plan with its initial model pinned.
        hub: the identity the plan names as hub.
        sites: one `Party` for each site of the plan that takes part.
        user_code: the Python file of a module of the user's own; naming it lets hub and sites run it.
        sandboxed: whether each site's rows are trained on in a walled process of their own. Only there a
            user's code runs then; the hub takes what it needs to know from a worker.
        attesting: where the plan asks for evidence, returns what a party shows and how it judges, for a
            purpose (`AGGREGATOR`, `WORKER`) and the identity that is vouched for: the hub's, a worker's own,
            or the site's where its rows are worked on in this process. One machine vouches for all of them.
        insecure_test_random: replaces the operating system's randomness, in tests and paired benchmarks
            alone.
    """

    def __init__(
        self,
        plan: Plan,
        hub: Identity,
        sites: Sequence[Party],
        *,
        user_code: Path | None = None,
        sandboxed: bool = False,
        attesting: Callable[[str, PublicIdentity], Attesting] | None = None,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        if not sites:
            raise PlanError(
                "no site takes part", where="[[sites]]", fix="Give one Party for each site of the plan"
            )
        if attesting is None:
            check_attesting(None, plan.reattest_seconds, f"study {plan.study.name}")
        self.plan = plan
        self.hub_identity = hub
        self._random = insecure_test_random
        self._attesting = attesting if plan.reattest_seconds is not None else None
        self._network = MemoryNetwork()
        self._public = {party.identity.name: party.identity.public for party in sites}
        self._identities = {party.identity.name: party.identity for party in sites}
        everybody = tuple(self._public.values())
        self.sites = {
            party.identity.name: site_of(
                plan,
                hub.public,
                party,
                everybody,
                user_code=user_code,
                sandboxed=sandboxed,
                insecure_test_random=insecure_test_random,
            )
            for party in sites
        }
        if plan.privacy is not None:
            self._check_claim(plan, self._public)
        first = sites[0]
        schema = first.vault.manifest(dataset_of(plan, first.identity.name)).schema
        stated = self.sites[first.identity.name].shape
        facts = stated if isinstance(stated, ModelFacts) else None
        self.hub = Hub(plan, hub, self._public, schema, user_code=user_code, facts=facts)

    def _check_claim(self, plan: Plan, public: Mapping[str, PublicIdentity]) -> None:
        """Refuse a claim that does not hold for these sites, before anybody opens a row."""
        first, *_ = self.sites.values()
        rows = {name: site.rows for name, site in self.sites.items()}
        digests = dict.fromkeys(rows, bytes(32))
        terms_of(plan, 0, list(public.values()), rows, digests, first.bounded, first.shape)

    @property
    def bytes_sent(self) -> int:
        """Bytes that all parties have sent so far."""
        return self._network.carried.total()

    def run(self, on_event: OnEvent | None = None) -> StudyResult:
        """Run all rounds.

        Args:
            on_event: called with each `Event` as it happens.

        Raises:
            ProtocolError, PolicyRefused, InputError: whatever stopped a party; nothing is released.
        """
        asyncio.run(self._run(on_event or (lambda event: None)))
        if self.hub.stopped is not None:
            raise ProtocolError(
                f"the study stopped: {self.hub.stopped}",
                fix="Nothing was released; start it again once that is mended",
            )
        return self._result()

    async def _run(self, on_event: Callable[[Event], None]) -> None:
        transports = {name: self._network.join(name) for name in self.sites}
        hub_transport = self._network.join(self.hub_identity.name)
        study, random = self.plan.digest, self._random
        hub_end = HubEnd(
            self.hub,
            self.hub_identity,
            self._public,
            study,
            attesting=self._attesting and self._attesting(AGGREGATOR, self.hub_identity.public),
            insecure_test_random=random,
        )
        tasks = [asyncio.create_task(self._run_site(name, transports[name])) for name in self.sites]
        tasks.append(asyncio.create_task(drive_hub(hub_end, hub_transport, on_event, until=self._hub_over)))
        try:
            # the first party that fails ends the study: in one process there is nobody to wait for
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for site in self.sites.values():
                site.leave()

    async def _run_site(self, name: str, transport: MemoryTransport) -> None:
        site = self.sites[name]
        worker: PublicIdentity = getattr(site.worker, "identity", self._public[name])
        end = SiteEnd(
            site,
            self._identities[name],
            self.hub_identity.public,
            self.plan.digest,
            attesting=self._attesting and self._attesting(WORKER, worker),
            insecure_test_random=self._random,
        )

        def over() -> bool:
            return site.finished or site.stopped is not None or self.hub.finished or bool(self.hub.stopped)

        await drive_site(end, transport, self.hub_identity.name, until=over)

    def _hub_over(self) -> bool:
        return self.hub.finished or self.hub.stopped is not None

    def _result(self) -> StudyResult:
        first = self.sites[self.hub.epochs[-1].terms.first.name]
        if first.study_key is None:
            raise CloisterError("the study ended without a study key")
        names = self.hub.epochs[-1].terms.roster.names
        return self.hub.result(
            model=first.model.released(),
            study_key=first.study_key,
            clamped={name: self.sites[name].clamped for name in names if self.plan.data.public_rows},
            traffic=Counter(self._network.carried),
        )
