"""A site that is asked together with others, as a state machine: messages in, messages out.

Its order, each step refused out of turn:

    1. hello and Join: identity, signed manifest, row count; nothing of the rows
    2. RosterOffer: every member is named by the plan and trusted by the owner; what the roster costs is
       derived and reserved in the ledger; only then Countersign
    3. RosterClosed: everybody countersigned the same
    4. set-up of the secure sum: Announce, Deal, Ready
    5. RoundStart: the attempt is debited, durably; then rows are read, noise is added, the vector is masked,
       Upload
    6. Request: answered by the rules of `secagg`
    7. Finish: the sum, from which the site reads the same answers as the hub; Done with the signed debit

The exact sums exist for the length of one call and never in a message. A fresh attempt has fresh noise, and
is debited again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloister.crypto import Identity, PublicIdentity, sha256
from cloister.errors import PolicyRefused, ProtocolError
from cloister.privacy.statistics import Answer, FederatedRelease
from cloister.runtime.channel import Channel
from cloister.runtime.epoch import RosterTerms
from cloister.runtime.messages import (
    Announce,
    Announcements,
    Bundle,
    Countersign,
    Deal,
    Done,
    Finish,
    Join,
    Message,
    Ready,
    Request,
    RosterClosed,
    RosterOffer,
    RoundStart,
    Stop,
    Upload,
    decode_message,
    encode_message,
)
from cloister.runtime.messages import (
    Answer as Reply,
)
from cloister.runtime.querybudget import QueryBudget
from cloister.runtime.queryplan import QueryMember, QueryPlan
from cloister.runtime.roster import check_countersignatures, countersign, manifest_digest
from cloister.secagg import EpochContext, Roster, SecureSumSite
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

    def read_total(self, total: bytes) -> NDArray[np.uint32]:
        """Return uint32[size] of a sum's bytes. Raises ProtocolError where there are more or fewer."""
        if len(total) != 4 * self.release.size:
            raise ProtocolError(f"a sum of {len(total)} bytes is not what was asked for")
        return np.frombuffer(total, dtype="<u4").astype(np.uint32)

    def answers(self, survivors: tuple[str, ...], total: bytes) -> tuple[Answer, ...]:
        """Return the answers in a sum. Raises ProtocolError, InputError where it is not one of this
        roster's."""
        rows = sum(self.rows[name] for name in survivors)
        return self.release.answers(self.read_total(total), survivors=len(survivors), rows=rows)


