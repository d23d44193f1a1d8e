"""Who takes part at a hub: joining, coming back, leaving, the roster, and the set-up of an epoch.

Membership. Who does not answer by a deadline is absent: nobody waits for it until it sends something. A
site that comes back says in its `Join` where it was. With the epoch's secrets it goes on where the others
are; without them, and as any other newcomer, it waits for the next epoch, which begins after the round, or
at once where the round cannot end without it. A revoked member ends the epoch at once. Where there can be no
epoch over those who are there, the hub waits for the others.

The set-up is all or nothing: who is missing or caught lying is left out, and a new epoch begins.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cloister.crypto import PublicIdentity
from cloister.errors import PlanError, ProtocolError
from cloister.runtime.events import Burnt, EpochEnded, Refused, Resumed, RosterAgreed, SetupDone, Stalled
from cloister.runtime.hubjournal import EpochOffered, EpochOpened
from cloister.runtime.hubstate import Epoch, HubState, Step, Terms
from cloister.runtime.messages import (
    MAX_REASON,
    Announce,
    Announcements,
    Bundle,
    CatchUp,
    Countersign,
    Deal,
    Join,
    Leave,
    Message,
    Outcome,
    Position,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
)
from cloister.runtime.roster import manifest_digest, read_countersignature
from cloister.secagg import SecureSumHub
from cloister.vault import open_manifest

__all__ = ["MemberHub"]


class MemberHub(HubState[Terms]):
    """The part of a hub that knows its sites; see the module's docstring."""

    # --- joining and the roster -------------------------------------------------------------------

    def _on_join(self, peer: str, join: Join, now: float) -> None:
        noun = self._agreed.noun
        if PublicIdentity.from_json(join.identity).fingerprint != self._sites[peer].fingerprint:
            raise ProtocolError(f"joined with another identity than the {noun} names", peer=peer)
        manifest = open_manifest(join.manifest, self._sites[peer])
        if manifest.schema.digest().hex() != self._schema_digest:
            raise ProtocolError(f"brings a dataset with another schema than the {noun}'s", peer=peer)
        self._check_join(peer, join, manifest)
        self._known[peer] = join
        self._left.pop(peer, None)
        self._declined.pop(peer, None)
        self.told.discard(peer)
        if self._phase in ("join", "roster", "announce", "deal", "ready"):
            for missed in self._missed(peer, join.position) or []:  # it can be read in its own epoch alone
                self._send(peer, missed)
            if self._phase != "join" and peer in self._members():
                self.joined[peer] = join  # it began anew, and what it held of this set-up is gone
                self._anew[peer] += 1
                if self._anew[peer] > self._patience:  # one site must not keep the others from beginning
                    self._note(Refused(peer, "began every set-up anew, and is left out"))
                    self._excluded.add(peer)
                    self._offer([name for name in self._members() if name != peer], now)
                    return
                self._offer(self._members(), now)
            else:
                self._is_here(peer, now)
        elif self._phase == "stopped":
            self._send(peer, Stop(str(self.stopped)[:MAX_REASON]))
        else:
            self.joined[peer] = join
            self._on_return(peer, join.position, now)

    def _is_here(self, peer: str, now: float) -> None:
        """Count on a site that is not on the running roster, if it has joined: it comes with the next."""
        if peer not in self._known or self._phase in ("stopped", "finished"):
            return
        self.joined[peer] = self._known[peer]
        if self._phase != "join":
            self._newcomers.add(peer)
            return
        awaited = self._sites.keys() - self._excluded - self._left.keys()
        if awaited <= self.joined.keys() and self._unfit(self._fitting(self.joined)) is None:
            self._offer(self.joined, now)

    # --- who comes back, and who comes later --------------------------------------------------------

    def _on_return(self, peer: str, position: Position | None, now: float) -> None:
        """Let a site go on where the others are, or wait for the next epoch."""
        missed = self._missed(peer, position)
        if peer not in self._members() or missed is None:
            if self._phase == "finished":
                self._send(peer, Stop(f"the {self.ACTIVITY} had ended"))
                self.told.add(peer)
                return
            self._present.discard(peer)
            self._newcomers.add(peer)
            if self._phase != "done" and self._should_renew():
                self._renew(None, now, f"{peer} begins anew, and too few others are there")
            return
        for message in missed:
            self._send(peer, message)
        self._present.add(peer)
        self._newcomers.discard(peer)
        self._secure_sum().returned(peer)
        self._note(Resumed(self._current().terms.number, self._round, self._attempt))
        self._repeat(peer)

    def _on_leave(self, peer: str, message: Leave, now: float) -> None:
        """Go on without a site that says it takes no part, or no further part."""
        self._note(Refused(peer, f"takes no part: {message.reason}"))
        self._present.discard(peer)
        self._newcomers.discard(peer)
        self.joined.pop(peer, None)
        self._left[peer] = message.reason
        self.told.add(peer)  # it wants nothing more
        if self._stop_if_deserted():
            return
        if self._phase in ("roster", "announce", "deal", "ready") and peer in self._members():
            self._offer([name for name in self._members() if name != peer], now)

    def decline(self, peer: str, reason: str) -> Step:
        """Hear from a site that is not here that it begins nothing as things are. It is invited again: what
        it refuses may be mended while others are waited for."""
        self._step = Step()
        if peer not in self._sites or peer in self._excluded:
            return self._step
        if self._declined.get(peer) != reason:
            self._declined[peer] = reason
            self._note(Refused(peer, f"takes no part: {reason}"))
        self._stop_if_deserted()
        return self._step

    def look_around(self) -> Step:
        """End where nobody is left to wait for: the last may have been shut out since others refused."""
        self._step = Step()
        self._stop_if_deserted()
        return self._step

    def _stop_if_deserted(self) -> bool:
        """End where every site refuses or is shut out, and nobody is left to wait for."""
        # a decline ends nothing that has begun: sites that start anew together may refuse for a moment, until
        # what they need is there; who says `Leave` means it
        begun = self._next_epoch > 0
        refusals = self._left if begun else self._declined | self._left
        awaited = self._sites.keys() - self._excluded - refusals.keys()
        if self._phase in ("done", "stopped", "finished") or awaited:
            return False
        named = (f"{name}: {refusals.get(name, 'is shut out')}" for name in self._sites)
        self._stop(f"every site refuses; {'; '.join(named)}")
        return True

    def _missed(self, peer: str, position: Position | None) -> list[Message] | None:
        """Return what brings a site from where it was to where the others are; None where it does not hold
        the last epoch that was set up, or that is not kept."""
        epoch = next((epoch for epoch in reversed(self.epochs) if epoch.opened), None)
        if position is None or epoch is None or peer not in epoch.joins:
            return None
        if (position.epoch, position.setup_digest) != (epoch.terms.number, epoch.secure_sum.setup_digest):
            return None
        return self._missed_rounds(peer, position.rounds, epoch)

    def _missed_rounds(self, peer: str, rounds: int, epoch: Epoch[Terms]) -> list[Message] | None:
        """Return the outcomes of the rounds from `rounds` on; None where they are not kept."""
        outcomes = self._journal.outcomes(rounds)
        if [each.round for each in outcomes] != list(range(rounds, self._round)) or rounds > self._round:
            return None
        return [CatchUp(each) for each in outcomes]

    def _repeat(self, peer: str) -> None:
        """Send what the site may not have got."""
        if self._phase == "upload":
            # where survivors are fixed another's vector would count for nothing, and yet be paid for
            if peer not in self._secure_sum().uploaded and peer in (self._fixed or self._members()):
                self._send(peer, RoundStart(self._round, self._attempt, None))
        elif self._phase == "answer" and (request := self._secure_sum().request_for(peer)) is not None:
            self._send(peer, Request(self._attempt, request))

    def _minimum(self) -> int:
        return self._current().terms.context.params.minimum

    def _join_deadline(self, now: float) -> None:
        """Offer a roster over those who joined; while they are too few, wait on."""
        unfit = self._unfit(self._fitting(self.joined))
        if unfit is None:
            self._offer(self.joined, now)
            return
        self._waits += 1
        if self._waits >= self._patience:
            self._stop(unfit)
            return
        self._note(Stalled(self._round, tuple(name for name in self._sites if name not in self.joined)))
        self._wait(now)

    def _unfit(self, names: Sequence[str]) -> str | None:
        """Say why there can be no roster over these sites now, or None."""
        if (few := self._too_few(names)) is not None:
            return few
        try:
            same = self._attempt < 0 or self._may_renew(names)
        except PlanError as error:
            return f"{len(names)} sites take part: {error}"
        if not same:
            return f"what the {self._agreed.noun} claims would change with a roster of {', '.join(names)}"
        return None

    def _too_few(self, names: Sequence[str]) -> str | None:
        """Say why there can be no roster over these sites, or None."""
        try:
            self._terms(0, names)
        except PlanError as error:
            return f"{len(names)} sites take part: {error}"
        return None

    def _next_roster(self) -> list[str] | None:
        """Return whom an epoch that began now would be over, if it let somebody in."""
        names = self._fitting(self._present | self._newcomers)
        return names if self._newcomers.intersection(names) and self._unfit(names) is None else None

    def _should_renew(self) -> bool:
        """Tell whether another epoch helps where this one has too few who are there."""
        few = len(self._present.intersection(self._members())) < self._minimum()
        return few and self._next_roster() is not None

    def _renew(self, outcome: Outcome | None, now: float, reason: str) -> None:
        """End the epoch and begin another over everybody who is there."""
        names = self._present | self._newcomers
        if self._phase in ("upload", "answer") and outcome is None and self._secure_sum().result() is None:
            self._secure_sum().burn()  # what came in is of no more use
            self._note(Burnt(self._round, self._attempt, reason))
        self._note(EpochEnded(self._current().terms.number, reason))
        if outcome is not None:
            for name in self._members():
                if name in self._present:
                    self._send(name, CatchUp(outcome))
        self._offer(names, now)

    def _renewal_due(self) -> str | None:
        """Say why the epoch should end after this round, or None."""
        names = self._next_roster() if self._newcomers else None
        if names is None:
            return None
        return f"{', '.join(sorted(self._newcomers.intersection(names)))} takes part from now on"

    # --- the roster -------------------------------------------------------------------------------

    def _offer(self, names: Collection[str], now: float) -> None:
        """Offer a roster over these and the newcomers, as far as they fit together."""
        names = self._fitting({*names, *self._newcomers})
        number = self._next_epoch
        try:
            if (unfit := self._unfit(names)) is not None:
                self._wait_for_more(names, unfit, now)
                return
            terms = self._terms(number, names)
        except PlanError as error:
            self._stop(f"{len(names)} sites take part: {error}")
            return
        self._next_epoch += 1
        self._journal.append(EpochOffered(number), durable=True)
        joins = {name: self.joined[name] for name in names}
        self.epochs.append(Epoch(terms, SecureSumHub(terms.context), joins))
        self._present = set(names)
        self._newcomers -= set(names)
        self._enter("roster", now)
        identities = [member.to_json() for member in terms.roster.members]
        self._broadcast(
            RosterOffer(terms.number, identities, list(terms.manifests.values()), list(terms.rows.values()))
        )

    def _wait_for_more(self, names: Sequence[str], unfit: str, now: float) -> None:
        """Wait for the sites that are missing; end where that is in vain."""
        left = self._excluded | self._left.keys()
        everybody = [name for name in self._sites if name not in left]
        if self._agreed.final_roster or self._too_few(everybody) is not None:
            self._stop(unfit)
            return
        self.joined = {name: self.joined[name] for name in self._here({*names, *self._newcomers})}
        self._enter("join", now)

    def _fitting(self, names: Collection[str]) -> list[str]:
        """Return whom a roster may be over: all of these; else as many as the last one had, its members
        first."""
        everybody = self._here(names)
        if not self.epochs or self._unfit(everybody) is None:
            return everybody
        first = sorted(everybody, key=lambda name: name not in self._members())
        return self._here(first[: len(self._members())])

    def _here(self, names: Collection[str]) -> list[str]:
        """Return those of these sites that joined and are not shut out, in the plan's order."""
        return [
            name
            for name in self._sites
            if name in names and name in self.joined and name not in self._excluded
        ]

    def _manifests(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the digest of each site's signed manifest."""
        return {name: manifest_digest(self.joined[name].manifest) for name in names}

    def _on_countersign(self, peer: str, message: Countersign, now: float) -> None:
        epoch = self._current()
        statement = read_countersignature(message.envelope, self._sites[peer])
        due = epoch.terms.countersignature(peer)
        if (statement.roster, statement.epoch) != (due.roster, due.epoch):
            return  # a late answer to an abandoned roster
        if statement != due:
            raise ProtocolError(
                f"countersigned another {self._agreed.noun}, manifest or row count", peer=peer
            )
        epoch.countersignatures[peer] = message.envelope
        self._answered.add(peer)
        if len(epoch.countersignatures) == len(epoch.terms.roster.members):
            self._note(RosterAgreed(epoch.terms.number, tuple(self._members())))
            self._enter("announce", now)
            self._broadcast(RosterClosed([epoch.countersignatures[name] for name in self._members()]))

    # --- set-up -----------------------------------------------------------------------------------

    def _on_announce(self, peer: str, message: Announce, now: float) -> None:
        bodies = self._secure_sum().on_announcement(peer, message.body)
        self._answered.add(peer)
        if bodies is not None:
            self._enter("deal", now)
            self._broadcast(Announcements(bodies))

    def _on_deal(self, peer: str, message: Deal, now: float) -> None:
        bundles = self._secure_sum().on_deal(peer, message.body)
        self._answered.add(peer)
        if bundles is not None:
            self._enter("ready", now)
            for name, body in bundles.items():
                self._send(name, Bundle(body))

    def _on_ready(self, peer: str, message: Ready, now: float) -> None:
        if message.setup_digest != self._secure_sum().setup_digest:
            raise ProtocolError("ended the set-up with another digest", peer=peer)
        self._check_ready(peer, message)
        self._answered.add(peer)
        if len(self._answered) == len(self._members()):
            epoch = self._current()
            epoch.opened = True
            self._anew.clear()
            self._journal.append(self._epoch_record(), durable=True)
            self._note(SetupDone(epoch.terms.number, message.setup_digest))
            self._announce_start()
            self._begin_epoch(now)

    def _epoch_record(self) -> EpochOpened:
        epoch = self._current()
        names = self._members()
        return EpochOpened(
            epoch.terms.number,
            list(names),
            [epoch.joins[name] for name in names],
            [epoch.countersignatures[name] for name in names],
            epoch.secure_sum.snapshot(),
            epoch.study_keys,
        )
