"""What every hub of a secure sum does: joining, roster, set-up, and one sum after another.

Messages and times in, messages and events out:

    1. collect Join until all sites of the plan are there or the deadline passes
    2. offer a roster, collect countersignatures, publish them
    3. relay the secure-sum set-up; it is all or nothing: who is missing or caught lying is left out, and a
       new epoch begins
    4. an attempt: start, collect masked uploads, close, collect answers

What is summed, and what becomes of a sum, is for the hubs of studies and queries, which fill in the methods
that are named abstract here.

Who takes part, and how an epoch is set up, is in `hubmembers`; what is held in `hubstate`.

Journal. What was offered, agreed, begun, chosen and summed is appended before a byte of it leaves, so a hub
that died goes on with `resume`: whoever was in the middle of something sends it again, byte for byte.

Deadlines. Too few uploads: nothing is chosen yet, so the hub waits on (`Stalled`), up to `PATIENCE`
deadlines. Too few answers after a choice: the attempt is burnt and a fresh one begins, while the plan has
attempts left.

A message that does not verify, or comes from somebody who is not on the roster, is refused, reported and
without effect. One that a member signed and that is wrong leaves the member out, if attempts have not begun;
later its part is refused and the others go on while m of them are left.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.errors import CloisterError, ProtocolError, RoundBurnt, StorageError
from cloister.runtime.events import Burnt, Lost, Refused, Stalled
from cloister.runtime.hubjournal import (
    AttemptBegun,
    EpochOffered,
    EpochOpened,
    Kept,
    RoundEnded,
    SiteAppraised,
    SurvivorsFixed,
)
from cloister.runtime.hubmembers import MemberHub
from cloister.runtime.hubstate import PATIENCE, Epoch, Outgoing, Step, Terms
from cloister.runtime.messages import (
    Announce,
    Answer,
    Countersign,
    Deal,
    Done,
    Farewell,
    Join,
    Leave,
    Message,
    Outcome,
    Ready,
    Request,
    RoundStart,
    Upload,
)
from cloister.secagg import SecureSumHub

__all__ = ["PATIENCE", "Epoch", "Outgoing", "Step", "SumHub"]

_RENEWABLE = ("roster", "announce", "deal", "ready", "state", "upload", "answer")


class SumHub(MemberHub[Terms]):
    """The part of a hub that studies and queries share; its arguments are those of `HubState`."""

    # --- inputs -----------------------------------------------------------------------------------

    def resume(self, now: float) -> Step:
        """Go on from the journal; without records in it, begin.

        Every site is waited for anew: it says where it was, and gets what it misses.
        """
        self._step = Step()
        self._wait(now)
        for record in self._journal.records():
            self._restore(record)
        if (
            not self.epochs
            or not self.epochs[-1].opened
            or self._next_epoch > self._current().terms.number + 1
        ):
            self.joined = {}  # a set-up was interrupted: everybody begins the next one
            return self._step
        self._present = set(self._members())
        self._go_on(now)
        return self._step

    def _restore(self, record: Kept) -> None:
        """Repeat what a record says was done."""
        match record:
            case EpochOffered():
                self._next_epoch = record.number + 1
            case EpochOpened():
                self._reopen(record)
            case SiteAppraised():
                self.appraisals[record.name] = record.appraised
            case AttemptBegun():
                self._round, self._attempt = record.round, record.attempt
                self._running, self._fixed = True, frozenset()
            case SurvivorsFixed():
                self._fixed = frozenset(record.survivors)
            case RoundEnded():
                self._running, self._fixed = False, frozenset()
            case _:
                pass

    def _reopen(self, record: EpochOpened) -> None:
        self._next_epoch = max(self._next_epoch, record.number + 1)  # a checkpoint keeps no offers
        self.joined = dict(zip(record.names, record.joins, strict=True))
        terms = self._terms(record.number, record.names)
        secure_sum = SecureSumHub.restore(terms.context, record.secure_sum)
        signed = dict(zip(record.names, record.countersignatures, strict=True))
        self.epochs.append(
            Epoch(terms, secure_sum, dict(self.joined), signed, record.study_keys, opened=True)
        )
        self._running, self._fixed = False, frozenset()

    def _go_on(self, now: float) -> None:
        """Take up the attempt that was under way, or begin the one that is due."""
        if not self._running:
            self._begin(None, now)
            return
        tag, size = self._prepare(now)
        fixed = self._fixed
        self._secure_sum().resume_attempt(
            self._attempt, model_tag=tag, size=size, survivors=sorted(fixed) if fixed else None
        )
        self._enter("upload", now)
        self._fixed = fixed

    def handle(self, peer: str, message: Message, now: float) -> Step:
        """Take a message that a site signed."""
        self._step = Step()
        try:
            self._handle(peer, message, now)
        except StorageError:  # what should have been written first was not: nothing of it may go out
            raise
        except CloisterError as error:
            self._refuse(peer, error, now)
        return self._step

    def revoke(self, peer: str, now: float) -> Step:
        """Shut out a site whose identity is trusted no more; what it sent before in this round is dropped."""
        self._step = Step()
        if peer in self._sites and peer not in self._excluded:
            self._excluded.add(peer)
            self._present.discard(peer)
            self._newcomers.discard(peer)
            self._note(Lost(peer))
            if self.epochs and peer in self._members() and self._phase in _RENEWABLE:
                self._renew(None, now, f"{peer} is trusted no more")
        return self._step

    def tick(self, now: float) -> Step:
        """Let time pass; deadlines are acted upon here and nowhere else."""
        self._step = Step()
        if self.finished or self.stopped or now < self._deadline:
            return self._step
        match self._phase:
            case "join":
                self._join_deadline(now)
            case "roster" | "announce" | "deal" | "ready":
                self._offer([name for name in self._members() if name in self._answered], now)
            case "upload":
                self._upload_deadline(now)
            case "answer":
                self._present &= self._answered
                self._burn("too few sites answered", now)
            case "done":
                self._done_deadline(now)
            case _:
                self._more_deadlines(now)
        return self._step

    def _done_deadline(self, now: float) -> None:
        """End without who has not confirmed it."""
        self._conclude()

    def _more_deadlines(self, now: float) -> None:
        """Act on the deadline of a phase that only some hubs have."""

    # --- dispatch ---------------------------------------------------------------------------------

    def _handle(self, peer: str, message: Message, now: float) -> None:
        if peer in self._excluded or peer not in self._sites:
            self._note(Refused(peer, f"is not in this {self.ACTIVITY}"))
            return
        if isinstance(message, Join):
            self._on_join(peer, message, now)
            return
        if isinstance(message, Leave):
            self._on_leave(peer, message, now)
            return
        if peer in self._left:  # it was under way
            self._note(Refused(peer, "takes no part"))
            return
        if self.epochs and (peer not in self._members() or peer in self._newcomers):
            self._note(Refused(peer, "is not on the roster"))
            self._is_here(peer, now)
            return
        if self._phase == "join":
            self._is_here(peer, now)
        self._present.add(peer)
        match message:
            case Countersign() if self._phase == "roster":
                self._on_countersign(peer, message, now)
            case Announce() if self._phase == "announce":
                self._on_announce(peer, message, now)
            case Deal() if self._phase == "deal":
                self._on_deal(peer, message, now)
            case Ready() if self._phase == "ready":
                self._on_ready(peer, message, now)
            case Upload() if message.attempt == self._attempt and self._phase == "upload":
                self._on_upload(peer, message, now)
            case Answer() if message.attempt == self._attempt and self._phase == "answer":
                self._on_answer(peer, message, now)
            case Done() if self._phase == "done":
                self._on_done(peer, message)
            case Farewell() if self._phase == "finished":
                self.told.add(peer)
            case Answer():
                pass  # t others were faster
            case _ if self._handle_more(peer, message, now):
                pass
            case _:  # too late, most often: it was under way when the phase changed
                self._note(Refused(peer, f"{type(message).__name__} came out of turn"))

    def _refuse(self, peer: str, error: CloisterError, now: float) -> None:
        """Report what a peer signed and sent; during set-up, begin again without the member that the error
        names."""
        self._note(Refused(peer, str(error)))
        liar = error.peer if isinstance(error, ProtocolError) else None
        if self._phase in ("roster", "announce", "deal", "ready") and liar in self._members():
            self._excluded.add(str(liar))
            self._offer([name for name in self._members() if name != liar], now)

    # --- an attempt -------------------------------------------------------------------------------

    def _begin(self, outcome: Outcome | None, now: float) -> None:
        """Begin an attempt, or the epoch that is due before it."""
        if (reason := self._renewal_due()) is not None:
            self._renew(outcome, now, reason)
            return
        if self._attempt + 1 >= self._agreed.attempts:
            self._stop(self._exhausted())
            return
        self._attempt += 1
        self._journal.append(AttemptBegun(self._round, self._attempt))
        tag, size = self._prepare(now)
        self._secure_sum().begin(self._attempt, model_tag=tag, size=size)
        self._enter("upload", now)
        self._broadcast(RoundStart(self._round, self._attempt, outcome))

    def _exhausted(self) -> str:
        return f"all {self._agreed.attempts} attempts of the {self._agreed.noun} are used"

    def _on_upload(self, peer: str, message: Upload, now: float) -> None:
        """Take a masked vector; that of the last one who is there ends the collecting."""
        self._secure_sum().on_upload(peer, message.body)
        uploaded = self._secure_sum().uploaded
        expected = self._fixed or self._present.intersection(self._members())
        if uploaded >= expected and len(uploaded) >= self._minimum():
            self._close(now)

    def _upload_deadline(self, now: float) -> None:
        uploaded = self._secure_sum().uploaded
        self._present &= uploaded
        if self._fixed:
            self._burn("a survivor did not send its vector again", now)
            return
        if len(uploaded) >= self._minimum():
            self._close(now)
            return
        missing = tuple(name for name in self._members() if name not in uploaded)
        self._waits += 1
        if self._waits >= self._patience:
            self._stop(f"{self._waiting()} waited {self._patience} deadlines for {', '.join(missing)}")
            return
        if self._should_renew():
            self._renew(None, now, f"{', '.join(missing)} did not come back")
            return
        self._note(Stalled(self._round, missing))
        self._wait(now)

    def _waiting(self) -> str:
        return f"the {self.ACTIVITY}"

    def _close(self, now: float) -> None:
        requests = self._secure_sum().close()
        self._fixed = frozenset(self._secure_sum().uploaded)
        self._journal.append(SurvivorsFixed(self._attempt, sorted(self._fixed)))
        self._enter("answer", now)
        self._ask(requests)

    def _ask(self, requests: Mapping[str, bytes]) -> None:
        for name, body in requests.items():
            if name not in self._newcomers:
                self._send(name, Request(self._attempt, body))

    def _on_answer(self, peer: str, message: Answer, now: float) -> None:
        try:
            more = self._secure_sum().on_answer(peer, message.body)
        except RoundBurnt as burnt:
            self._burn(str(burnt), now)
            return
        self._ask(more or {})
        self._answered.add(peer)
        result = self._secure_sum().result()
        if result is not None:
            self._on_sum(result, now)

    def _burn(self, reason: str, now: float) -> None:
        self._secure_sum().burn()
        self._note(Burnt(self._round, self._attempt, reason))
        self._begin(None, now)
