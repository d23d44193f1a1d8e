"""What every hub of a secure sum holds, and what a hub derived from it must say.

`hubmembers` adds who takes part, `sumhub` the sums. It is one machine in three files: each of them reads from
top to bottom, in the order of a study.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import PlanError, ProtocolError
from cloister.runtime.agreed import Agreed
from cloister.runtime.appraisal import Appraised
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.events import Event, Stopped
from cloister.runtime.hubjournal import KeepsHub, MemoryJournal, SiteAppraised
from cloister.runtime.messages import MAX_REASON, Done, Join, Message, Outcome, Ready, Stop
from cloister.secagg import RoundSum, SecureSumHub
from cloister.vault import Manifest

__all__ = ["PATIENCE", "Epoch", "HubState", "Outgoing", "Step"]

PATIENCE = 10


class Outgoing(NamedTuple):
    """A message for one site. One that goes to several is the same object in each."""

    receiver: str
    message: Message


@dataclass
class Step:
    """What one input led to."""

    outgoing: list[Outgoing] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


Terms = TypeVar("Terms", bound=RosterTerms)


@dataclass
class Epoch(Generic[Terms]):
    """What belongs to one epoch, as the hub knows it."""

    terms: Terms
    secure_sum: SecureSumHub
    joins: dict[str, Join]
    countersignatures: dict[str, bytes] = field(default_factory=dict)
    study_keys: bytes = b""
    opened: bool = False


class HubState(ABC, Generic[Terms]):
    """State and hooks of a hub.

    Args:
        agreed: what the plan names.
        identity: the hub's own keys.
        sites: public identities of the plan's sites, by name.
        schema: digest of the schema that every dataset must have, hex.
        deadline_seconds: how long the hub waits before a site counts as absent.
        patience: how many deadlines it waits where it cannot go on without somebody.
        journal: keeps what must survive the process; by default it does not.

    Attributes:
        joined: what each site brought that counts on the next roster.
        epochs: every roster that was offered, the newest last.
        debits: signed statement of each site's ledger, as they come in.
        appraisals: of each site, the newest, where the plan asks for evidence.
        stopped: why it ended before its end, or None.
        finished: whether it came to its end.
        told: sites that know how it ended, and have kept what it left them.

    Raises:
        PlanError: another hub is named, or a site's identity is not the plan's.
    """

    ACTIVITY: ClassVar[str]
    """What sites take part in, for messages: "study" or "query"."""

    def __init__(
        self,
        agreed: Agreed,
        identity: Identity,
        sites: Mapping[str, PublicIdentity],
        *,
        schema: str,
        deadline_seconds: float,
        patience: int = PATIENCE,
        journal: KeepsHub | None = None,
    ) -> None:
        noun = agreed.noun
        if agreed.hub != identity.public.fingerprint:
            raise PlanError(
                f"the {noun} names another hub",
                where=agreed.hub_field,
                fix=f"Use the identity the {noun} names",
            )
        for name, fingerprint in agreed.sites.items():
            if name not in sites or sites[name].fingerprint != fingerprint:
                raise PlanError(
                    f"no trusted identity with the fingerprint in the {noun}",
                    where=f"{agreed.site_field}{name}",
                    fix="`cloister keys trust` the identity the site exported",
                )
        self._agreed = agreed
        self._identity = identity
        self._sites = {name: sites[name] for name in agreed.sites}
        self._schema_digest = schema
        self._deadline_seconds = deadline_seconds
        self._patience = patience
        self._journal = journal or MemoryJournal()
        self.joined: dict[str, Join] = {}
        self.epochs: list[Epoch[Terms]] = []
        self.debits: dict[str, bytes] = {}
        self.appraisals: dict[str, Appraised] = {}
        self.stopped: str | None = None
        self.finished = False
        self.told: set[str] = set()
        self._excluded: set[str] = set()
        self._present: set[str] = set()
        self._newcomers: set[str] = set()
        self._known: dict[str, Join] = {}  # what each site brought last
        self._left: dict[str, str] = {}  # why each site left
        self._declined: dict[str, str] = {}  # why each site that is not here begins nothing, as it said last
        self._phase = "join"
        self._deadline = 0.0
        self._waits = 0
        self._round = 0
        self._attempt = -1
        self._answered: set[str] = set()
        self._fixed: frozenset[str] = frozenset()  # survivors of an attempt that were chosen before
        self._running = False
        self._next_epoch = 0
        self._anew: Counter[str] = Counter()  # who began the set-up anew, and how often
        self._step = Step()

    # --- what a hub derives from this must say ----------------------------------------------------

    @abstractmethod
    def _terms(self, number: int, names: Sequence[str]) -> Terms:
        """Return the terms of an epoch over these sites. Raises PlanError where it protects nobody."""

    @abstractmethod
    def _prepare(self, now: float) -> tuple[bytes | None, int]:
        """Return the model tag that uploads of the coming attempt must have, and their number of elements."""

    @abstractmethod
    def _on_sum(self, result: RoundSum, now: float) -> None:
        """Take a sum."""

    @abstractmethod
    def _on_done(self, peer: str, message: Done) -> None:
        """A site has ended."""

    @abstractmethod
    def _conclude(self) -> None:
        """End; everybody has, or was waited for."""

    @abstractmethod
    def _begin(self, outcome: Outcome | None, now: float) -> None:
        """Begin an attempt, or the epoch that is due before it."""

    def _check_join(self, peer: str, join: Join, manifest: Manifest) -> None:
        """Raise ProtocolError where a site states another row count than its manifest."""
        if join.rows != manifest.rows:
            raise ProtocolError("states another row count than its manifest", peer=peer)

    def _check_ready(self, peer: str, message: Ready) -> None:
        """Look at what else a member sends with its set-up digest."""

    def _announce_start(self) -> None:
        """Send what members need before the first attempt."""

    def _begin_epoch(self, now: float) -> None:
        """Begin the attempts of an epoch, all of whose members are ready."""
        self._begin(None, now)

    def _may_renew(self, names: Sequence[str]) -> bool:
        """Tell whether a new epoch over these sites may follow the one that runs."""
        return not self._agreed.final_roster

    def _handle_more(self, peer: str, message: Message, now: float) -> bool:
        """Take a message that only some hubs know; False where it is out of turn."""
        return False

    # --- helpers ----------------------------------------------------------------------------------

    @property
    def reattest_seconds(self) -> int | None:
        """How old a site's evidence may be; None where the plan asks for none."""
        return self._agreed.reattest_seconds

    def appraised(self, peer: str, appraised: Appraised) -> None:
        """Keep what was accepted as a site's evidence. Raises StorageError where it cannot."""
        self.appraisals[peer] = appraised
        self._journal.append(SiteAppraised(peer, appraised))

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the newest roster; empty before there is one."""
        return self._members() if self.epochs else ()

    def _current(self) -> Epoch[Terms]:
        if not self.epochs:
            raise ProtocolError("there is no roster yet", fix="Wait until the sites have joined")
        return self.epochs[-1]

    def _secure_sum(self) -> SecureSumHub:
        return self._current().secure_sum

    def _members(self) -> tuple[str, ...]:
        return self._current().terms.roster.names

    def _enter(self, phase: str, now: float) -> None:
        self._phase = phase
        self._answered = set()
        if phase != "answer":
            self._fixed = frozenset()
        self._waits = 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        self._deadline = now + self._deadline_seconds

    def _note(self, event: Event) -> None:
        self._step.events.append(event)

    def _send(self, name: str, message: Message) -> None:
        self._step.outgoing.append(Outgoing(name, message))

    def _broadcast(self, message: Message) -> None:
        for name in self._members():
            if name not in self._newcomers:  # who has lost the epoch could not read it
                self._send(name, message)  # the absent too: whoever is back reads on

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._phase = "stopped"
        self._note(Stopped(reason))
        for name in self.joined:
            self._send(name, Stop(reason[:MAX_REASON]))