class QuerySite:
    """One site of one query.

    Args:
        plan: what its owner agreed to be asked.
        identity: the site's own keys.
        hub: the hub that the plan names.
        trusted: public identities the owner trusts, by fingerprint.
        manifest: signed manifest of its dataset.
        schema: of its dataset.
        rows: opens the columns of a given list, for the plan's purpose.
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
        rows: Callable[[tuple[str, ...]], pa.Table],
        budget: QueryBudget,
        insecure_test_random: RandomBytes | None = None,
    ) -> None:
        self._plan = plan
        self._identity = identity
        self._hub = hub
        self._trusted = trusted
        self._manifest = manifest
        self._schema = schema
        self._open_rows = rows
        self._budget = budget
        self._random = insecure_test_random
        self._entry = self._own_entry()
        self._channel = Channel(
            identity, hub, plan.digest, initiator=False, insecure_test_random=insecure_test_random
        )
        self._epoch: QueryEpoch | None = None
        self._secure_sum: SecureSumSite | None = None
        self._attempt = -1
        self._expected: tuple[type[Message], ...] = (RosterOffer,)
        self.answers: tuple[Answer, ...] | None = None
        self.finished = False
        self.stopped: str | None = None

    def __repr__(self) -> str:
        return f"QuerySite({self._identity.name})"

    @property
    def name(self) -> str:
        """The site's name."""
        return self._identity.name

    def receive(self, message: bytes) -> list[bytes]:
        """Take one message from the hub; return the messages to send back, in order.

        Raises:
            ProtocolError, IntegrityError: it does not verify, or the hub broke the protocol.
            PolicyRefused: the roster is not one its owner agreed to, or the budget does not cover it.
        """
        opened = not self._channel.ready
        payloads = self._channel.receive(message)
        out: list[bytes] = []
        if opened and self._channel.ready:
            join = Join(self._identity.public.to_json(), self._manifest, self._entry.rows)
            out += [self._channel.hello, self._channel.seal(encode_message(join))]
        for payload in payloads:
            parsed = decode_message(payload, peer=self._hub.name)
            if isinstance(parsed, Stop):
                self.stopped = parsed.reason
                self._expected = ()
                self.leave()
                continue
            if not isinstance(parsed, self._expected):
                raise ProtocolError(f"sent {type(parsed).__name__} out of turn", peer=self._hub.name)
            out += [self._channel.seal(encode_message(reply)) for reply in self._handle(parsed)]
        return out

    def leave(self) -> bytes | None:
        """End taking part: secrets are erased, what was not begun is given back; return the signed debit."""
        if self._secure_sum is not None:
            self._secure_sum.end()
        return self._budget.close()

    # --- steps ------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> list[Message]:
        match message:
            case RosterOffer():
                return self._on_roster_offer(message)
            case RosterClosed():
                return self._on_roster_closed(message)
            case Announcements():
                self._expected = (Bundle, RosterOffer)
                return [Deal(self._sum().deal(message.bodies))]
            case Bundle():
                self._sum().finish_setup(message.body)
                self._expected = (RoundStart, RosterOffer)
                return [Ready(self._sum().setup_digest)]
            case RoundStart():
                return self._on_round_start(message)
            case Request() if message.attempt == self._attempt:
                return [Reply(message.attempt, self._sum().answer(message.body))]
            case Finish():
                return self._on_finish(message)
            case _:
                raise ProtocolError(f"sent a {type(message).__name__} that is not due", peer=self._hub.name)

    def _on_roster_offer(self, offer: RosterOffer) -> list[Message]:
        if self._epoch is not None and offer.epoch <= self._epoch.context.epoch:
            raise ProtocolError("offered a second roster for one epoch", peer=self._hub.name)
        if not len(offer.members) == len(offer.manifests) == len(offer.rows):
            raise ProtocolError("offered a roster with missing entries", peer=self._hub.name)
        members = tuple(self._accept(PublicIdentity.from_json(member)) for member in offer.members)
        manifests = dict(zip((member.name for member in members), offer.manifests, strict=True))
        if len(manifests) < len(members):
            raise ProtocolError("offered a roster that names a member twice", peer=self._hub.name)
        epoch = QueryEpoch.of(self._plan, self._schema, offer.epoch, members, manifests)
        if list(epoch.rows.values()) != offer.rows:
            raise ProtocolError("offered a roster with other row counts than the plan's", peer=self._hub.name)
        if manifests.get(self.name) != manifest_digest(self._manifest):
            raise ProtocolError("offered a roster that misstates what this site brings", peer=self._hub.name)
        # whomever epsilon speaks of, the ledger pays for those who see most
        self._budget.admit(self._plan, epoch.release.events("colluders"))
        if self._secure_sum is not None:
            self._secure_sum.end()
        self._epoch, self._secure_sum = epoch, None
        self._expected = (RosterClosed, RosterOffer)
        return [Countersign(countersign(self._identity, epoch.countersignature(self.name)))]

    def _on_roster_closed(self, closed: RosterClosed) -> list[Message]:
        epoch = self._current()
        check_countersignatures(
            closed.countersignatures, epoch.context.roster.members, epoch.countersignature
        )
        self._secure_sum = SecureSumSite(epoch.context, self._identity, insecure_test_random=self._random)
        self._expected = (Announcements, RosterOffer)
        return [Announce(self._secure_sum.announce())]

    def _on_round_start(self, start: RoundStart) -> list[Message]:
        if not self._attempt < start.attempt < self._plan.attempts or start.outcome is not None:
            raise ProtocolError("started an attempt that was used or is beyond the plan", peer=self._hub.name)
        release = self._current().release
        self._attempt = start.attempt
        self._budget.enter(start.attempt)
        vector = release.contribution(self._open_rows(release.columns), insecure_test_random=self._random)
        body = self._sum().upload(start.attempt, vector, self._plan.digest)
        self._expected = (Request, RoundStart, Finish)
        return [Upload(start.attempt, body)]

    def _on_finish(self, message: Finish) -> list[Message]:
        outcome = message.outcome
        if outcome.attempt != self._attempt:
            raise ProtocolError("ended with an attempt that is not running", peer=self._hub.name)
        # the secure sum refuses lists that are too short, repeat a site, or are not the one this site chose
        total = self._current().read_total(outcome.total)
        self._sum().open_sum(outcome.attempt, outcome.survivors, total, self._plan.digest)
        self.answers = self._current().answers(tuple(outcome.survivors), outcome.total)
        self._expected = ()
        self.finished = True
        return [Done(sha256(outcome.total), debit=self.leave())]

    # --- who and what -----------------------------------------------------------------------------

    def _own_entry(self) -> QueryMember:
        entry = next((site for site in self._plan.sites if site.name == self._identity.name), None)
        if entry is None or entry.identity != self._identity.public.fingerprint:
            raise PolicyRefused(
                "the query does not name this site with this identity",
                where=self._identity.name,
                fix="Ask for a plan with the fingerprint that `cloister keys show` prints",
            )
        if self._plan.hub.identity != self._hub.fingerprint:
            raise PolicyRefused(
                "the hub is not the one the query names", where=self._hub.name, fix="Use the query's hub"
            )
        if open_manifest(self._manifest, self._identity.public).rows != entry.rows:
            raise PolicyRefused(
                "the query states another number of rows than this site's manifest",
                where=self._identity.name,
                fix="Ask anew: the dataset was replaced since",
            )
        return entry

    def _accept(self, member: PublicIdentity) -> PublicIdentity:
        named = {site.name: site.identity for site in self._plan.sites}
        if named.get(member.name) != member.fingerprint or member.fingerprint not in self._trusted:
            raise PolicyRefused(
                f"{self.name} refuses a roster with a member that is not named or that it does not trust",
                where=member.name,
                fix="Check its fingerprint with its owner, then `cloister keys trust` it",
            )
        return member

    def _current(self) -> QueryEpoch:
        if self._epoch is None:
            raise ProtocolError("skipped the roster", peer=self._hub.name)
        return self._epoch

    def _sum(self) -> SecureSumSite:
        if self._secure_sum is None:
            raise ProtocolError("skipped the set-up", peer=self._hub.name)
        return self._secure_sum
