"""What `cloister site` puts together for each study: policy, vault, ledger, journal, log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.cli import common
from cloister.cli.baseoption import Bases
from cloister.cli.beforehand import require_grants
from cloister.cli.eventwords import in_words
from cloister.errors import InputError, PolicyRefused

if TYPE_CHECKING:
    from cloister.crypto import Identity, PublicIdentity
    from cloister.learning.privacy import PrivacyFacts
    from cloister.privacy.ledger import Ledger
    from cloister.runtime import Event, Site
    from cloister.runtime.events import Traffic
    from cloister.runtime.invite import Invitation
    from cloister.runtime.journal import SiteJournal
    from cloister.runtime.observe import Observer
    from cloister.runtime.sitepolicy import Decision

__all__ = ["SiteParts"]

_TELL_SECONDS = 2.0
_CLAIMS = 32  # which are costly to work out


class SiteParts:
    """One home as a site.

    Args:
        identity: the home's.
        trusted: the identities its owner trusts now.
        stack: closes what was opened.
        held_out: dataset to evaluate on.
        user_code: Python files the owner allows.
        bases: folders of base models that are here.
        ranks, shard: processes that train a language model together, and whether they share its base.
        device: what it trains on.
        sandboxed: whether rows are read, and such files run, in walled processes.
        metrics, otlp: where figures and traces go.
        say: tells people a line.
    """

    def __init__(
        self,
        identity: Identity,
        trusted: Callable[[], Mapping[str, PublicIdentity]],
        stack: ExitStack,
        *,
        held_out: str | None,
        user_code: Sequence[Path],
        bases: Sequence[Path] = (),
        ranks: int = 1,
        shard: bool = False,
        device: str = "auto",
        sandboxed: bool,
        metrics: str | None,
        otlp: str | None,
        say: Callable[[str], None],
    ) -> None:
        from cloister.cli.brokerkeys import vault_and_broker
        from cloister.cli.evidence import HomeEvidence
        from cloister.runtime.approvals import Approvals

        self.evidence = HomeEvidence(common.home(), identity.public, stack, say)
        self.identity, self.trusted, self.say = identity, trusted, say
        self._stack = stack
        self._held_out = held_out
        self._ranks, self._shard, self._device = ranks, shard, device
        self._user_code, self._bases, self._sandboxed = tuple(user_code), Bases(bases), sandboxed
        self._metrics, self._otlp = metrics, otlp
        self._approvals = Approvals(common.home() / "approvals", identity.public)
        self._vault, self._broker = vault_and_broker(
            common.home(), identity, common.passphrase(), self.evidence
        )
        self._ledger: Ledger | None = None
        self._observers: dict[str, Observer] = {}
        self._journals: dict[bytes, SiteJournal] = {}
        self._claims: dict[bytes, PrivacyFacts | None] = {}
        self._charged: dict[str, tuple[str, ...]] = {}
        self._told = 0.0
        self.traffic: Callable[[], Traffic] | None = None

    def decide(self, invitation: Invitation) -> Decision:
        """Return what policy and owner say of an invitation, read anew each time: a change counts at once."""
        from cloister.runtime.approvals import admit
        from cloister.runtime.sitepolicy import load_site_policy

        return admit(
            invitation.plan,
            invitation.hub,
            load_site_policy(common.home(), self.identity.public),
            self.trusted(),
            self._approvals,
            own=self.identity.fingerprint,
            claim=self._claim(invitation),
        )

    def _claim(self, invitation: Invitation) -> PrivacyFacts | None:
        """Return what the plan's `[privacy]` amounts to, worked out once."""
        from cloister.runtime.forecast import sizes_of
        from cloister.runtime.party import dataset_of

        plan = invitation.plan
        if plan.privacy is None:
            return None
        if plan.digest not in self._claims:
            manifest = self._vault.manifest(dataset_of(plan, self.identity.name))
            code, base = self._code_of(invitation), self._bases.of(plan)
            terms = sizes_of(plan, manifest.schema, code, base=base, sandboxed=self._sandboxed).terms
            while len(self._claims) >= _CLAIMS:  # a hub may invite without end
                self._claims.pop(next(iter(self._claims)))
            self._claims[plan.digest] = None if terms is None else terms.facts
        return self._claims[plan.digest]

    def open_site(self, invitation: Invitation) -> Site:
        """Return the machine of a study; what its journal kept is taken up."""
        from cloister.runtime import Party
        from cloister.runtime.events import Started
        from cloister.runtime.journal import SiteJournal, volatile_folder
        from cloister.runtime.party import dataset_of, site_of

        plan = invitation.plan
        if (common.home() / "studies" / plan.study.name).exists():
            raise PolicyRefused(
                f"a study {plan.study.name!r} is kept here already",
                where=str(common.home() / "studies"),
                fix="Have the plan named otherwise, or remove the old folder",
            )
        require_grants(common.home(), self.identity, plan, sandboxed=self._sandboxed, held_out=self._held_out)
        party = Party(
            self.identity,
            self._vault,
            held_out=self._held_out,
            trusted=tuple(self.trusted().values()),
            ledger=self._open_ledger(invitation),
            broker=self._broker,
            base=self._bases.of(plan),
            ranks=self._ranks,
            shard=self._shard,
            device=self._device,
        )
        self._begin(invitation)
        journal = SiteJournal(self._journal_folder(invitation), volatile_folder(), self.identity, plan.digest)
        try:
            code = self._code_of(invitation)
            site = site_of(
                plan, invitation.hub, party, user_code=code, journal=journal, sandboxed=self._sandboxed
            )
        except BaseException:
            journal.close()
            raise
        self._journals[plan.digest] = journal
        names = tuple(entry.name for entry in plan.sites)
        self._observers[plan.study.name](Started("site", plan.training.rounds, names))
        self._stack.callback(journal.close)
        if not journal.resumable:
            self.say(f"{plan.study.name}: a restart would have to wait for the next epoch, {journal.lost}.")
        if self._ledger is not None and plan.privacy is not None:
            manifest = self._vault.manifest(dataset_of(plan, self.identity.name))
            self._charged[plan.study.name] = self._ledger.bound(manifest.dataset_id)
        return site

    def on_event(self, study: str, event: Event) -> None:
        """Write an event to the study's log, and tell people."""
        from cloister.runtime.events import Ended, RoundDone, SetupDone, Stopped

        if study in self._observers:
            self._observers[study](event)
            due = time.monotonic() - self._told > _TELL_SECONDS
            if isinstance(event, SetupDone | Ended | Stopped) or (due and isinstance(event, RoundDone)):
                self._told = time.monotonic()
                self._tell_figures(study)
        if line := in_words(event):
            self.say(f"{study}: {line}" if study else line)

    def _tell_figures(self, study: str) -> None:
        """Write what went over the network, and what the rows' budgets have spent."""
        from cloister.runtime.events import Spent

        if self.traffic is not None:
            self._observers[study](self.traffic())
        if self._ledger is None:
            return
        for population in self._charged.get(study, ()):
            status = self._ledger.status(population)
            cap = status.cap
            self._observers[study](
                Spent(population, status.epsilon_spent, cap.epsilon, cap.delta, status.share_spent)
            )

    def _begin(self, invitation: Invitation) -> None:
        """Open the log of a study."""
        from cloister.runtime.observe import Observer

        plan = invitation.plan
        if plan.study.name not in self._observers:
            self._observers[plan.study.name] = self._stack.enter_context(
                Observer.of(
                    common.home() / "logs",
                    study=plan.study.name,
                    party=self.identity.name,
                    peers=[plan.hub.name],
                    public=plan.data.public_rows,
                    metrics=self._metrics,
                    otlp=self._otlp,
                )
            )

    def on_end(self, invitation: Invitation, site: Site) -> None:
        """Keep what a finished study left, model and record, in this home."""
        from cloister.runtime.store import save_conclusion

        studies = common.home() / "studies"
        if site.concluded is None or site.study_key is None or (studies / site.study).exists():
            return
        folder = save_conclusion(
            studies,
            invitation.plan,
            site.concluded.record,
            site.concluded.study_keys,
            site.study_key,
            site.model.released(),
            self.identity,
        )
        self.say(f"{invitation.plan.study.name}: kept encrypted in {folder}.")

    def on_left(self, invitation: Invitation, site: Site) -> None:
        """Close the journal of a study; of one that is kept, all but its promises are removed."""
        journal, folder = self._journals.pop(invitation.plan.digest), common.home() / "studies" / site.study
        if site.concluded is not None and (site.study_key is None or folder.exists()):
            journal.forget()  # where keeping it failed, the site comes back and gets it again
        journal.close()

    @staticmethod
    def _journal_folder(invitation: Invitation) -> Path:
        return common.home() / "journal" / "site" / invitation.plan.digest.hex()[:32]

    def _open_ledger(self, invitation: Invitation) -> Ledger | None:
        """Return the home's ledger; one that is not needed still says whether rows have a budget."""
        from cloister.privacy.ledger import ledger_exists

        if self._ledger is None and (
            invitation.plan.privacy is not None or ledger_exists(common.home() / "ledger")
        ):
            self._ledger = self._stack.enter_context(common.open_ledger(common.home(), self.identity))
        return self._ledger

    def _code_of(self, invitation: Invitation) -> Path | None:
        """Return the file the plan's module is in, if the owner allowed it."""
        from cloister.crypto import digest_file

        wanted = invitation.plan.model.code
        if not isinstance(wanted, str):
            return None
        for path in self._user_code:
            if digest_file(path).hex() == wanted:
                return path
        raise InputError(
            "the plan trains a module whose code was not allowed here",
            where=wanted[:16],
            fix="Read the file, then give it with --allow-user-code",
        )
