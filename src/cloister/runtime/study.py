"""A whole study in one process: a hub and its sites over the in-memory network.

Everything is as between organisations except the wire and the walls between processes: every message is
serialised, signed and encrypted, every update is masked, every machine sees only its own mailbox. It is for
trying a plan out, for the demo and for simulation; the result says so (`transport = "memory"`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cloister.crypto import Identity, PublicIdentity, StreamRandom
from cloister.errors import CloisterError, IntegrityError, PlanError, PolicyRefused, ProtocolError
from cloister.learning import Plan
from cloister.learning.privacy import private_model
from cloister.privacy.ledger import Ledger
from cloister.runtime.budget import LedgerBudget, populations_of
from cloister.runtime.epoch import terms_of
from cloister.runtime.events import Event, OnEvent
from cloister.runtime.hub import Hub, Step
from cloister.runtime.result import EpochFacts, StudyResult
from cloister.runtime.site import Site
from cloister.runtime.transport import MemoryNetwork, MemoryTransport
from cloister.runtime.worker import LocalWorker
from cloister.types import RandomBytes
from cloister.vault import Manifest, Vault

__all__ = ["Party", "Study", "StudyResult"]

_IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class Party:
    """A site and what it brings.

    Attributes:
        identity: the site's keys; its name is the name in the plan.
        vault: where its rows are; the plan names the dataset.
        held_out: dataset of rows to evaluate on, or None.
        trusted: the identities its owner trusts; None where one owner runs everybody and trusts all of them.
        ledger: what its owner has spent and may spend; needed where the plan claims privacy. Where the plan
            claims none, rows that have a budget in it are refused.
    """

    identity: Identity
    vault: Vault
    held_out: str | None = None
    trusted: tuple[PublicIdentity, ...] | None = None
    ledger: Ledger | None = None


class Study:
    """Runs a plan in one process.

    Args:
        plan: a complete plan with its initial model pinned.
        hub: the identity the plan names as hub.
        sites: one `Party` for each site of the plan that takes part.
        user_code: the Python file of a module of the user's own; naming it lets hub and sites run it.
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
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        if not sites:
            raise PlanError(
                "no site takes part", where="[[sites]]", fix="Give one Party for each site of the plan"
            )
        self.plan = plan
        self.hub_identity = hub
        self._random = insecure_test_random
        self._user_code = user_code
        self._network = MemoryNetwork()
        public = {party.identity.name: party.identity.public for party in sites}
        everybody = tuple(public.values())
        self.sites = {party.identity.name: self._site(party, everybody) for party in sites}
        if plan.privacy is not None:
            self._check_claim(plan, public)
        schema = sites[0].vault.manifest(self._dataset_of(sites[0])).schema
        self.hub = Hub(
            plan, hub, public, schema, user_code=user_code, insecure_test_random=insecure_test_random
        )

    def _check_claim(self, plan: Plan, public: Mapping[str, PublicIdentity]) -> None:
        """Refuse a claim that does not hold for these sites, before anybody opens a row."""
        first, *_ = self.sites.values()
        rows = {name: site.rows for name, site in self.sites.items()}
        digests = dict.fromkeys(rows, bytes(32))
        terms_of(plan, 0, list(public.values()), rows, digests, private_model(first.learner))

    def _site(self, party: Party, everybody: tuple[PublicIdentity, ...]) -> Site:
        trusted = everybody if party.trusted is None else (party.identity.public, *party.trusted)
        with party.vault.open(self._dataset_of(party), purpose=self.plan.study.purpose) as dataset:
            manifest, envelope = dataset.manifest, dataset.envelope
        budget = self._budget(party, manifest)
        self._check_evaluation(party)
        random = StreamRandom(self._random(32)) if self._random is not None else None
        worker = LocalWorker(
            self.plan,
            manifest.schema,
            self._reader(party.vault, manifest.name, envelope),
            user_code=self._user_code,
            evaluation=None if party.held_out is None else self._reader(party.vault, party.held_out, None),
            insecure_test_random=random,
        )
        return Site(
            self.plan,
            party.identity,
            self.hub_identity.public,
            trusted={identity.fingerprint: identity for identity in trusted},
            manifest=envelope,
            rows=manifest.rows,
            worker=worker,
            budget=budget,
            insecure_test_random=self._random,
        )

    def _budget(self, party: Party, manifest: Manifest) -> LedgerBudget | None:
        """Return the site's budget: bound to the population whose rows the dataset holds.

        A budget is about everything that is ever released from its rows. So where they have one, a plan
        without `[privacy]` does not train on them: who writes a plan may not go around what their owner
        promised.
        """
        ledger, where = party.ledger, f"dataset {manifest.name!r} of {party.identity.name}"
        if ledger is None:
            return None
        if self.plan.privacy is None:
            populations = ledger.bound(manifest.dataset_id) or ledger.overlap(
                party.vault.fingerprints(manifest.name)
            )
            if populations:
                raise PolicyRefused(
                    f"these rows have a budget ({', '.join(populations)}), and the plan claims no privacy",
                    where=where,
                    fix="Have [privacy] added to the plan, or do not take part",
                )
            return None
        try:
            populations = populations_of(ledger, party.vault, manifest)
        except PolicyRefused as error:  # it does not know whose ledger it is: there are several here
            raise PolicyRefused(error.what, where=where, fix=error.fix) from error
        return LedgerBudget(ledger, populations, party.identity.name)

    def _check_evaluation(self, party: Party) -> None:
        """Refuse to show, uncharged, how well the model fits rows that have a budget."""
        if not self.plan.data.public_rows or party.held_out is None or party.ledger is None:
            return
        if party.ledger.bound(party.vault.manifest(party.held_out).dataset_id):
            raise PolicyRefused(
                "the rows to evaluate on have a budget, and evaluation is not charged to it",
                where=f"dataset {party.held_out!r} of {party.identity.name}",
                fix="Hold out rows that are public, or none",
            )

    def _dataset_of(self, party: Party) -> str:
        for entry in self.plan.sites:
            if entry.name == party.identity.name:
                return entry.dataset
        raise PlanError(
            "the plan does not name this site", where=party.identity.name, fix="Add it to [[sites]]"
        )

    def _reader(self, vault: Vault, name: str, envelope: bytes | None) -> Callable[[], pa.Table]:
        """Return what opens a dataset for the plan's purpose and reads the columns it uses, no others."""
        columns = [*self.plan.data.features, self.plan.data.label]
        if self.plan.privacy is not None and not self.plan.privacy.by_record:
            columns.append(self.plan.privacy.unit)

        def read() -> pa.Table:
            with vault.open(name, purpose=self.plan.study.purpose) as dataset:
                if envelope not in (None, dataset.envelope):
                    raise IntegrityError(
                        "the dataset was replaced after its manifest was shown to the study",
                        where=name,
                        fix="Start the study again",
                    )
                return dataset.table(columns)

        return read

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
        tasks = [
            asyncio.create_task(self._run_site(self.sites[name], transport))
            for name, transport in transports.items()
        ]
        tasks.append(asyncio.create_task(self._run_hub(hub_transport, on_event)))
        try:
            # the first party that fails ends the study: in one process there is nobody to wait for
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for site in self.sites.values():
                site.leave()

    async def _run_site(self, site: Site, transport: MemoryTransport) -> None:
        while not site.finished and site.stopped is None:
            message = await transport.receive(_IDLE_SECONDS)
            for reply in site.receive(message) if message is not None else []:
                await transport.send(self.hub_identity.name, reply)
            if self.hub.stopped or self.hub.finished:
                return

    async def _run_hub(self, transport: MemoryTransport, on_event: Callable[[Event], None]) -> None:
        async def perform(step: Step) -> None:
            for event in step.events:
                on_event(event)
            for outgoing in step.outgoing:
                await transport.send(outgoing.receiver, outgoing.message)

        await perform(self.hub.start(time.monotonic()))
        while not self.hub.finished and self.hub.stopped is None:
            message = await transport.receive(_IDLE_SECONDS)
            now = time.monotonic()
            await perform(self.hub.receive(message, now) if message is not None else self.hub.tick(now))

    def _result(self) -> StudyResult:
        hub, epoch = self.hub, self.hub.epochs[-1]
        first = self.sites[epoch.terms.first.name]
        source = hub.model or first.model
        if first.study_key is None or hub.study_keys is None:
            raise CloisterError("the study ended without a study key")
        names = [member.name for member in epoch.terms.roster.members]
        return StudyResult(
            plan=self.plan,
            hub=self.hub_identity.public,
            epochs=(
                EpochFacts(
                    number=epoch.terms.number,
                    members=epoch.terms.roster.members,
                    rows={name: hub.joined[name].rows for name in names},
                    manifests={name: hub.joined[name].manifest for name in names},
                    countersignatures=dict(epoch.countersignatures),
                    setup_digest=epoch.secure_sum.setup_digest,
                    study_keys=hub.study_keys,
                ),
            ),
            rounds=tuple(hub.rounds),
            final_metrics=hub.final_metrics,
            model=source.released(),
            study_key=first.study_key,
            privacy=epoch.terms.privacy,
            debits=dict(hub.debits),
            clamped={name: self.sites[name].clamped for name in names if self.plan.data.public_rows},
            traffic=Counter(self._network.carried),
        )
